"""The specification's equations (shared with no code of the package) as float64 NumPy loops over steps and sequences.

A network is `run(x, states, layers, lengths)`; `layers` is a list over layers of a list over directions of cells; a
cell is `(input, state) -> (output, state)` for one step of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cell = Callable[[Array, tuple[Array, ...]], tuple[Array, tuple[Array, ...]]]


def s(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


PHI: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "identity": lambda a: a,
}


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Ba, Kiros, Hinton 2016, arXiv 1607.06450, over all features of one vector."""
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + eps) * weight + bias


def rnn(weights: dict[str, Array], nonlinearity: str) -> Cell:
    """Section 1."""
    w = weights

    def cell(x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        (h,) = state
        h = PHI[nonlinearity](w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"])
        return h, (h,)

    return cell


def lstm(weights: dict[str, Array], coupled: bool = False) -> Cell:
    """Section 2, with the projection and the peepholes where there are any."""
    w = weights

    def cell(x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        h, c = state
        a = w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]
        if coupled:
            i, g, o = np.split(a, 3)
            p_i, p_o = np.split(w.get("weight_peephole", np.zeros(2 * c.size)), 2)
            i = s(i + p_i * c)
            f = 1 - i
        else:
            i, f, g, o = np.split(a, 4)
            p_i, p_f, p_o = np.split(w.get("weight_peephole", np.zeros(3 * c.size)), 3)
            i, f = s(i + p_i * c), s(f + p_f * c)
        c = f * c + i * np.tanh(g)
        h = s(o + p_o * c) * np.tanh(c)
        if "weight_hr" in w:
            h = w["weight_hr"] @ h
        return h, (h, c)

    return cell


def layer_norm_lstm(weights: dict[str, Array]) -> Cell:
    """Ba, Kiros, Hinton 2016, arXiv 1607.06450, equations 20 to 22 (gate order i, f, g, o)."""
    w = weights

    def cell(x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        h, c = state
        a = layer_norm(w["weight_ih"] @ x, w["gain_ih"], w["bias_ih"])
        a = a + layer_norm(w["weight_hh"] @ h, w["gain_hh"], w["bias_hh"])
        i, f, g, o = np.split(a, 4)
        c = s(f) * c + s(i) * np.tanh(g)
        h = s(o) * np.tanh(layer_norm(c, w["gain_c"], w.get("bias_c", np.zeros_like(c))))
        return h, (h, c)

    return cell


def gru(weights: dict[str, Array], reset_after: bool) -> Cell:
    """Section 3."""
    w = weights
    w_ir, w_iz, w_in = np.split(w["weight_ih"], 3)
    w_hr, w_hz, w_hn = np.split(w["weight_hh"], 3)
    b_ir, b_iz, b_in = np.split(w["bias_ih"], 3)
    b_hr, b_hz, b_hn = np.split(w["bias_hh"], 3)

    def cell(x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        (h,) = state
        r = s(w_ir @ x + b_ir + w_hr @ h + b_hr)
        z = s(w_iz @ x + b_iz + w_hz @ h + b_hz)
        n = np.tanh(w_in @ x + b_in + (r * (w_hn @ h + b_hn) if reset_after else w_hn @ (r * h) + b_hn))
        h = (1 - z) * n + z * h
        return h, (h,)

    return cell


def sru(
    weights: dict[str, Array], d: int, directions: int, *, version: int, activation: str, skip: bool, alpha: float
) -> Cell:
    """Sections 4.1 and 4.2; the direction's own columns of the package's layout.

    A layer norm in the weights is the one before the projections; the one after needs both directions: see `run`.
    """
    rows, columns = weights["weight"].shape
    outputs = weights["weight_c"].size // 2
    hidden = outputs // directions
    k = columns // outputs
    u_weight = [
        np.array([[weights["weight"][i, (d * hidden + j) * k + m] for i in range(rows)] for j in range(hidden)])
        for m in range(k)
    ]
    v_f, v_r = (weights["weight_c"].reshape(2, directions, hidden)[gate, d] for gate in (0, 1))
    b_f, b_r = (weights["bias"].reshape(2, directions, hidden)[gate, d] for gate in (0, 1))
    if version == 1:
        v_f = v_r = np.zeros(hidden)

    def cell(x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        (c,) = state
        projected = x
        if "layer_norm.weight" in weights:
            projected = layer_norm(x, weights["layer_norm.weight"], weights["layer_norm.bias"])
        if "weight_proj" in weights:
            projected = weights["weight_proj"].T @ projected
        u = [matrix @ projected for matrix in u_weight]
        f = s(u[1] + v_f * c + b_f)
        r = s(u[2] + v_r * c + b_r)
        c = f * c + (1 - f) * u[0]
        h = r * PHI[activation](c)
        if skip:
            h = h + (1 - r) * (u[3] if k == 4 else alpha * x[d * hidden : (d + 1) * hidden])
        return h, (c,)

    return cell


def run(
    x: Array,
    states: list[list[tuple[Array, ...]]],
    layers: list[list[Cell]],
    lengths: list[int],
    after: list[Callable[[Array], Array]] | None = None,
) -> tuple[Array, list[list[tuple[Array, ...]]]]:
    """Run stacked layers in one or two directions.

    Args:
        x: [T, B, I].
        states: for each layer and direction the state's tensors, [B, features] each.
        layers: for each layer and direction its cell.
        lengths: the valid steps of each sequence.
        after: for each layer what is done to its output at every valid step, both directions together.

    Returns:
        The output [T, B, features], 0 in the padding, and the final states in the form of `states`.
    """
    steps, batch, _ = x.shape
    finals = []
    for index, (cells, initials) in enumerate(zip(layers, states, strict=True)):
        sides, side_finals = [], []
        for d, (cell, initial) in enumerate(zip(cells, initials, strict=True)):
            output: list[list[Array | None]] = [[None] * batch for _ in range(steps)]
            ended = []
            for b in range(batch):
                state = tuple(tensor[b] for tensor in initial)
                for t in range(lengths[b]) if d == 0 else reversed(range(lengths[b])):
                    output[t][b], state = cell(x[t, b], state)
                ended.append(state)
            size = next((h.size for row in output for h in row if h is not None), initial[0].shape[-1])
            blank = np.zeros(size)
            sides.append(np.array([[blank if h is None else h for h in row] for row in output]))
            side_finals.append(tuple(np.array(column) for column in zip(*ended, strict=True)))
        x = np.concatenate(sides, -1)
        if after is not None:
            for b, length in enumerate(lengths):
                for t in range(length):
                    x[t, b] = after[index](x[t, b])
        finals.append(side_finals)
    return x, finals
