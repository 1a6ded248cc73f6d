"""Sections 5 of the specification (shared with no code of the package) as float64 NumPy loops in raster order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# (the N predecessors' states, the input) -> (the position's state, the output), of one position of one image
Position = Callable[[list[Any], Any], tuple[Any, Array]]


def raster(
    position: Position,
    outside: Any,
    x: Array,
    size: Sequence[int],
    sides: Sequence[Any] | None = None,
    flip: Sequence[int] = (),
) -> tuple[dict[tuple[int, ...], Any], dict[tuple[int, ...], Array]]:
    """Visit the positions of one image in raster order, from the corner that `flip` makes the first.

    Args:
        position: computes one.
        outside: the state off the grid.
        x: [n_1, ..., n_N, ...]; beyond `size` it is not looked at.
        size: of the image.
        sides: for each dimension None, or an array of states [the other n..., ...] in memory order.
        flip: the dimensions to go backwards along.

    Returns:
        State and output by position in memory order.
    """
    states: dict[tuple[int, ...], Any] = {}
    outputs: dict[tuple[int, ...], Array] = {}
    for q in itertools.product(*(range(n) for n in size)):
        p = tuple(size[d] - 1 - c if d in flip else c for d, c in enumerate(q))
        before = []
        for d in range(len(size)):
            neighbour = tuple(c + (1 if d in flip else -1) * (axis == d) for axis, c in enumerate(p))
            if q[d]:
                before.append(states[neighbour])
            elif sides is None or sides[d] is None:
                before.append(outside)
            else:
                before.append(sides[d][tuple(c for axis, c in enumerate(p) if axis != d)])
        states[p], outputs[p] = position(before, x[p])
    return states, outputs


def s(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def shares(logits: list[Array]) -> list[Array]:
    """The shares of N predecessors: the softmax of N - 1 blocks and of 0."""
    weights = [np.exp(a) for a in logits] + [np.ones_like(logits[0]) if logits else np.ones(1)]
    return [w / sum(weights) for w in weights]


def md_rnn(w: dict[str, Array], nonlinearity: str = "tanh") -> Position:
    """Section 5, the MD-RNN; the state is h."""
    phi = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0)}[nonlinearity]

    def position(before: list[Any], x: Array) -> tuple[Any, Array]:
        h = phi(w["weight_ih"] @ x + w["bias"] + sum(R @ h for R, h in zip(w["weight_hh"], before, strict=True)))
        return h, h

    return position


def md_lstm(w: dict[str, Array], cell: str = "standard", output: str = "tanh") -> Position:
    """Section 5, the MD-LSTM and the table of stabilised cells; the state and the output are (h, s)."""

    def position(before: list[Any], x: Array) -> tuple[Any, Array]:
        N, H = len(before), before[0][0].size
        a = w["weight_ih"] @ x + w["bias"] + sum(R @ h for R, (h, _) in zip(w["weight_hh"], before, strict=True))
        m = [memory for _, memory in before]
        p = w.get("weight_peephole", np.zeros((2 * N + 1, H)))
        if cell in ("standard", "halved", "ratio_leaky"):
            i, *f, g, o = np.split(a, N + 3)
            i = s(i + sum(p[d] * m[d] for d in range(N)))
            f = [s(f[d] + p[N + d] * m[d]) for d in range(N)]
            kept = sum(f[d] * m[d] for d in range(N))
            if cell == "standard":
                new = i * np.tanh(g) + kept
            elif cell == "halved":
                new = i * np.tanh(g) + kept / N
            else:
                new = i * np.tanh(g) + (1 - i) * kept / sum(f)
            h = s(o + p[2 * N] * new) * np.tanh(new)
        elif cell == "stable":
            i, f, g, o, *logits = np.split(a, N + 3)
            mixed = sum(share * each for share, each in zip(shares(logits), m, strict=True))
            new = s(i) * np.tanh(g) + s(f) * mixed
            h = s(o) * np.tanh(new)
        elif cell == "leaky":
            f, g, o, *logits = np.split(a, N + 2)
            mixed = sum(share * each for share, each in zip(shares(logits), m, strict=True))
            new = (1 - s(f)) * np.tanh(g) + s(f) * mixed
            h = s(o) * (np.tanh(new) if output == "tanh" else new)
        else:
            f, *logits, g, o_1, o_0 = np.split(a, N + 3)
            mixed = sum(share * each for share, each in zip(shares(logits), m, strict=True))
            new = (1 - s(f)) * np.tanh(g) + s(f) * mixed
            h = np.tanh(s(o_1) * new + s(o_0) * mixed)
        return (h, new), np.concatenate([h, new])

    return position
