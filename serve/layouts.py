"""Where the axes of tensors are: in the graph, and batch-first, as in requests and answers."""

import functools
from typing import NamedTuple, Self

import numpy as np

from cellport.manifest import BATCH, TIME, Axes, InputSpec

from .codec import Array


@functools.cache
def batch_first(axes: Axes) -> Axes:
    """Return `axes` with the batch axis in front, as they are on the wire."""
    if BATCH not in axes:
        return axes
    return (BATCH, *(axis for axis in axes if axis != BATCH))


class Layout(NamedTuple):
    """Where the axes of a tensor are.

    Attributes:
        graph: the axes of the tensor in the graph.
        batch: the batch axis there; None if there is none.
        time: the time axis of the batch-first tensor; None if there is none.
        wire: the axes of the batch-first tensor.
        fill: what its padding is filled with.
    """

    graph: Axes
    batch: int | None
    time: int | None
    wire: Axes
    fill: int

    @classmethod
    def of(cls, axes: Axes, fill: int = 0) -> Self:
        """Return the layout of a tensor with these axes in the graph."""
        wire = batch_first(axes)
        return cls(
            axes, axes.index(BATCH) if BATCH in axes else None, wire.index(TIME) if TIME in wire else None, wire, fill
        )

    def to_graph(self, array: Array) -> Array:
        """Return a view of a batch-first tensor with the axes that the graph has."""
        return np.moveaxis(array, 0, self.batch) if self.batch else array

    def from_graph(self, array: Array) -> Array:
        """Return a batch-first view of a tensor of the graph."""
        return np.moveaxis(array, self.batch, 0) if self.batch else array


def padding(spec: InputSpec) -> int:
    """Return the value that fills an input's padding: 0, or the valid value nearest to it."""
    if spec.range is None:
        return 0
    return min(max(0, spec.range.minimum), spec.range.maximum)
