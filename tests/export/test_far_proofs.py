"""What a proof over a few steps and two examples does not see: other tokens, far steps, shorter batches."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cellport.cells import GRU, LSTM
from cellport.errors import ExportError
from cellport.export import Report, to_onnx
from cellport.export.influence import Influence

AXES = {0: "batch", 1: "time"}
X = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))


def export(
    model: nn.Module, args: tuple[Tensor, ...], folder: Path, **options: Any
) -> tuple[Report, onnxruntime.InferenceSession]:
    """Export, prove and load a model."""
    report = to_onnx(model, args, folder / "model.onnx", **{"lowering": "native", **options})
    return report, onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


class OfTask(nn.Module):
    """Starts in a state that one task in a hundred changes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.start = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        start = torch.where(task[None, :, None] == 77, self.start[0], self.start[1])
        return self.gru(x, start)[0]


def test_a_state_that_an_input_decides_is_not_lifted(tmp_path: Path) -> None:
    """Every example gives the same state, and yet no constant may take its place."""
    model = OfTask().eval()
    task = torch.tensor([0, 1, 2])
    report, session = export(model, (X, task), tmp_path, dynamic_shapes=[AXES, {0: "batch"}])
    assert report.manifest.states == ()
    assert "states left inside: the initial state of gru depends on the inputs" in report.notes
    rare = torch.tensor([77, 0, 77])
    with torch.no_grad():
        truth = model(X, rare).numpy()
    np.testing.assert_allclose(session.run(None, {"x": X.numpy(), "task": rare.numpy()})[0], truth, atol=1e-6)


class Counted(nn.Module):
    """Starts in a state made of an input's size alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "zeros":
                start = torch.zeros(1, x.shape[0], 4)
            case "like":
                start = torch.zeros_like(x[:, 0, :1]).expand(-1, 4).unsqueeze(0).contiguous()
            case _:
                start = x.new_full((1, x.shape[0], 4), 0.25)
        return self.gru(x, start)[0]


@pytest.mark.parametrize("how", ["zeros", "like", "full"])
def test_a_state_made_of_a_size_is_lifted(how: str, tmp_path: Path) -> None:
    """The size of a batch is no value of an input."""
    report, _ = export(Counted(how).eval(), (X,), tmp_path, dynamic_shapes=[AXES])
    assert [state.input for state in report.manifest.states] == ["gru.h"]


@pytest.mark.parametrize(
    ("make", "reached"),
    [
        (lambda a, b: a + 1, True),
        (lambda a, b: b + 1, False),
        (lambda a, b: torch.zeros_like(a), False),
        (lambda a, b: b.clone().copy_(a), True),
        (lambda a, b: torch.where(a > 100, b, b), True),
        (lambda a, b: torch.stack([b, a])[0], True),
        (lambda a, b: b.new_ones(3) if a.sum() > 100 else b.new_zeros(3), True),
        (lambda a, b: b.expand(a.shape[0], 3), False),
        (lambda a, b: torch.add(b, 1, out=b.clone()), False),
    ],
)
def test_influence_follows_values_and_not_shapes(make: Any, reached: bool) -> None:
    """Copies, writes, selections and branches carry a value; sizes do not."""
    source, other = torch.arange(3.0), torch.ones(3)
    with Influence([source]) as influence:
        assert influence.reaches(make(source, other)) is reached


class Far(nn.Module):
    """Behind a recurrent layer, something that reaches sixteen steps back or ahead, or begins at the tenth."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.conv = nn.Conv1d(4, 4, 2, dilation=16)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(x)[0]
        if self.how == "late":
            return y * (torch.arange(y.shape[1]) >= 10).to(y.dtype).unsqueeze(1)
        pad = (16, 0) if self.how == "back" else (0, 16)
        return self.conv(functional.pad(y.transpose(1, 2), pad)).transpose(1, 2)


@pytest.mark.parametrize("how", ["back", "ahead", "late"])
def test_what_reaches_far_is_not_called_causal(how: str, tmp_path: Path) -> None:
    """A proof over seven steps would let it pass."""
    report, _ = export(Far(how).eval(), (X,), tmp_path, dynamic_shapes=[AXES])
    assert not report.manifest.causal
    assert report.manifest.states == ()


