"""The five shapes of sequence tasks: each exports with each cell, axes open, and answers as its module does."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport import cells
from cellport.export import to_onnx
from examples.shapes.many_to_many_aligned import ManyToManyAligned
from examples.shapes.many_to_many_unaligned import ManyToManyUnaligned
from examples.shapes.many_to_one import ManyToOne
from examples.shapes.one_to_many import OneToMany
from examples.shapes.one_to_one import OneToOne

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, STEPS = {0: "batch"}, {0: "batch", 1: "time"}
CELLS = {
    "torch RNN": (nn.RNN, nn.RNNCell),
    "torch LSTM": (nn.LSTM, nn.LSTMCell),
    "torch GRU": (nn.GRU, nn.GRUCell),
    "RNN": (cells.RNN, cells.RNNCell),
    "LSTM": (cells.LSTM, cells.LSTMCell),
    "GRU": (cells.GRU, cells.GRUCell),
    "SRU": (cells.SRU, cells.SRUCell),
}
Kinds = tuple[Callable[..., nn.Module], Callable[..., nn.Module]]


def features(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


def text(batch: int, time: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(batch + time)
    lengths = torch.randint(1, time + 1, (batch,), generator=drawn)
    return torch.randint(9, (batch, time), generator=drawn), lengths


class Shape(NamedTuple):
    make: Callable[[Kinds], nn.Module]
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    axes: dict[str, dict[int, str]]
    outputs: list[str]


SHAPES = {
    "one to one": Shape(
        lambda kinds: OneToOne(4, 3, 8, kinds[0]), lambda batch, _: (features(batch, 4),), {"x": BATCH}, ["scores"]
    ),
    "one to many, as state": Shape(
        lambda kinds: OneToMany(4, 9, 8, kinds[1], "state"),
        lambda batch, _: (features(batch, 4),),
        {"x": BATCH},
        ["words", "count"],
    ),
    "one to many, as input": Shape(
        lambda kinds: OneToMany(4, 9, 8, kinds[1], "input"),
        lambda batch, _: (features(batch, 4),),
        {"x": BATCH},
        ["words", "count"],
    ),
    "many to one": Shape(
        lambda kinds: ManyToOne(9, 3, 8, kinds[0]), text, {"tokens": STEPS, "lengths": BATCH}, ["scores"]
    ),
    "many to one, forward only": Shape(
        lambda kinds: ManyToOne(9, 3, 8, kinds[0], bidirectional=False),
        text,
        {"tokens": STEPS, "lengths": BATCH},
        ["scores"],
    ),
    "many to many, unaligned": Shape(
        lambda kinds: ManyToManyUnaligned(9, 9, 8, *kinds, bridge="projection"),
        text,
        {"tokens": STEPS, "lengths": BATCH},
        ["words", "count"],
    ),
    "many to many, unaligned, summed": Shape(
        lambda kinds: ManyToManyUnaligned(9, 9, 8, *kinds, bridge="sum"),
        text,
        {"tokens": STEPS, "lengths": BATCH},
        ["words", "count"],
    ),
    "many to many, aligned": Shape(
        lambda kinds: ManyToManyAligned(4, 3, 8, kinds[0], layers=2),
        lambda batch, time: (features(batch, time, 4),),
        {"x": STEPS},
        ["scores"],
    ),
}
SAMPLE = {
    ("one to one", "torch RNN"),
    ("one to many, as state", "LSTM"),
    ("many to one", "torch GRU"),
    ("many to many, unaligned", "SRU"),
    ("many to many, aligned", "GRU"),
}
GRID = [
    pytest.param(shape, cell, marks=() if (shape, cell) in SAMPLE else pytest.mark.slow)
    for shape in SHAPES
    for cell in CELLS
]


def made(shape: Shape, cell: str) -> nn.Module:
    torch.manual_seed(1)
    return shape.make(CELLS[cell]).eval()


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """Run a module in the precision of its parameters."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        found = model(*(each.to(dtype) if each.is_floating_point() else each for each in inputs))
    return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]


def assert_close_to_truth(found: list[np.ndarray], single: list[np.ndarray], truth: list[np.ndarray]) -> None:
    """The rule of proofs: at most four times PyTorch's own error in float32, and a millionth of the largest value."""
    for each, own, true in zip(found, single, truth, strict=True):
        assert each.shape == true.shape
        if true.dtype == np.int64:
            np.testing.assert_array_equal(each, true)
            continue
        allowed = 4 * np.abs(own - true).max() + 1e-6 * max(1, np.abs(true).max())
        assert np.abs(each - true).max() <= allowed


