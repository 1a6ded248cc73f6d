"""Carrying out a run: gather the rows of many jobs, run the graph, and give each job what is its own.

Without a lock and a queue: a tick's jobs belong to whoever runs it until it is completed.
"""

import logging
import time
from collections.abc import Hashable, Sequence

import numpy as np

from cellport.errors import InternalServingError, ServingError
from cellport.manifest import BATCH, InputSpec

from .codec import Array
from .contract import Bound
from .generation import advance
from .jobs import Part, Run, Tick
from .model import Model
from .results import fetches_of, give, keep
from .slots import INITIAL
from .uniting import divided, united_feeds

_log = logging.getLogger(__name__)


def run_tick(tick: Tick) -> list[Exception | None]:
    """Run a tick; return for each part why it failed, or None.

    If the run fails, its parts are run one by one, so that only those that fail alone are refused.
    """
    try:
        tick.runs.append(_run(tick.model, tick.parts, tick.steps, tick.rows))
        return [None] * len(tick.parts)
    except Exception as error:
        if len(tick.parts) == 1:
            return [_refusal(tick.model, error)]
    failures: list[Exception | None] = []
    for part in tick.parts:
        try:
            tick.runs.append(_run(tick.model, [part], part.steps, part.count))
            failures.append(None)
        except Exception as error:
            failures.append(_refusal(tick.model, error))
    return failures


def group_key(model: Model, bound: Bound, *, cut: bool, stateful: bool) -> Hashable | None:
    """Return what requests must have in common to share a run; None for one that must run alone.

    Args:
        model: that they ask for.
        bound: the request.
        cut: requests of the model are run in chunks.
        stateful: the request is a step of a sequence.
    """
    keys = bound.keys
    if keys is None:
        return _group_key(model, bound, cut=cut, stateful=stateful)
    # The same for all requests of a form: no input is shared by rows, and states are no matter of the form.
    known = (cut, stateful or bool(bound.states))
    if known not in keys:
        keys[known] = _group_key(model, bound, cut=cut, stateful=stateful)
    return keys[known]


def _group_key(model: Model, bound: Bound, *, cut: bool, stateful: bool) -> Hashable | None:
    contract = model.contract
    if contract.unites:
        return tuple(bound.inputs)
    if not contract.splits or (not model.arena.uniform and (stateful or bound.states or cut)):
        return None
    static: list[tuple[str, tuple[int, ...], bytes]] = []
    if not contract.rowwise:
        for name, array in bound.inputs.items():
            if BATCH in contract.inputs[name].axes:
                continue
            if array.dtype.kind in "OSU":
                return None
            static.append((name, array.shape, array.tobytes()))
    # A default of an input that is left out is known to the graph only, so it cannot fill another request's rows.
    given = tuple(bound.inputs)
    sizes = tuple(sorted((axis, size) for axis, size in bound.sizes.items() if axis not in contract.joins))
    return (given, sizes, tuple(static), None if cut or contract.pads else bound.time)


def _run(model: Model, parts: Sequence[Part], steps: int, rows: int) -> Run:
    contract = model.contract
    started = time.perf_counter()
    together = bool(contract.unites) and len(parts) > 1
    bounds = [part.bound for part in parts]
    feeds = united_feeds(contract, bounds) if together else _feeds(model, parts, bounds, steps)
    fetches = fetches_of(contract, parts)
    fed = time.perf_counter()
    results = model.run(feeds, fetches)
    ran = time.perf_counter()
    keep(model, parts, results, rows)
    if together:
        for part, outputs in zip(parts, divided(contract, bounds, results), strict=True):
            part.job.results = outputs
    else:
        give(contract, parts, results, steps)
    generating = [part for part in parts if part.job.generation is not None and part.final]
    if generating:
        _generate(generating)
    ended = time.perf_counter()
    if fetches:
        model.costs.observe(rows, steps, ended - started)
    return parts, steps, rows, started, fed, ran, ended


def _feeds(model: Model, parts: Sequence[Part], bounds: Sequence[Bound], steps: int) -> dict[str, Array]:
    """Return the tensors of one run over all parts' rows, with the axes that the graph has."""
    contract = model.contract
    feeds: dict[str, Array] = {}
    even = whole = True
    measured = False
    for part, bound in zip(parts, bounds, strict=True):
        if part.steps != steps:
            even = whole = False
        elif whole and (part.rows is not None or bound.time not in (None, steps)):
            whole = False
        if bound.lengths is not None:
            measured = True
    for name, first in bounds[0].inputs.items():
        layout = contract.input_layouts[name]
        at = layout.time
        if layout.batch is None:
            feeds[name] = first
            continue
        if len(parts) == 1:
            joined = first if whole else _cut(first, parts[0], at)
        else:
            arrays = [bound.inputs[name] for bound in bounds]
            if not whole:
                arrays = [_cut(array, part, at) for array, part in zip(arrays, parts, strict=True)]
            for axis in contract.joins:
                if axis in layout.wire and len({array.shape[layout.wire.index(axis)] for array in arrays}) > 1:
                    arrays = _widen(arrays, layout.wire.index(axis), layout.fill)
            joined = np.concatenate(arrays) if at is None or even else _pad(arrays, at, steps, layout.fill)
        feeds[name] = layout.to_graph(joined)
    lengths = contract.lengths
    if lengths is not None and (not even or measured or lengths.name in model.required):
        feeds[lengths.name] = _valid(parts, bounds)
    sizes = contract.sizes
    if sizes is not None and (contract.joins or sizes.name in model.required or bounds[0].extents is not None):
        feeds[sizes.name] = _concatenate([_extents(sizes, bound) for bound in bounds])
    if contract.states:
        _add_states(model, parts, bounds, feeds)
    return feeds


