"""The proof that several graphs may be run as one, their disjoint union, which a server then relies on.

Which integers number positions of which axis is seen in what the user's function draws: they follow its size.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cellport.manifest import BATCH, TIME, Axes, InputSpec
from cellport.unions import part_of, sizes_of, united

from .drawing import draw as draw_one
from .drawn import Draw, draw_all
from .runs import Arrays

__all__ = ["Union", "proved_union"]

_DRAWS = 12
_SIZES = (11, 40)
"""Sizes of axes. The user's function knows that the tracer asks for 11 or more."""

_REACHES = 0.5
"""How much of an axis its indices reach, on average over the draws, at least."""

_UNIONS = 4
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Union:
    """How graphs are put together.

    Attributes:
        indices: of each input of integers that number positions, the axis that these are of.
        axes: the axis along which each input is united; empty if graphs may not be.
    """

    indices: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, str] = field(default_factory=dict)


def proved_union(
    run: Callable[[Arrays], Arrays],
    inputs: Mapping[str, Axes],
    outputs: Mapping[str, Axes],
    examples: Arrays,
    draw: Draw | None,
    *,
    stateful: bool = False,
) -> tuple[Union, str]:
    """Return how graphs are united, if unions of drawn ones are proved to compute what each alone does; what was found.

    Args:
        run: the module in float64, of arrays by input name.
        inputs: axes of each input.
        outputs: axes of each output.
        examples: an example of each input.
        draw: the user's function that draws graphs.
        stateful: the module has states, so that its requests are no graphs.
    """
    if draw is None:
        return Union(), ""
    try:
        graphs = [_drawn(inputs, examples, draw, seed) for seed in range(_DRAWS)]
    except Exception as error:
        return Union(), f"graphs run apart: {error}"
    indices = _indices(inputs, examples, graphs)
    if not indices:
        return Union(), ""
    if stateful or any(TIME in axes for axes in (*inputs.values(), *outputs.values())):
        return Union(indices), "graphs run apart: the model has states or steps"
    found = "no axis is every tensor's own"
    for axes in _candidates(inputs, outputs, indices):
        specs = [
            InputSpec(
                name=name,
                dtype=str(examples[name].dtype),
                axes=inputs[name],
                role="static",
                index_of=indices.get(name),
                unite=axes[name],
            )
            for name in inputs
        ]
        found = _difference(run, specs, outputs, graphs)
        if not found:
            along = ", ".join(map(repr, dict.fromkeys(axes.values())))
            return Union(indices, axes), f"graphs: unions along {along} proved equal to each alone"
    return Union(indices), f"graphs run apart: {found}"


def _drawn(inputs: Mapping[str, Axes], examples: Arrays, draw: Draw, seed: int) -> Arrays:
    """A graph of random sizes."""
    rng = np.random.default_rng(seed)
    names = dict.fromkeys(axis for axes in inputs.values() for axis in axes if isinstance(axis, str))
    wanted = dict(zip(names, rng.permutation(np.arange(*_SIZES))[: len(names)].tolist(), strict=True))
    given, sizes = draw_all(
        draw, rng, wanted, {name: (axes, str(examples[name].dtype)) for name, axes in inputs.items()}, exact=False
    )
    for name, axes in inputs.items():
        if name not in given:
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
            example = examples[name]
            given[name] = draw_one(rng, shape, str(example.dtype), example=example)
    return {name: given[name] for name in inputs}


def _indices(inputs: Mapping[str, Axes], examples: Arrays, graphs: list[Arrays]) -> dict[str, str]:
    """The axis that each input of integers is bounded by in all graphs, and most nearly."""
    specs = [InputSpec(name=n, dtype=str(examples[n].dtype), axes=axes, role="static") for n, axes in inputs.items()]
    sizes = [sizes_of(specs, graph) for graph in graphs]
    found = {}
    for name in inputs:
        if str(examples[name].dtype) not in ("int32", "int64") or TIME in inputs[name]:
            continue
        if any(graph[name].min(initial=-1) < -1 for graph in graphs):
            continue
        ends = np.array([int(graph[name].max(initial=-1)) + 1 for graph in graphs])
        best = _REACHES
        for axis in sizes[0].keys() - {TIME}:
            limits = np.array([size[axis] for size in sizes])
            reached = float((ends / limits.clip(1)).mean())
            # What does not follow the axis, such as a type, would have to be as large by chance.
            if (ends <= limits).all() and len(set(ends.tolist())) > _DRAWS // 2 and reached >= best:
                found[name], best = axis, reached
    return found


def _candidates(
    inputs: Mapping[str, Axes], outputs: Mapping[str, Axes], indices: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Axes along which inputs may be united: a schedule [levels, width] beside the other, or else behind it."""
    numbered = set(indices.values())
    for place in (1, 0):
        axes: dict[str, str] = {}
        for name, own in inputs.items():
            dynamic = [axis for axis in own if isinstance(axis, str)]
            among = [axis for axis in dynamic if axis in numbered]
            if not among and name in indices and dynamic:
                among = [dynamic[min(place, len(dynamic) - 1)]]
            axes[name] = among[0] if among else ""
        along = {axis for axis in axes.values() if axis}
        for name, own in inputs.items():  # such as features of edges
            axes[name] = axes[name] or next((str(axis) for axis in own if axis in along), "")
        every = [*inputs.values(), *outputs.values()]
        known = {axis for own in inputs.values() for axis in own if isinstance(axis, str)}
        if (
            all(len(along.intersection(map(str, own))) == 1 for own in every)
            and all(isinstance(axis, int) or axis in known for own in outputs.values() for axis in own)
            and all(own.index(BATCH) == 0 for own in every if BATCH in own)
        ):
            yield axes


def _difference(
    run: Callable[[Arrays], Arrays], specs: list[InputSpec], outputs: Mapping[str, Axes], graphs: list[Arrays]
) -> str:
    """What a union computes otherwise than its graphs alone, or nothing."""
    along = {str(spec.unite) for spec in specs}
    thin = [
        spec.name
        for spec in specs
        if spec.index_of is not None and all(graph[spec.name].min(initial=0) >= 0 for graph in graphs)
    ]
    for seed in range(_UNIONS):
        rng = np.random.default_rng(seed)
        chosen = [graphs[place] for place in rng.permutation(len(graphs))[: 2 + seed % 2]]
        told = "drawn ones"
        if thin and seed % 2:
            # In the file -1 may be the last position, which in a union is another's.
            chosen[0] = _thinned(rng, thin, chosen[0])
            told = f"-1 in {thin}"
        sizes = [sizes_of(specs, graph) for graph in chosen]
        try:
            apart = [run(graph) for graph in chosen]
        except Exception as error:
            return f"the module fails on {told}: {error}"
        try:
            together = run(united(specs, chosen, sizes))
        except Exception as error:
            return f"the module fails on a union: {error}"
        before = dict.fromkeys(along, 0)
        for alone, size in zip(apart, sizes, strict=True):
            for name, axes in outputs.items():
                ours, theirs = part_of(together[name], axes, along, before, size), alone[name]
                if ours.shape != theirs.shape or not np.allclose(
                    ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
                ):
                    return f"{name!r} of a graph depends on the others in a union"
            before = {axis: start + size[axis] for axis, start in before.items()}
    return ""


def _thinned(rng: np.random.Generator, names: list[str], graph: Arrays) -> Arrays:
    """A graph with -1 in place of some positions."""
    found = dict(graph)
    for name in names:
        values = graph[name]
        found[name] = np.where(rng.random(values.shape) < 0.3, -1, values).astype(values.dtype)
    return found
