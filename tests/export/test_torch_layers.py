"""torch.nn's recurrent layers, untouched in a user's module."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cellport.errors import ExportError
from cellport.export import to_onnx, verify
from cellport.export.flat import Flat, Lift, Slots

from .models import CLASSES, FEATURES, HIDDEN, VOCABULARY

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

SHAPES: dict[str, Any] = {"tokens": {0: "batch", 1: "time"}}
IDS = torch.arange(6).reshape(2, 3)

LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "rnn": (nn.RNN, {}),
    "rnn-relu-2-layers": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "rnn-both-directions": (nn.RNN, {"bidirectional": True}),
    "lstm": (nn.LSTM, {}),
    "lstm-2-layers-both-directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm-no-bias": (nn.LSTM, {"bias": False, "dropout": 0.2, "num_layers": 2}),
    "lstm-projected": (nn.LSTM, {"proj_size": 3}),
    "lstm-projected-2-layers-both-directions": (nn.LSTM, {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
    "gru": (nn.GRU, {}),
    "gru-3-layers": (nn.GRU, {"num_layers": 3}),
    "gru-both-directions-no-bias": (nn.GRU, {"bidirectional": True, "bias": False}),
}


class Tagger(nn.Module):
    """Scores of each token."""

    def __init__(self, kind: str, *, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        make, options = LAYERS[kind]
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.layer = make(FEATURES, HIDDEN, batch_first=batch_first, **options)
        width = options.get("proj_size", HIDDEN) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens))[0])


class Classifier(Tagger):
    """Packs its tokens, and answers from the final state."""

    def __init__(self, kind: str, *, sorts: bool) -> None:
        super().__init__(kind)
        self.sorts = sorts

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=self.sorts
        )
        output, final = self.layer(packed)
        padded, _ = pad_packed_sequence(output, batch_first=True)
        return self.head(padded), (final[0] if isinstance(final, tuple) else final)[-1]


def run(path: Path, **feeds: Tensor) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs() if not each.name.endswith("_out")]
    return list(session.run(names, {name: value.numpy() for name, value in feeds.items()}))


@pytest.mark.parametrize("kind", LAYERS)
def test_an_untouched_tagger_comes_out_with_states_and_lengths(kind: str, tmp_path: Path) -> None:
    model = Tagger(kind).eval()
    report = to_onnx(model, (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES)
    both = model.layer.bidirectional
    names = [] if both else ["layer.h", "layer.c"] if isinstance(model.layer, nn.LSTM) else ["layer.h"]
    assert [each.input for each in report.manifest.states] == names
    assert report.manifest.causal != both
    assert report.manifest.lengths is not None
    for batch, steps in ((1, 1), (3, 5), (2, 40)):
        tokens = torch.randint(VOCABULARY, (batch, steps))
        (found,) = run(tmp_path / "m.onnx", tokens=tokens)
        np.testing.assert_allclose(found, model(tokens).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("sorts", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "lstm-2-layers-both-directions", "lstm-projected", "gru-3-layers"])
def test_a_packed_sequence_becomes_lengths(kind: str, sorts: bool, tmp_path: Path) -> None:
    """The file does what torch does with any lengths, sorted or not, over the whole time axis."""
    model = Classifier(kind, sorts=sorts).eval()
    shapes = {**SHAPES, "lengths": {0: "batch"}}
    report = to_onnx(model, (IDS, torch.tensor([3, 2])), tmp_path / "m.onnx", dynamic_shapes=shapes)
    assert report.manifest.lengths is not None
    assert report.manifest.lengths.name == "lengths"
    tokens = torch.randint(VOCABULARY, (4, 7))
    lengths = torch.tensor([7, 5, 5, 1]) if sorts else torch.tensor([2, 7, 1, 5])
    scores, final = run(tmp_path / "m.onnx", tokens=tokens, lengths=lengths)
    expected = model(tokens, lengths)
    np.testing.assert_allclose(scores, expected[0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(final, expected[1].detach().numpy(), atol=1e-6)
    verify(model, tmp_path / "m.onnx")


class OneSequence(nn.Module):
    """A layer over a single sequence without a batch axis, from a given state or none."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make, options = LAYERS[kind]
        self.layer = make(FEATURES, HIDDEN, **options)

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = None if not state else state[0] if len(state) == 1 else state
        output, final = self.layer(features, given)
        return (output, *(final if isinstance(final, tuple) else (final,)))


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("kind", ["rnn-both-directions", "lstm", "lstm-projected", "gru-3-layers"])
def test_one_sequence_without_a_batch_axis(kind: str, states: bool, tmp_path: Path) -> None:
    model = OneSequence(kind).eval()
    shapes = [final.shape for final in model(torch.randn(3, FEATURES))[1:]] if states else []
    given = [torch.randn(shape) for shape in shapes]
    names = ["features", *(f"state_{index}" for index in range(len(given)))]
    axes = ({0: "time"}, *(None for _ in given))
    args = (torch.randn(3, FEATURES), *given)
    to_onnx(model, args, tmp_path / "m.onnx", input_names=names, dynamic_shapes=axes)
    for steps in (1, 9):
        args = (torch.randn(steps, FEATURES), *given)
        found = run(tmp_path / "m.onnx", **dict(zip(names, args, strict=True)))
        for value, truth in zip(found, model(*args), strict=True):
            np.testing.assert_allclose(value, truth.detach().numpy(), atol=1e-6)


