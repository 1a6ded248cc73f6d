"""Errors of int8 weights over 200 steps stay within what can be derived from the quantisation of single products."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GRU, LSTM, RNN, SRU, SequenceCell
from cellport.export import to_onnx
from cellport.export.passes import Int8Weights
from cellport.export.passes.int8_weights import quantised_range

from .balls import Array, Ball, sigmoid
from .graphs import run

STEPS, BATCH, SIZE = 200, 2, 16


class Layer(nn.Module):
    """One layer over features [time, batch, features], with small weights, so that it forgets its errors."""

    def __init__(self, cell: SequenceCell) -> None:
        super().__init__()
        self.cell = cell
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


def lstm(x: Array, w: dict[str, Array], x_error: float, h_error: float) -> list[Ball]:
    h = c = Ball.exact(np.zeros((BATCH, SIZE)))
    outputs = []
    for at in x:
        inputs = Ball.exact(at).product(w["weight_ih_l0"].T, x_error) + w["bias_ih_l0"] + w["bias_hh_l0"]
        i, f, g, o = parts(inputs + h.product(w["weight_hh_l0"].T, h_error), 4)
        c = f.through(sigmoid) * c + i.through(sigmoid) * g.through(np.tanh)
        h = o.through(sigmoid) * c.through(np.tanh)
        outputs.append(h)
    return outputs


def gru(x: Array, w: dict[str, Array], x_error: float, h_error: float) -> list[Ball]:
    h = Ball.exact(np.zeros((BATCH, SIZE)))
    outputs = []
    for at in x:
        inputs = parts(Ball.exact(at).product(w["weight_ih_l0"].T, x_error) + w["bias_ih_l0"], 3)
        hiddens = parts(h.product(w["weight_hh_l0"].T, h_error) + w["bias_hh_l0"], 3)
        r, z = ((a + b).through(sigmoid) for a, b in zip(inputs[:2], hiddens[:2], strict=True))
        n = (inputs[2] + r * hiddens[2]).through(np.tanh)
        h = (Ball.exact(np.ones_like(n.value)) - z) * n + z * h
        outputs.append(h)
    return outputs


def rnn(x: Array, w: dict[str, Array], x_error: float, h_error: float) -> list[Ball]:
    h = Ball.exact(np.zeros((BATCH, SIZE)))
    outputs = []
    for at in x:
        inputs = Ball.exact(at).product(w["weight_ih_l0"].T, x_error) + w["bias_ih_l0"] + w["bias_hh_l0"]
        h = (inputs + h.product(w["weight_hh_l0"].T, h_error)).through(np.tanh)
        outputs.append(h)
    return outputs


def sru(x: Array, w: dict[str, Array], x_error: float, h_error: float) -> list[Ball]:
    c = Ball.exact(np.zeros((BATCH, SIZE)))
    (v_f, v_r), (b_f, b_r) = w["rnn_lst.0.weight_c"].reshape(2, -1), w["rnn_lst.0.bias"].reshape(2, -1)
    scale = w["rnn_lst.0.scale_x"]
    # Columns are feature by feature: candidate, forget gate, reset gate.
    weight = w["rnn_lst.0.weight"].reshape(SIZE, SIZE, -1)
    outputs = []
    for at in x:
        candidate, f, r = (Ball.exact(at).product(weight[..., part], x_error) for part in range(3))
        f = (f + c * v_f + b_f).through(sigmoid)
        r = (r + c * v_r + b_r).through(sigmoid)
        c = f * c + (Ball.exact(np.ones_like(f.value)) - f) * candidate
        outputs.append(r * c + (Ball.exact(np.ones_like(r.value)) - r) * (at * scale))
    return outputs


def parts(value: Ball, count: int) -> list[Ball]:
    pieces = zip(np.split(value.value, count, -1), np.split(value.radius, count, -1), strict=True)
    return [Ball(*piece) for piece in pieces]


CELLS: dict[str, tuple[Callable[[], SequenceCell], Callable[..., list[Ball]], str]] = {
    "lstm": (lambda: LSTM(SIZE, SIZE), lstm, "scan"),
    "lstm-native": (lambda: LSTM(SIZE, SIZE), lstm, "native"),
    "gru": (lambda: GRU(SIZE, SIZE), gru, "scan"),
    "rnn": (lambda: RNN(SIZE, SIZE), rnn, "scan"),
    "sru": (lambda: SRU(SIZE, SIZE), sru, "native"),
}


@pytest.mark.parametrize("kind", CELLS)
def test_the_error_after_200_steps_is_within_its_bound_and_the_bound_is_small(kind: str, tmp_path: Path) -> None:
    """The bound follows rounding errors of each product through every step of the true computation."""
    make, bound, lowering = CELLS[kind]
    torch.manual_seed(0)
    model = Layer(make()).eval()
    x = torch.randn(STEPS, BATCH, SIZE)
    truth = {name: value.detach().double().numpy() for name, value in model.cell.state_dict().items()}
    path = tmp_path / "model.onnx"
    shapes = {"x": {0: "time", 1: "batch"}}
    to_onnx(model, (x,), path, dynamic_shapes=shapes, state=None, lengths=None, lowering=lowering, verify=False)
    made = ir.load(path)
    feeds: dict[str, Any] = {"x": x.numpy()}
    passing = Int8Weights({"x": (float(x.min()), float(x.max()))}, 0, 0)
    passing(made)
    (output,) = run(made, **feeds)

    step, h_step = (float(quantised_range(*each)[0]) for each in ((x.min(), x.max()), (-1, 1)))
    # A range that is found in each call has a rounded zero point, which can add half a step.
    share = 1.0 if kind == "lstm-native" else 0.5
    assert bool(passing.dynamic) == (kind == "lstm-native")
    balls = bound(x.double().numpy(), truth, share * step, share * h_step)
    with torch.no_grad():
        np.testing.assert_allclose(model.double()(x.double()).numpy(), [b.value for b in balls], rtol=0, atol=1e-12)
    off, radius = np.abs(output - [ball.value for ball in balls]), np.array([ball.radius for ball in balls])
    assert (off <= radius).all()
    assert radius.max() <= 0.06
    assert radius[100:].max() <= 1.2 * radius[:100].max()
