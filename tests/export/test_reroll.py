"""Python loops over time, as people write them around single-step cells: one recurrence, proved and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GRUCell
from cellport.errors import ExportError
from cellport.export import to_onnx, verify

AXES = {0: "batch", 1: "time"}
X = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))


class Looped(nn.Module):
    """One way of writing the loop."""

    def __init__(self, how: Callable[["Looped", Tensor], Any]) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5)
        self.upper, self.back, self.own = nn.GRUCell(5, 5), nn.GRUCell(4, 5), GRUCell(4, 5)
        self.before, self.after, self.drop = nn.Linear(4, 4), nn.Linear(5, 3), nn.Dropout(0.1)
        self.layer = nn.LSTM(4, 5, 2, batch_first=True)
        self.z, self.n = nn.Linear(4, 5), nn.Linear(4, 5)
        self.start = nn.Parameter(torch.randn(1, 5))
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


def plain(m: Looped, x: Tensor) -> Any:
    h, c = x.new_zeros(x.size(0), 5), x.new_zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        h, c = m.lstm(m.before(x[:, t]), (h, c))
        h = m.drop(h)
        rows.append(m.after(h))
    return torch.stack(rows, 1), h, c


def slices(m: Looped, x: Tensor) -> Any:
    h = torch.zeros(x.shape[0], 5)
    rows = []
    for t in range(x.shape[1]):
        h = m.gru(x[:, t, :], h)
        rows.append(h.unsqueeze(1))
    return torch.cat(rows, dim=1)


def unbound(m: Looped, x: Tensor) -> Any:
    h = None
    rows = torch.empty(x.size(0), x.size(1), 5)
    for t, row in enumerate(x.unbind(1)):
        h = m.rnn(row, h)
        rows[:, t] = h
    return rows


def last(m: Looped, x: Tensor) -> Any:
    h = m.start.expand(x.size(0), -1)
    for row in x.transpose(0, 1):
        h = m.gru(row, h)
    return m.after(h)


def mean(m: Looped, x: Tensor) -> Any:
    h = m.start.repeat(x.size(0), 1)
    total = torch.zeros_like(h)
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        total = total + h
    return total / x.size(1)


def stacked(m: Looped, x: Tensor) -> Any:
    h = g = x.new_zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        g = m.upper(h, g)
        rows.append(g)
    return torch.stack(rows).transpose(0, 1)


def one_after_another(m: Looped, x: Tensor) -> Any:
    h = g = x.new_zeros(x.size(0), 5)
    lower, upper = [], []
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        lower.append(h)
    for row in lower:
        g = m.upper(row, g)
        upper.append(g)
    return torch.stack(upper, 1)


def both_ways(m: Looped, x: Tensor) -> Any:
    h = g = x.new_zeros(x.size(0), 5)
    forward, backward = [], []
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h)
        forward.append(h)
    for t in reversed(range(x.size(1))):
        g = m.back(x[:, t], g)
        backward.append(g)
    return torch.cat([torch.stack(forward, 1), torch.stack(backward[::-1], 1)], 2)


def of_ones_own(m: Looped, x: Tensor) -> Any:
    h = torch.zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        z = torch.sigmoid(m.z(x[:, t]))
        h = (1 - z) * h + z * torch.tanh(m.n(x[:, t]))
        rows.append(h)
    return torch.stack(rows, dim=-2)


def library(m: Looped, x: Tensor) -> Any:
    h = torch.zeros(x.size(0), 5)
    rows = []
    for t in range(x.size(1)):
        _, h = m.own(x[:, t], h)
        rows.append(h)
    return {"all": torch.stack(rows, 1), "last": rows[-1]}


def reshaped(m: Looped, x: Tensor) -> Any:
    batch, steps, _ = x.shape
    flat = m.before(x.reshape(batch * steps, 4)).view(batch, steps, 4)
    h = x.new_zeros(batch, 5)
    rows = []
    for t in range(steps):
        h = m.gru(flat[:, t], h)
        rows.append(h)
    return m.after(torch.stack(rows, 1).view(batch * steps, 5)).view(batch, steps, 3)


def layer_by_steps(m: Looped, x: Tensor) -> Any:
    state, rows = None, []
    for t in range(x.size(1)):
        y, state = m.layer(x[:, t : t + 1], state)
        rows.append(y)
    return torch.cat(rows, 1)


WAYS = [
    layer_by_steps,
    plain,
    slices,
    unbound,
    last,
    mean,
    stacked,
    one_after_another,
    both_ways,
    of_ones_own,
    library,
    reshaped,
]


def scans(path: Path) -> int:
    return sum(node.op_type in ("Scan", "Loop") for node in ir.load(path).graph)


@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.__name__)
def test_a_loop_comes_out_dynamic_and_right(how: Callable[..., Any], tmp_path: Path) -> None:
    """At lengths and batch sizes of which the tracer saw none."""
    torch.manual_seed(0)
    model, path = Looped(how).eval(), tmp_path / "m.onnx"
    report = to_onnx(model, (X,), path, dynamic_shapes=[AXES])
    assert any("became a recurrence" in note for note in report.notes)
    assert scans(path) == (2 if how in (one_after_another, both_ways) else 1)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, steps in ((1, 1), (3, 5), (1, 40), (3, 2)):
        x = torch.randn(batch, steps, 4)
        with torch.no_grad():
            truth = torch.utils._pytree.tree_leaves(model(x))
        found = session.run(None, {"x": x.numpy()})
        for one, other in zip(found, truth, strict=True):
            assert one.shape == tuple(other.shape)
            np.testing.assert_allclose(one, other.numpy(), atol=2e-6)


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


def every_third(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    for t in range(x.size(1)):
        if t % 3 == 0:
            h = m.gru(x[:, t], h)
    return h


def two_back(m: Looped, x: Tensor) -> Any:
    rows = [x.new_zeros(x.size(0), 5), x.new_zeros(x.size(0), 5)]
    for t in range(x.size(1)):
        rows.append(m.gru(x[:, t], rows[t]))
    return torch.stack(rows[2:], 1)


def numbered(m: Looped, x: Tensor) -> Any:
    h = x.new_zeros(x.size(0), 5)
    for t in range(x.size(1)):
        h = m.gru(x[:, t], h) * (t + 1)
    return h


@pytest.mark.parametrize("how", [every_third, two_back, numbered], ids=lambda how: how.__name__)
def test_a_loop_that_follows_no_rule_is_refused_with_the_reason(how: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing is guessed: what does not repeat once a step stays refused, with the way out."""
    with pytest.raises(ExportError, match=r"in a Python loop of .* it could not be made a recurrence: ") as caught:
        to_onnx(Looped(how).eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=[AXES])
    assert "cellport.cells.recurrence" in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()
