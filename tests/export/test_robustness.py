"""What a user's module may do that would make a wrong file, and what it may raise on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GRU, LSTM, recurrence
from cellport.errors import CellportError, EquivalenceError, ExportError
from cellport.export import to_onnx, verify
from cellport.export.drawing import draw
from cellport.export.verification import Grid

from .models import FEATURES, HIDDEN, VOCABULARY, Tokens, cell

SHAPES: dict[str, Any] = {"tokens": {0: "batch", 1: "time"}}
IDS = torch.arange(6).reshape(2, 3)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class TwiceWithItsOwnLengths(nn.Module):
    """One cell, called over two steps of each row, and then over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(VOCABULARY, FEATURES), GRU(FEATURES, FEATURES, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        two = torch.full((tokens.shape[0],), 1)
        first, _ = self.cell(x, lengths=two)
        return self.cell(x)[0] + first


def test_lengths_that_forward_gives_a_cell_are_never_replaced(tmp_path: Path) -> None:
    model = TwiceWithItsOwnLengths().eval()
    to_onnx(model, (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES, verify=False)
    (found,) = session(tmp_path / "m.onnx").run(["output"], {"tokens": IDS.numpy()})
    np.testing.assert_allclose(found, model(IDS).detach().numpy(), atol=1e-6)


class TeacherForced(nn.Module):
    """An encoder over one axis and a decoder over another, from the encoder's state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.encoder, self.decoder = (GRU(FEATURES, HIDDEN, batch_first=True) for _ in range(2))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        _, state = self.encoder(self.embedding(tokens))
        return self.decoder(self.embedding(targets), state)[0]


def test_added_lengths_reach_only_cells_over_the_time_axis(tmp_path: Path) -> None:
    """The decoder's steps are not those that the lengths count."""
    model = TeacherForced().eval()
    shapes = {**SHAPES, "targets": {0: "batch", 1: "target"}}
    report = to_onnx(model, (IDS, IDS), tmp_path / "m.onnx", dynamic_shapes=shapes)
    assert report.manifest.source is not None
    assert report.manifest.source.lifted_lengths == ("encoder",)
    tokens, targets = torch.randint(VOCABULARY, (1, 7)), torch.randint(VOCABULARY, (1, 9))
    feeds = {"tokens": torch.cat([tokens[:, :2], 0 * tokens[:, 2:]], 1).numpy(), "targets": targets.numpy()}
    (found,) = session(tmp_path / "m.onnx").run(["output"], {**feeds, "lengths": np.array([2])})
    np.testing.assert_allclose(found, model(tokens[:, :2], targets).detach().numpy(), atol=1e-6)


class Special(Tokens):
    """Looks whether token 7 is anywhere in the whole sequence."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + (tokens == 7).any(1).reshape(-1, 1, 1)


def test_a_token_that_only_an_example_names_is_tried_in_every_proof(tmp_path: Path) -> None:
    model = Special(cell("gru", batch_first=True)).eval()
    report = to_onnx(model, (torch.tensor([[7, 1, 2]]),), tmp_path / "m.onnx", dynamic_shapes=SHAPES)
    assert not report.manifest.causal
    assert (report.manifest.states, report.manifest.lengths) == ((), None)


def test_drawn_integers_hold_the_ends_of_their_range_and_the_examples() -> None:
    rng = np.random.default_rng(0)
    drawn = draw(rng, (64,), "int64", (0, 10**6), np.array([31, 415]))
    assert {0, 1, 2, 31, 415, 10**6} <= set(drawn.tolist())
    assert drawn.min() >= 0
    assert drawn.max() <= 10**6
    assert set(draw(rng, (64,), "int32", None, np.array([4, 9])).tolist()) == {4, 9}


def test_drawn_floats_stay_in_the_domain_of_the_example() -> None:
    rng = np.random.default_rng(0)
    assert (draw(rng, (200,), "float32", None, np.array([0.5, 1, 2, 4])) > 0).mean() > 0.99
    assert abs(draw(rng, (2000,), "float32", None, np.ones(4)).mean()) < 0.1


class OneSized(nn.Module):
    """Takes an axis of its own that it squeezes where it is 1."""

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        return features * (scale.sum(1, keepdim=True).unsqueeze(1) if scale.shape[1] > 1 else 2 * scale.unsqueeze(1))


def test_other_axes_are_tried_at_several_sizes(tmp_path: Path) -> None:
    """A graph that was traced for more than one element is found out at one."""
    shapes = {"features": {0: "batch", 1: "time"}, "scale": {0: "batch", 1: "extra"}}
    with pytest.raises((ExportError, EquivalenceError), match=r"extra|off by|branches"):
        to_onnx(
            OneSized().eval(), (torch.randn(2, 3, 1), torch.randn(2, 4)), tmp_path / "m.onnx", dynamic_shapes=shapes
        )


def test_an_export_with_a_fixed_axis_does_not_fix_the_next(tmp_path: Path) -> None:
    model = Tokens(cell("sru-v2", batch_first=True)).eval()
    to_onnx(model, (IDS,), tmp_path / "a.onnx", dynamic_shapes={"tokens": {1: "time"}}, verify=False)
    report = to_onnx(model, (IDS,), tmp_path / "b.onnx", dynamic_shapes=SHAPES)
    assert report.manifest.inputs[0].axes == ("batch", "time")


class Batched(Tokens):
    """Centres its scores over the batch."""

    def forward(self, tokens: Tensor) -> Tensor:
        scores = super().forward(tokens)
        return scores - scores.mean(0, keepdim=True)


def test_a_model_whose_rows_see_each_other_is_said_to(tmp_path: Path) -> None:
    model = Batched(cell("gru", batch_first=True)).eval()
    report = to_onnx(model, (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES, verify=False)
    assert any(note.startswith("rows of a batch are not independent") for note in report.notes)


def test_a_failed_export_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = Tokens(cell("gru", batch_first=True)).eval(), tmp_path / "m.onnx"
    to_onnx(model, (IDS,), path, dynamic_shapes=SHAPES)
    before = path.read_bytes()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cellport.export.exporter.compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        to_onnx(model, (IDS,), path, dynamic_shapes=SHAPES)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_large_tensors_go_beside_the_file_and_leave_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellport.export.graphing._EXTERNAL_DATA_FROM", 1)
    model, path = Tokens(cell("gru", batch_first=True)).eval(), tmp_path / "m.onnx"
    to_onnx(model, (IDS,), path, dynamic_shapes=SHAPES)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    verify(model, path, grid=Grid(batches=(2,), steps=(3,), chunks=(None,)))
    monkeypatch.undo()
    to_onnx(model, (IDS,), path, dynamic_shapes=SHAPES, verify=False)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


class Does(nn.Module):
    """A module that does one thing that cannot be exported."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.cell = LSTM(FEATURES, HIDDEN, batch_first=True)
        self.step = nn.LSTMCell(FEATURES, HIDDEN)
        self.what = what
        self.register_buffer("seen", torch.zeros(1))
        self.hidden: Any = None

    def forward(self, tokens: Tensor) -> Any:
        x = self.embedding(tokens)
        if self.what == "buffer":
            self.seen += 1
        if self.what == "attribute":
            x, self.hidden = self.cell(x, self.hidden)
        if self.what == "text":
            return x, "words"
        if self.what == "nothing":
            return None
        if self.what == "loop":
            h, c = x.new_zeros(2, tokens.shape[0], HIDDEN)
            for number, step in enumerate(x.unbind(1)):
                h, c = self.step(step * 0.5**number, (h, c))
            return h
        if self.what == "length":
            return x[:, : int(tokens[0, 0])]
        if self.what == "float":
            return self.cell(x.half())[0]
        return x


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("buffer", "forward changes 'seen', a tensor that the model keeps"),
        ("attribute", "forward changes 'hidden', a tensor that the model keeps"),
        ("text", "result 1 of the model is 'words'; accepted: a tensor"),
        ("nothing", "the model returns no tensor"),
        ("loop", "step.*LSTMCell.*called in a Python loop.*cellport.cells.recurrence.*not be made a recurrence: "),
        ("length", "values of its inputs"),
        ("float", "cell: .*float16"),
    ],
)
def test_what_a_forward_must_not_do_is_named(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CellportError, match=message) as raised:
        to_onnx(Does(what).eval(), (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES)
    assert "Traceback" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


class Float32State(nn.Module):
    """Starts its recurrence from zeros of the default precision."""

    def forward(self, features: Tensor) -> Tensor:
        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(h + x)
            return h, h

        return recurrence(step, torch.zeros(features.shape[1:]), features)[0]


def test_zeros_of_the_default_precision_follow_the_truth(tmp_path: Path) -> None:
    shapes = {"features": {0: "time", 1: "batch"}}
    to_onnx(Float32State().eval(), (torch.randn(3, 2, 4),), tmp_path / "m.onnx", dynamic_shapes=shapes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_shapes": "batch"}, "dynamic_shapes is 'batch'; accepted: a dict"),
        ({"dynamic_shapes": {"tokens": "batch"}}, "dynamic_shapes holds 'batch'; accepted: a dict from axis to name"),
        ({"dynamic_shapes": {"tokens": {0: "batch", 1: "batch"}}}, "calls two axes of 'tokens' 'batch'"),
        ({"dynamic_shapes": {"tokens": {"0": "batch"}}}, "names axis '0' of 'tokens'"),
        ({"output_names": "scores"}, "output_names is 'scores'; accepted: a list of names"),
        ({"input_names": [3]}, r"input_names is \[3\]; accepted: a list of names"),
    ],
)
def test_arguments_of_wrong_types_are_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = Tokens(cell("gru", batch_first=True)).eval()
    with pytest.raises(ExportError, match=message):
        to_onnx(model, (IDS,), tmp_path / "m.onnx", **{"dynamic_shapes": SHAPES, **options})


def test_a_place_that_cannot_be_written_is_refused_before_anything_else(tmp_path: Path) -> None:
    model = Tokens(cell("gru", batch_first=True)).eval()
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "m.onnx", "cannot write")):
        with pytest.raises(ExportError, match=message):
            to_onnx(model, (IDS,), path, dynamic_shapes=SHAPES)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
def test_a_model_of_half_precision_is_refused_by_name(convert: Any, tmp_path: Path) -> None:
    model = convert(Tokens(cell("gru", batch_first=True)).eval())
    with pytest.raises(ExportError, match=r"'embedding.weight' has dtype torch.*16; call model.float\(\)"):
        to_onnx(model, (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES)


def test_a_model_of_double_precision_stays_one(tmp_path: Path) -> None:
    model = Tokens(cell("lstm-projected", batch_first=True)).eval().double()
    report = to_onnx(model, (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES)
    assert {each.dtype for each in report.manifest.states} == {"float64"}
    (found,) = session(tmp_path / "m.onnx").run(["output"], {"tokens": IDS.numpy()})
    np.testing.assert_allclose(found, model(IDS).detach().numpy(), atol=1e-14)
