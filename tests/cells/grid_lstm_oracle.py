"""Section 6 of the specification (shared with no code of the package) as float64 NumPy loops over positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grid_oracle import raster
from .oracle import PHI, s

Array = NDArray[np.float64]
ACT = {**PHI, "sigmoid": s}


def transform(context: Array, m: Array, weight: Array, bias: Array, form: str) -> tuple[Array, Array]:
    """(h', m') = LSTM(H, m, W), rows u, f, o, c."""
    w_u, w_f, w_o, w_c = np.split(weight, 4)
    b_u, b_f, b_o, b_c = np.split(bias, 4)
    u = s(w_u @ context + b_u)
    f = s(w_f @ context + b_f)
    o = s(w_o @ context + b_o)
    c = np.tanh(w_c @ context + b_c)
    m = f * m + u * c
    return (np.tanh(o * m) if form == "tanh(o*m)" else o * np.tanh(m)), m


@dataclass(frozen=True)
class Block:
    """One block: for each dimension its weight and bias, and which are prioritised or have no memory."""

    weights: Sequence[Array]
    biases: Sequence[Array]
    priority: Sequence[int] = ()
    plain: Sequence[int] = ()
    activation: str = "identity"
    form: str = "o*tanh(m)"

    def __call__(self, h: Sequence[Array], m: Sequence[Any]) -> tuple[list[Array], list[Any]]:
        """h and m by dimension, m being None where there is no memory."""
        new_h, new_m = list(h), list(m)

        def compute(i: int, context: Array) -> None:
            if i in self.plain:
                new_h[i] = ACT[self.activation](self.weights[i] @ context + self.biases[i])
            else:
                new_h[i], new_m[i] = transform(context, m[i], self.weights[i], self.biases[i], self.form)

        every = range(len(h))
        for i in every:
            if i not in self.priority:
                compute(i, np.concatenate(list(h)))
        seen = np.concatenate([h[i] if i in self.priority else new_h[i] for i in every])
        for i in every:
            if i in self.priority:
                compute(i, seen)
        return new_h, new_m


@dataclass(frozen=True)
class Network:
    """A grid whose last dimension is depth, with a block for each layer.

    Attributes:
        blocks: one for each layer.
        entry: weight and bias of the projection at the depth side, h and then m.
        outside: (h, m) of each other dimension off the grid.
        entries: weight and bias of the projections of data at other sides, by dimension.
    """

    blocks: Sequence[Block]
    entry: tuple[Array, Array]
    outside: Sequence[tuple[Array, Any]]
    entries: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def pair(self, projection: tuple[Array, Array], x: Array, dimension: int) -> tuple[Array, Any]:
        weight, bias = projection
        values = weight @ x + bias
        return (values, None) if dimension in self.blocks[0].plain else tuple(np.split(values, 2))

    def run(
        self, x: Array, size: Sequence[int], flip: Sequence[int] = (), sides: dict[int, Any] | None = None
    ) -> tuple[dict[tuple[int, ...], Array], dict[tuple[int, ...], Any]]:
        """One element of a batch.

        Args:
            x: [n_1, ..., n_(N-1), features].
            size: its valid positions along each dimension but depth.
            flip: dimensions to go backwards along.
            sides: by dimension a function of the other coordinates (layer last) that gives the pair that enters.

        Returns:
            [h; m] (h alone without memory) of depth by position after the last layer, and all pairs (h, m) by position.
        """
        depth, layers = len(size), len(self.blocks)
        entering = np.empty(tuple(size), object)
        for p in itertools.product(*map(range, size)):
            entering[p] = self.pair(self.entry, x[p], depth)
        found: dict[tuple[int, ...], Any] = {}

        def position(before: list[Any], p: tuple[int, ...]) -> tuple[Any, Array]:
            pairs = []
            for i, each in enumerate(before):
                pairs.append(each[i])
            h, m = self.blocks[p[-1]]([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            state = list(zip(h, m, strict=True))
            return state, h[0]

        whole = (*size, layers)
        places = np.empty(whole, object)
        for p in itertools.product(*map(range, whole)):
            places[p] = p
        of_sides: list[Any] = [None] * (depth + 1)
        for i in range(depth + 1):
            others = [n for d, n in enumerate(whole) if d != i]
            of_sides[i] = np.empty(tuple(others), object)
            for p in itertools.product(*map(range, others)):
                state: list[Any] = [None] * (depth + 1)
                if i == depth:
                    state[i] = entering[p]
                else:
                    state[i] = sides[i](p) if sides is not None and i in sides else self.outside[i]
                of_sides[i][p] = state
        found, _ = raster(position, None, places, whole, of_sides, flip)
        read = {}
        for p in itertools.product(*map(range, size)):
            h, m = found[(*p, layers - 1)][depth]
            read[p] = h if m is None else np.concatenate([h, m])
        return read, found
