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