def test_what_looks_far_ahead_gets_no_lengths(tmp_path: Path) -> None:
    """Sixteen steps ahead of a valid one there may be padding."""

    class Ahead(Far):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            ahead = functional.pad(functional.pad(x, (0, 1)).transpose(1, 2), (0, 16))
            return self.gru(x)[0], self.conv(ahead).transpose(1, 2)

    report, _ = export(Ahead("ahead").eval(), (X,), tmp_path, dynamic_shapes=[AXES])
    assert report.manifest.lengths is None
    assert any("of a row of 75 steps differs when it is padded to 150" in note for note in report.notes)


def test_a_proof_looks_as_far_as_the_model_runs_and_says_so(tmp_path: Path) -> None:
    """A table of 40 positions ends the run at 40 steps; the proof is of 33 then."""

    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Embedding(40, 4)
            self.gru = nn.GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(x)[0] + self.positions(torch.arange(x.shape[1]))

    model = Limited().eval()
    report = to_onnx(model, (X,), tmp_path / "m.onnx", dynamic_shapes=[AXES], verify=False)
    assert "lengths added: padded rows proved equal to unpadded ones, up to 33 steps" in report.notes


class OneHot(nn.Module):
    """Integers that select nothing: nothing tells which are valid."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 4, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = functional.one_hot(ids, 5).to(self.gru.weight_ih_l0.dtype)
        return self.gru(x)[0] + x.mean(1, keepdim=True)[..., :4]


def test_an_example_of_one_integer_proves_nothing(tmp_path: Path) -> None:
    """Where only zeros can be drawn, whatever mixes steps goes unseen: nothing is lifted, and the report says why."""
    report, _ = export(OneHot().eval(), (torch.zeros(3, 6, dtype=torch.long),), tmp_path, dynamic_shapes=[AXES])
    assert report.manifest.lengths is None
    assert report.manifest.states == ()
    assert not report.manifest.causal
    assert any("the example of 'ids' holds the one integer 0" in note for note in report.notes)
    several = torch.arange(18).reshape(3, 6) % 5
    report, _ = export(OneHot().eval(), (several,), tmp_path, dynamic_shapes=[AXES])
    assert any("states left inside: output 'output'" in note for note in report.notes)


class Packed(nn.Module):
    """A bidirectional LSTM over packed rows, and what is made of its padded output."""

    def __init__(self, how: str, total: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
        self.how, self.total = how, total

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        counts = lengths.sum(1) if lengths.dim() == 2 else lengths
        packed = pack_padded_sequence(x, counts, batch_first=True, enforce_sorted=False)
        total = x.size(1) if self.total else None
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=total)
        match self.how:
            case "last":
                return y[:, -1]
            case "max":
                return y.amax(1)
            case "mean":
                return y.mean(1)
        return y


LENGTHS = torch.tensor([6, 4, 2])


@pytest.mark.parametrize("how", ["last", "max", "mean"])
def test_what_depends_on_the_longest_row_is_refused_with_the_way_out(how: str, tmp_path: Path) -> None:
    """torch ends a padded result at the longest row; a graph cannot, and must not answer otherwise in silence."""
    model = Packed(how, total=False).eval()
    with pytest.raises(ExportError, match=r"pad_packed_sequence pads.*total_length=x.size\(1\)"):
        to_onnx(model, (X, LENGTHS), tmp_path / "m.onnx", dynamic_shapes=[AXES, {0: "batch"}])
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("how", ["all", "last", "max", "mean"])
def test_with_a_total_length_it_is_exported_as_it_is(how: str, tmp_path: Path) -> None:
    """torch pads to the whole axis then, as the graph does, also where every row is shorter."""
    model = Packed(how, total=True).eval()
    _, session = export(model, (X, LENGTHS), tmp_path, dynamic_shapes=[AXES, {0: "batch"}])
    shorter = torch.tensor([3, 1, 4])
    with torch.no_grad():
        truth = model(X, shorter).numpy()
    found = session.run(None, {"x": X.numpy(), "lengths": shorter.numpy()})[0]
    np.testing.assert_allclose(found, truth, atol=1e-6)


@pytest.mark.parametrize("kind", ["int32", "mask"])
def test_lengths_that_are_no_argument_need_a_total_length(kind: str, tmp_path: Path) -> None:
    """Nothing can be said of the longest row then, so the reason is named and not a recurrent layer."""
    given = LENGTHS.int() if kind == "int32" else torch.arange(6) < LENGTHS.unsqueeze(1)
    axes = [AXES, {0: "batch"} if kind == "int32" else AXES]
    with pytest.raises(ExportError, match="how far pad_packed_sequence pads"):
        to_onnx(Packed("all", total=False).eval(), (X, given), tmp_path / "m.onnx", dynamic_shapes=axes)
    to_onnx(Packed("all", total=True).eval(), (X, given), tmp_path / "m.onnx", dynamic_shapes=axes)


class Plain(nn.Module):
    """An LSTM and a function of its output or input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.lstm = LSTM(3, 4, batch_first=True)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "squeeze":
                return self.lstm(x)[0].mean(2).squeeze()
            case "in place":
                return self.lstm(x.mul_(2))[0]
            case "float32":
                zeros = torch.zeros(1, x.shape[0], 4, dtype=torch.float32)
                return self.lstm(x, (zeros, zeros))[0]
            case "three rows":
                return torch.stack([self.lstm(x[row : row + 1])[0][0] for row in range(3)])
        return self.lstm(x)[0]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("squeeze", "has 2 axes, but fewer where 'batch' is 1; name the axis"),
        ("float32", r"take the dtype of an input, as in zeros\(..., dtype=x.dtype\)"),
    ],
)
def test_what_cannot_be_proved_is_refused_for_its_own_reason(how: str, said: str, tmp_path: Path) -> None:
    """The message names what to change."""
    with pytest.raises(ExportError, match=said):
        to_onnx(Plain(how).eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=[AXES])