def _add_states(model: Model, parts: Sequence[Part], bounds: Sequence[Bound], feeds: dict[str, Array]) -> None:
    """Add the states that the rows start from, where they are not all the initial ones."""
    layouts = model.contract.state_layouts
    own = [not part.position and bool(bound.states) for part, bound in zip(parts, bounds, strict=True)]
    if not any(own) and all([part.source is None for part in parts]) and not model.required.intersection(layouts):
        return
    if not model.arena.uniform and len(parts) == 1 and parts[0].source is None:
        for name, layout in layouts.items():
            if name in bounds[0].states:
                feeds[name] = layout.to_graph(bounds[0].states[name])
            elif name in model.required:
                initial = layout.from_graph(model.contract.states[name].initial_value())
                feeds[name] = layout.to_graph(np.broadcast_to(initial, (bounds[0].rows, *initial.shape[1:])))
        return
    slots: list[int] = []
    for part in parts:
        slots += part.source if part.source is not None else [INITIAL] * part.count
    gathered = model.arena.gather(slots)
    if any(own):
        start = 0
        for part, bound, has in zip(parts, bounds, own, strict=True):
            stop = start + part.count
            if has:
                for name, given in bound.states.items():
                    layouts[name].from_graph(gathered[name])[start:stop] = given
            start = stop
    feeds.update(gathered)


def _generate(parts: Sequence[Part]) -> None:
    """Draw the next tokens, and make each the step that follows."""
    generations, scores = [], []
    for part in parts:
        job, generation = part.job, part.job.generation
        assert generation is not None
        found = job.results.pop(generation.scores_output)[0]
        generations.append(generation)
        scores.append(found if found.ndim == 1 else found[job.steps - 1])
    advance(generations, scores)
    for part, generation in zip(parts, generations, strict=True):
        part.job.bound = generation.next(part.bound)


def _cut(array: Array, part: Part, at: int | None) -> Array:
    """Return a part's rows and steps of a batch-first input."""
    if part.rows is not None:
        array = array[part.rows]
    if at is None or array.shape[at] == part.steps:
        return array
    return array[(slice(None),) * at + (slice(part.position, part.position + part.steps),)]


def _pad(arrays: Sequence[Array], at: int, size: int, fill: int) -> Array:
    first = arrays[0]
    shape = list(first.shape)
    shape[0], shape[at] = sum(array.shape[0] for array in arrays), size
    value: object = b"" if first.dtype.kind in "OSU" else fill
    joined: Array = np.full(shape, value, first.dtype)
    start = 0
    inner = (slice(None),) * (at - 1)
    for array in arrays:
        stop = start + array.shape[0]
        joined[(slice(start, stop), *inner, slice(0, array.shape[at]))] = array
        start = stop
    return joined


def _extents(spec: InputSpec, bound: Bound) -> Array:
    """Return the sizes of a request's rows, `[rows, axes]`."""
    if bound.extents is not None:
        return bound.extents
    whole = np.array([bound.sizes[axis] for axis in spec.of], spec.dtype)
    return np.broadcast_to(whole, (bound.rows, len(whole)))


def _widen(arrays: Sequence[Array], at: int, fill: int) -> list[Array]:
    """Pad arrays along an axis to the size of the largest."""
    largest = max(array.shape[at] for array in arrays)
    return [
        np.pad(
            array,
            [(0, largest - array.shape[at] if axis == at else 0) for axis in range(array.ndim)],
            constant_values=fill,
        )
        for array in arrays
    ]


def _valid(parts: Sequence[Part], bounds: Sequence[Bound]) -> Array:
    """Return how many steps of each row of a run are valid."""
    if not any([bound.lengths is not None for bound in bounds]):
        steps = [part.steps if bound.time is not None else 0 for part, bound in zip(parts, bounds, strict=True)]
        counts = [part.count for part in parts]
        return np.repeat(np.asarray(steps, np.int64), counts)
    found = []
    for part, bound in zip(parts, bounds, strict=True):
        if bound.lengths is None:
            found.append(np.full(part.count, part.steps if bound.time is not None else 0, np.int64))
        else:
            lengths = bound.lengths if part.rows is None else bound.lengths[part.rows]
            found.append(np.clip(lengths - part.position, 0, part.steps))
    return _concatenate(found)


def _concatenate(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _refusal(model: Model, error: Exception) -> Exception:
    if isinstance(error, ServingError) and not isinstance(error, InternalServingError):
        return error
    _log.error("%r failed to run", model, exc_info=error)
    return error
