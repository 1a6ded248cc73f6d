"""Python loops over time, as people write them: one recurrence a loop, proved and exported."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.errors import ExportError
from cellport.export import to_onnx, verify
from cellport.export.reroll import Rerolled, reroll
from cellport.export.signature import argument_leaves

from .loops import WAYS, Looped, last, layer_by_steps, numbered, one_after_another, plain, unbound

AXES = {0: "batch", 1: "time"}
X = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
TWICE = ("one_after_another", "both_ways", "kept_from_the_start")


def rerolled(model: nn.Module) -> tuple[Rerolled | None, str]:
    return reroll(model, *argument_leaves(model, (X,), None, [AXES]))


@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.__name__)
def test_a_loop_becomes_a_recurrence_that_computes_the_same(how: Callable[..., Any]) -> None:
    """At lengths and batch sizes of which no run was recorded, in float64, with one loop for each of the user's."""
    torch.manual_seed(0)
    model = Looped(how).eval()
    made, said = rerolled(model)
    assert made is not None, said
    assert len(made.program.loops) == (2 if how.__name__ in TWICE else 1)
    model.double(), made.double()
    torch.set_default_dtype(torch.float64)
    try:
        for batch, steps in ((1, 1), (3, 1), (1, 5), (3, 40)):
            x = torch.randn(batch, steps, 4)
            truth, found = (torch.utils._pytree.tree_leaves(each(x)) for each in (model, made))
            for one, other in zip(found, truth, strict=True):
                assert one.shape == other.shape
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def exported_as_computed(how: Callable[..., Any], path: Path) -> None:
    torch.manual_seed(0)
    model = Looped(how).eval()
    report = to_onnx(model, (X,), path, dynamic_shapes=[AXES])
    assert any("became a recurrence" in note for note in report.notes)
    operators = [node.op_type for node in ir.load(path).graph]
    assert operators.count("Scan") == (2 if how.__name__ in TWICE else 1)
    assert "Loop" not in operators
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, steps in ((1, 1), (3, 1), (1, 5), (3, 5), (1, 40), (3, 40)):
        x = torch.randn(batch, steps, 4)
        with torch.no_grad():
            truth = torch.utils._pytree.tree_leaves(model(x))
        found = session.run([output.name for output in session.get_outputs()][: len(truth)], {"x": x.numpy()})
        for one, other in zip(found, truth, strict=True):
            assert one.shape == tuple(other.shape)
            np.testing.assert_allclose(one, other.numpy(), atol=2e-6)


@pytest.mark.parametrize("how", [plain, unbound, layer_by_steps, one_after_another], ids=lambda how: how.__name__)
def test_a_loop_comes_out_dynamic_and_right(how: Callable[..., Any], tmp_path: Path) -> None:
    """One Scan a loop, no unrolled step, and onnxruntime gives PyTorch's answers at any length."""
    exported_as_computed(how, tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.__name__)
def test_every_loop_comes_out_dynamic_and_right(how: Callable[..., Any], tmp_path: Path) -> None:
    """The same for every way of writing one."""
    exported_as_computed(how, tmp_path / "m.onnx")


def test_a_loop_whose_state_is_given_and_returned_is_causal(tmp_path: Path) -> None:
    """And then `verify` runs it in chunks, from the user's own module."""

    class Streaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.cell, self.head = nn.Embedding(20, 4), nn.LSTMCell(4, 5), nn.Linear(5, 3)

        def forward(self, ids: Tensor, h: Tensor, c: Tensor) -> Any:
            rows = []
            for t in range(ids.size(1)):
                h, c = self.cell(self.embedding(ids[:, t]), (h, c))
                rows.append(self.head(h))
            return torch.stack(rows, 1), h, c

    model, path = Streaming().eval(), tmp_path / "m.onnx"
    zeros = torch.zeros(3, 5)
    report = to_onnx(
        model,
        (torch.arange(18).reshape(3, 6), zeros, zeros),
        path,
        dynamic_shapes=[AXES, {0: "batch"}, {0: "batch"}],
        output_names=["y", "h_out", "c_out"],
        state={"h_out": "h", "c_out": "c"},
    )
    assert report.manifest.causal
    verify(model, path)


def test_weights_keep_their_names(tmp_path: Path) -> None:
    """The file names them as the module does."""
    to_onnx(Looped(last).eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=[AXES])
    names = set(ir.load(tmp_path / "m.onnx").graph.initializers)
    assert {"after.bias", "start"} <= names


def test_weights_are_shared() -> None:
    """What trains the module on trains the recurrence too, and a copy has weights of its own."""
    model = Looped(plain).eval()
    made, _ = rerolled(model)
    assert made is not None
    assert made.lstm.weight_ih is model.lstm.weight_ih
    assert dict(made.named_parameters()).keys() == dict(model.named_parameters()).keys()


def every_third(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    for t in range(x.size(1)):
        if t % 3 == 0:
            h = m.gru(x[:, t], h)
    return h


def nested(m: Looped, x: Tensor) -> Any:
    rows = []
    for t in range(x.size(1)):
        h = x.new_zeros(x.size(0), 5)
        for s in range(t + 1):
            h = m.gru(x[:, s], h)
        rows.append(h)
    return torch.stack(rows, 1)


def branching(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    for t in range(x.size(1)):
        if x[0, t, 0] > 0:
            h = m.gru(x[:, t], h)
    return h


def growing(m: Looped, x: Tensor) -> Any:
    h, rows = x.new_zeros(x.size(0), 5), []
    for t in range(x.size(1)):
        rows.append(h)
        h = m.gru(x[:, t], torch.stack(rows).mean(0))
    return h


def decaying(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h) * 0.9**t
    return h


REFUSED = {
    every_third: "not linear in that of steps: steps differ",
    nested: "or hold a loop over the steps",
    branching: "forward asks for the values of a tensor",
    growing: "stack takes what grows from step to step",
    decaying: "mul takes .*, and something else at another step or length",
}


@pytest.mark.parametrize("how", REFUSED, ids=lambda how: how.__name__)
def test_a_loop_that_follows_no_rule_is_refused_with_the_reason(how: Callable[..., Any]) -> None:
    """Nothing is guessed."""
    made, said = rerolled(Looped(how).eval())
    assert made is None
    assert re.search(REFUSED[how], said), said


def test_a_refusal_names_the_loop_the_way_out_and_the_reason(tmp_path: Path) -> None:
    """And leaves no file."""
    with pytest.raises(ExportError, match=r"in a Python loop of .* it could not be made a recurrence: ") as caught:
        to_onnx(Looped(every_third).eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=[AXES])
    assert "cellport.cells.recurrence" in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("how", [plain, numbered], ids=lambda how: how.__name__)
def test_a_loop_that_starts_at_zeros_is_run_in_chunks_where_that_proves_right(
    how: Callable[..., Any], tmp_path: Path
) -> None:
    """Its state becomes an input and an output; one that counts its steps keeps it inside, and the notes say why."""
    torch.manual_seed(0)
    model, path = Looped(how).eval(), tmp_path / "m.onnx"
    report = to_onnx(model, (X,), path, dynamic_shapes=[AXES])
    assert report.manifest.causal == (how is plain)
    if how is not plain:
        assert any(note.startswith("states left inside") for note in report.notes)
        return
    assert {each.input: each.output for each in report.manifest.states} == {
        "lstm.h": "lstm.h_out",
        "lstm.c": "lstm.c_out",
    }
    verify(model, path)
