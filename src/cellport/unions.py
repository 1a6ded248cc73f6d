"""Disjoint unions of requests: several graphs as one, which the exporter proves and the server runs.

Tensors are put one behind the other along the axis that the manifest says, numbers of positions count from where their
request's part begins, and other axes are padded to the largest: of node numbers with -1, of anything else with 0.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .manifest import BATCH, TIME, Axes, InputSpec, Manifest

Array = np.ndarray[Any, Any]

__all__ = ["part_of", "sizes_of", "union_axes", "united"]


def union_axes(manifest: Manifest) -> frozenset[str]:
    """Return the axes along which requests are united; none where requests of the model cannot be."""
    inputs, outputs = manifest.inputs, manifest.outputs
    along = {each.unite for each in inputs if each.unite is not None}
    known = {axis for each in inputs for axis in each.axes}
    every = [*(each.axes for each in inputs), *(each.axes for each in outputs)]
    fits = (
        not manifest.states
        and all(each.unite is not None for each in inputs)
        and all(len(along.intersection(map(str, axes))) == 1 and TIME not in axes for axes in every)
        and all(axes.index(BATCH) == 0 for axes in every if BATCH in axes)
        and all(isinstance(axis, int) or axis in known for each in outputs for axis in each.axes)
    )
    return frozenset(along) if fits else frozenset()


def sizes_of(inputs: Iterable[InputSpec], graph: Mapping[str, Array]) -> dict[str, int]:
    """Return the size of each dynamic axis.

    Args:
        inputs: specifications of inputs.
        graph: tensors by input name; some may be left out.
    """
    return {
        axis: size
        for spec in inputs
        if spec.name in graph
        for axis, size in zip(spec.axes, graph[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }


def united(
    inputs: Sequence[InputSpec], graphs: Sequence[Mapping[str, Array]], sizes: Sequence[Mapping[str, int]]
) -> dict[str, Array]:
    """Return the disjoint union of graphs.

    Args:
        inputs: specifications of inputs, each with an axis `unite`.
        graphs: tensors by input name of each graph, all of the same names.
        sizes: of each graph, `sizes_of` it.
    """
    return {spec.name: _joined(spec, graphs, sizes) for spec in inputs if spec.name in graphs[0]}


def _joined(spec: InputSpec, graphs: Sequence[Mapping[str, Array]], sizes: Sequence[Mapping[str, int]]) -> Array:
    assert spec.unite is not None
    at = spec.axes.index(spec.unite)
    arrays = [graph[spec.name] for graph in graphs]
    shape = np.max([array.shape for array in arrays], axis=0)
    shape[at] = sum(array.shape[at] for array in arrays)
    value: object = b"" if arrays[0].dtype.kind in "OSU" else 0 if spec.index_of is None else -1
    found: Array = np.full(shape, value, arrays[0].dtype)
    start = first = 0
    for array, size in zip(arrays, sizes, strict=True):
        where = [slice(n) for n in array.shape]
        where[at] = slice(start, start + array.shape[at])
        found[tuple(where)] = array if spec.index_of is None else np.where(array < 0, array, array + first)
        start += array.shape[at]
        first += size[spec.index_of] if spec.index_of is not None else 0
    return found


def part_of(
    array: Array, axes: Axes, along: Collection[str], before: Mapping[str, int], sizes: Mapping[str, int]
) -> Array:
    """Return what of an output of a union is one graph's, a view.

    Args:
        array: the output.
        axes: its axes.
        along: axes along which graphs were put one behind the other.
        before: positions along these that are of the graphs before this one.
        sizes: of this graph.
    """
    where = []
    for axis in axes:
        start = before[str(axis)] if axis in along else 0
        where.append(slice(start, start + sizes[axis]) if isinstance(axis, str) else slice(None))
    return array[tuple(where)]