@pytest.mark.parametrize(("name", "cell"), GRID)
def test_a_shape_exports_with_a_cell_and_answers_as_its_float64_module(name: str, cell: str, tmp_path: Path) -> None:
    shape, path = SHAPES[name], tmp_path / "shape.onnx"
    model = made(shape, cell)
    to_onnx(model, shape.inputs(2, 3), path, output_names=shape.outputs, dynamic_shapes=shape.axes)
    file, sizes = session(path), [(1, 1), (5, 7), (3, 12)]
    singles = [run(model, shape.inputs(*size)) for size in sizes]
    truths = [run(model.double(), shape.inputs(*size)) for size in sizes]
    for size, single, truth in zip(sizes, singles, truths, strict=True):
        given = dict(zip(shape.axes, (each.numpy() for each in shape.inputs(*size)), strict=True))
        assert_close_to_truth(file.run(shape.outputs, given), single, truth)


@pytest.mark.parametrize("cell", ["torch GRU", pytest.param("LSTM", marks=pytest.mark.slow)])
def test_labels_can_be_streamed_in_pieces(cell: str, tmp_path: Path) -> None:
    shape, path = SHAPES["many to many, aligned"], tmp_path / "labels.onnx"
    model, (x,) = made(shape, cell), shape.inputs(2, 9)
    report = to_onnx(model, (x[:, :2],), path, output_names=["scores"], dynamic_shapes=shape.axes)
    pairs = {state.input: state.output for state in report.manifest.states}
    assert report.manifest.causal
    file, states, pieces = session(path), {}, []
    for piece in x.split(4, 1):
        scores, *new = file.run(["scores", *pairs.values()], {"x": piece.numpy(), **states})
        states = dict(zip(pairs, new, strict=True))
        pieces.append(scores)
    assert_close_to_truth([np.concatenate(pieces, 1)], run(model, (x,)), run(model.double(), (x,)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", [name for name in SHAPES if "as " in name or "unaligned" in name])
def test_what_is_taught_is_what_is_written(name: str, cell: str) -> None:
    """Teacher forcing on a decoder's own words scores those words highest, so both run the same steps."""
    model, inputs = made(SHAPES[name], cell).double(), SHAPES[name].inputs(6, 5)
    inputs = tuple(each.double() if each.is_floating_point() else each for each in inputs)
    with torch.no_grad():
        words, count = model(*inputs)
        again = model.taught(*inputs, words).argmax(2)
    meant = torch.arange(words.shape[1]) <= count.unsqueeze(1)
    assert torch.equal(again[meant], words[meant])


@pytest.mark.parametrize("cell", ["torch RNN", "torch LSTM", "SRU"])
def test_padding_is_never_read(cell: str) -> None:
    """Both directions of an encoder start and end at a row's own steps, and the map of its end sees no others."""
    tokens, _ = text(2, 6)
    lengths = torch.tensor([6, 2])
    for name in ("many to one", "many to one, forward only"):
        model = made(SHAPES[name], cell).double()
        torch.testing.assert_close(model(tokens, lengths)[1:], model(tokens[1:, :2], lengths[1:]), rtol=0, atol=1e-14)
    for name in ("many to many, unaligned", "many to many, unaligned, summed"):
        model = made(SHAPES[name], cell).double()
        for padded, alone in zip(model.begin(tokens, lengths), model.begin(tokens[1:, :2], lengths[1:]), strict=True):
            torch.testing.assert_close(padded[1:], alone, rtol=0, atol=1e-14)


def test_an_encoder_decoder_learns_to_turn_words_around() -> None:
    torch.manual_seed(0)
    model = ManyToManyUnaligned(9, 9, 32, nn.GRU, nn.GRUCell, most=5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        tokens, lengths = torch.randint(2, 9, (64, 3)), torch.full((64,), 3)
        wanted = torch.cat([tokens.flip(1), torch.zeros(64, 1, dtype=torch.long)], 1)
        loss = nn.functional.cross_entropy(model.taught(tokens, lengths, wanted).flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tokens = torch.randint(2, 9, (100, 3))
    words, count = model.eval()(tokens, torch.full((100,), 3))
    right = (words[:, :3] == tokens.flip(1)).all(1) & (count == 3)
    assert right.double().mean() > 0.9
