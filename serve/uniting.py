"""Requests that hold graphs, run as one: how large their disjoint union is, its tensors, and whose its results are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellport.unions import part_of, sizes_of, united

from .codec import Array
from .contract import Bound, Contract

_MOST = 1024
"""Positions of a union. Every step of a sweep copies the state of all nodes; see docs/decisions/0018-unions.md."""

GraphShape = tuple[tuple[int, tuple[int, ...]], ...]
"""For each input, the size along the axis where graphs are put one behind the other, and the other sizes."""


def shape_of(contract: Contract, bound: Bound) -> GraphShape:
    """Return the sizes of a request."""
    found = []
    for name, array in bound.inputs.items():
        spec = contract.inputs[name]
        assert spec.unite is not None
        at = spec.axes.index(spec.unite)
        found.append((array.shape[at], array.shape[:at] + array.shape[at + 1 :]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class UnionShape:
    """The size of a union: for each input its length, its other axes, and what its graphs fill of them."""

    lengths: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()
    filled: tuple[int, ...] = ()

    def with_graph(self, graph: GraphShape) -> "UnionShape":
        """Return the shape with another graph."""
        lengths = tuple(length for length, _ in graph)
        others = tuple(other for _, other in graph)
        filled = tuple(length * math.prod(other) for length, other in graph)
        if not self.lengths:
            return UnionShape(lengths, others, filled)
        return UnionShape(
            tuple(map(sum, zip(self.lengths, lengths, strict=True))),
            tuple(tuple(map(max, a, b)) for a, b in zip(self.others, others, strict=True)),
            tuple(map(sum, zip(self.filled, filled, strict=True))),
        )

    def fits(self, padding: float) -> bool:
        """Whether the union is small enough, and every input at most so many times larger than what is filled of it."""
        return max(self.lengths, default=0) <= _MOST and all(
            length * math.prod(other) <= padding * filled
            for length, other, filled in zip(self.lengths, self.others, self.filled, strict=True)
        )


def united_feeds(contract: Contract, bounds: Sequence[Bound]) -> dict[str, Array]:
    """Return the tensors of one run of several requests."""
    inputs = contract.manifest.inputs
    graphs = [bound.inputs for bound in bounds]
    return united(inputs, graphs, [sizes_of(inputs, graph) for graph in graphs])


def divided(contract: Contract, bounds: Sequence[Bound], results: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Return what each request asked for of the results of a run of all: views."""
    before = dict.fromkeys(contract.unites, 0)
    found = []
    for bound in bounds:
        sizes = sizes_of(contract.manifest.inputs, bound.inputs)
        found.append(
            {
                name: part_of(results[name], contract.output_layouts[name].graph, contract.unites, before, sizes)
                for name in bound.outputs
            }
        )
        before = {axis: start + sizes[axis] for axis, start in before.items()}
    return found