def test_a_loop_over_three_rows_is_no_matter_of_float64(tmp_path: Path) -> None:
    """The proof runs other batch sizes, with which the model does not run in any precision."""
    with pytest.raises(ExportError, match="does not run on inputs like the examples with batch 2 and 7 steps"):
        to_onnx(Plain("three rows").eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=[AXES])


def test_a_forward_that_changes_its_input_leaves_the_example_alone(tmp_path: Path) -> None:
    """The change is part of what is computed, and the caller's tensors stay as they are."""
    model, x = Plain("in place").eval(), X.clone()
    _, session = export(model, (x,), tmp_path, dynamic_shapes=[AXES])
    assert torch.equal(x, X)
    with torch.no_grad():
        truth = model(X.clone()).numpy()
    name = session.get_inputs()[0].name
    np.testing.assert_allclose(session.run(None, {name: X.numpy()})[0], truth, atol=1e-6)


def test_a_count_of_steps_can_be_a_state(tmp_path: Path) -> None:
    """Integer states are drawn as integers."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = GRU(3, 4, batch_first=True)

        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
            y = self.gru(x)[0]
            positions = n.unsqueeze(1) + torch.arange(x.shape[1])
            return y + (positions % 3).to(y.dtype).unsqueeze(2), n + x.shape[1]

    report, _ = export(
        Counting().eval(),
        (X, torch.zeros(3, dtype=torch.long)),
        tmp_path,
        dynamic_shapes=[AXES, {0: "batch"}],
        output_names=["y", "n_out"],
        state={"n_out": "n"},
        lengths=None,
    )
    assert [state.dtype for state in report.manifest.states] == ["int64"]


def test_two_threads_export_one_after_another(tmp_path: Path) -> None:
    """Both come out right, and torch's default dtype is what it was."""
    failures: list[BaseException] = []

    def job(number: int) -> None:
        try:
            to_onnx(Plain("").eval(), (X,), tmp_path / f"{number}.onnx", dynamic_shapes=[AXES], lowering="native")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=job, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert torch.get_default_dtype() == torch.float32
    assert all((tmp_path / f"{number}.onnx").exists() for number in range(2))


def test_a_layer_called_step_by_step_is_named(tmp_path: Path) -> None:
    """The tracer only says that an axis is fixed; the loop around the layer is why."""

    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            state, rows = None, []
            for step in range(x.shape[1]):
                y, state = self.lstm(x[:, step : step + 1] * 0.5**step, state)
                rows.append(y)
            return torch.cat(rows, 1)

    with pytest.raises(ExportError, match="lstm is called 6 times, as in a Python loop"):
        to_onnx(Stepped().eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=[AXES])