class ZeroState(Tagger):
    """Makes its zeros itself, as tutorials do."""

    def forward(self, tokens: Tensor) -> Tensor:
        zeros = torch.zeros(1, tokens.size(0), HIDDEN)
        return self.head(self.layer(self.embedding(tokens), (zeros, zeros))[0])


def test_zeros_that_forward_makes_are_a_default_like_any_other(tmp_path: Path) -> None:
    report = to_onnx(ZeroState("lstm").eval(), (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES)
    assert [(each.input, each.initial) for each in report.manifest.states] == [("layer.h", None), ("layer.c", None)]


class OwnForward(nn.LSTM):
    """A user's subclass, called by a user's module, with a parametrised weight."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, final = super().forward(2 * input, hx)
        return output + 1, final


def test_a_subclass_keeps_its_own_forward(tmp_path: Path) -> None:
    model = Tagger("lstm").eval()
    model.layer = OwnForward(FEATURES, HIDDEN, batch_first=True).eval()
    to_onnx(model, (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES)
    (found,) = run(tmp_path / "m.onnx", tokens=IDS)
    np.testing.assert_allclose(found, model(IDS).detach().numpy(), atol=1e-6)


class Cells(nn.Module):
    """One step of torch's single-step cells, which a caller runs in its own loop."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.lstm, self.gru = nn.RNNCell(FEATURES, 4), nn.LSTMCell(4, HIDDEN), nn.GRUCell(HIDDEN, 3)

    def forward(self, x: Tensor, a: Tensor, state: tuple[Tensor, Tensor], b: Tensor) -> tuple[Any, ...]:
        a = self.rnn(x, a)
        h, c = self.lstm(a, state)
        b = self.gru(h, b)
        return b, a, (h, c), b


def test_single_steps_export_with_nested_states(tmp_path: Path) -> None:
    model = Cells().eval()
    args = (
        torch.randn(2, FEATURES),
        torch.zeros(2, 4),
        (torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)),
        torch.zeros(2, 3),
    )
    report = to_onnx(
        model,
        args,
        tmp_path / "m.onnx",
        input_names=["x", "a", "state", "b"],
        output_names=["y", "a_out", "state_out", "b_out"],
        dynamic_shapes=({0: "batch"},) * 4,
        state={"a_out": "a", "state_out": "state", "b_out": "b"},
    )
    pairs = [(each.input, each.output) for each in report.manifest.states]
    assert pairs == [("a", "a_out"), ("state.0", "state_out.0"), ("state.1", "state_out.1"), ("b", "b_out")]
    x = torch.randn(5, FEATURES)
    zeros = [torch.zeros(5, size) for size in (4, HIDDEN, HIDDEN, 3)]
    (found,) = run(tmp_path / "m.onnx", x=x)[:1]
    expected = model(x, zeros[0], (zeros[1], zeros[2]), zeros[3])[0]
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)


class Peeks(Classifier):
    """Applies a layer to the data of a packed sequence."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        packed = PackedSequence(torch.tanh(packed.data), packed.batch_sizes)
        return self.layer(packed)[1][0], lengths


def test_the_data_of_a_packed_sequence_is_refused_by_name(tmp_path: Path) -> None:
    shapes = {**SHAPES, "lengths": {0: "batch"}}
    with pytest.raises(ExportError, match=r"PackedSequence\.data.*before pack_padded_sequence or after"):
        to_onnx(
            Peeks("lstm", sorts=False).eval(), (IDS, torch.tensor([3, 2])), tmp_path / "m.onnx", dynamic_shapes=shapes
        )


def test_torch_is_itself_again_outside_and_in_other_threads() -> None:
    """While one thread looks into a module, others find torch as it is; afterwards all do."""
    lstm = nn.LSTM(FEATURES, HIDDEN)
    before = nn.LSTM.forward, pack_padded_sequence.__code__
    x, lengths = torch.randn(4, 2, FEATURES), torch.tensor([4, 2])
    expected = lstm(pack_padded_sequence(x, lengths))[0].data
    inside: list[Tensor] = []

    class Meets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = lstm

        def forward(self, values: Tensor) -> Tensor:
            other = threading.Thread(target=lambda: inside.append(lstm(pack_padded_sequence(x, lengths))[0].data))
            other.start()
            other.join()
            return self.lstm(values)[0]

    Flat(Meets(), torch.utils._pytree.tree_structure((x,)), Slots((0,)), [0], Lift())(x)
    torch.testing.assert_close(inside[0], expected)
    assert (nn.LSTM.forward, pack_padded_sequence.__code__) == before
