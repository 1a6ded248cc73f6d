"""Carrying out a run: gather the rows of many jobs, run the graph, and give each job what is its own.

Without a lock and a queue: a tick's jobs belong to whoever runs it until it is completed.
"""

import logging
import time
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from cellport.errors import InternalServingError, ServingError
from cellport.manifest import BATCH, TIME, Axes, InputSpec

from .codec import Array
from .contract import Bound, Contract, batch_first, padding
from .generation import advance
from .jobs import Part, Run, Tick
from .model import Model
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
    bounds = [_bound(part) for part in parts]
    feeds = united_feeds(contract, bounds) if together else _feeds(model, parts, steps)
    fetches = _fetches(contract, parts)
    fed = time.perf_counter()
    results = model.run(feeds, fetches)
    ran = time.perf_counter()
    _keep(model, parts, results, rows)
    if together:
        for part, outputs in zip(parts, divided(contract, bounds, results), strict=True):
            part.job.results = outputs
    elif not _give_whole(contract, parts, results, steps):
        start = 0
        for part in parts:
            stop = start + part.count
            _give(contract, part, results, start, stop)
            start = stop
    _generate([part for part in parts if part.final and part.job.generation is not None])
    ended = time.perf_counter()
    if fetches:
        model.costs.observe(rows, steps, ended - started)
    return parts, steps, rows, started, fed, ran, ended


def _feeds(model: Model, parts: Sequence[Part], steps: int) -> dict[str, Array]:
    """Return the tensors of one run over all parts' rows, with the axes that the graph has."""
    contract = model.contract
    feeds: dict[str, Array] = {}
    bounds = [_bound(part) for part in parts]
    even = all([part.steps == steps for part in parts])
    for name, first in bounds[0].inputs.items():
        spec = contract.inputs[name]
        if BATCH not in spec.axes:
            feeds[name] = first
            continue
        wire = batch_first(spec.axes)
        at = wire.index(TIME) if TIME in wire else None
        cut = [_cut(bound.inputs[name], part, at) for part, bound in zip(parts, bounds, strict=True)]
        for axis in contract.joins:
            if axis in wire and len({array.shape[wire.index(axis)] for array in cut}) > 1:
                cut = _widen(cut, wire.index(axis), padding(spec))
        joined = _concatenate(cut) if at is None or even else _pad(cut, at, steps, padding(spec))
        feeds[name] = _to_graph(joined, spec.axes)
    lengths = contract.manifest.lengths
    if lengths is not None and (
        not even or lengths.name in model.required or any([each.lengths is not None for each in bounds])
    ):
        feeds[lengths.name] = _concatenate([_valid(part, bound) for part, bound in zip(parts, bounds, strict=True)])
    sizes = contract.manifest.sizes
    if sizes is not None and (contract.joins or sizes.name in model.required or bounds[0].extents is not None):
        feeds[sizes.name] = _concatenate([_extents(sizes, bound) for bound in bounds])
    if contract.states:
        _add_states(model, parts, bounds, feeds)
    return feeds


def _add_states(model: Model, parts: Sequence[Part], bounds: Sequence[Bound], feeds: dict[str, Array]) -> None:
    """Add the states that the rows start from, where they are not all the initial ones."""
    states = model.contract.states
    own = [not part.position and bool(bound.states) for part, bound in zip(parts, bounds, strict=True)]
    if not any(own) and all([part.source is None for part in parts]) and not model.required.intersection(states):
        return
    if not model.arena.uniform and len(parts) == 1 and parts[0].source is None:
        for name, state in states.items():
            if name in bounds[0].states:
                feeds[name] = _to_graph(bounds[0].states[name], state.axes)
            elif name in model.required:
                initial = np.moveaxis(state.initial_value(), state.batch_axis, 0)
                feeds[name] = _to_graph(np.broadcast_to(initial, (bounds[0].rows, *initial.shape[1:])), state.axes)
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
                    np.moveaxis(gathered[name], states[name].batch_axis, 0)[start:stop] = given
            start = stop
    feeds.update(gathered)


def _fetches(contract: Contract, parts: Sequence[Part]) -> list[str]:
    """Return the names of the outputs that a run has to compute, in the manifest's order."""
    forms = set()
    for part in parts:
        bound = _bound(part)
        forms.add((part.final or (bound.lengths is not None and bound.rows > 1), bound.outputs))
    wanted: set[str] = set()
    for ends, outputs in forms:
        wanted.update(name for name in outputs if ends or name in contract.concatenated)
    if any([part.target is not None for part in parts]):
        wanted.update(contract.state_outputs)
    return [name for name in contract.fetchable if name in wanted]


def _keep(model: Model, parts: Sequence[Part], results: Mapping[str, Array], rows: int) -> None:
    """Write the states after the run to where they are kept."""
    slots: list[int] = []
    places: list[int] = []
    start = 0
    for part in parts:
        stop = start + part.count
        if part.target is not None:
            slots += part.target
            places.extend(range(start, stop))
        start = stop
    if slots:
        states = {state.input: results[state.output] for state in model.contract.states.values()}
        model.arena.scatter(slots, states, None if len(slots) == rows else places)


def _give_whole(contract: Contract, parts: Sequence[Part], results: Mapping[str, Array], steps: int) -> bool:
    """Give each job its rows of the outputs, if all jobs ran whole, took all steps and want the same; else do nothing.

    What is done with the axes is done once for all of them.
    """
    first = _bound(parts[0])
    if contract.joins:
        return False
    for part in parts:
        bound = _bound(part)
        if (
            not part.final
            or part.position
            or part.rows is not None
            or bound.outputs != first.outputs
            or bound.squeeze is not first.squeeze
            or (bound.time is not None and bound.time != steps)
        ):
            return False
    views: list[tuple[str, Array, bool]] = []
    for name in first.outputs:
        array, axes = results[name], contract.axes_of(name)
        rowwise = BATCH in axes
        at = axes.index(BATCH) if rowwise else 0
        if at:
            array = np.moveaxis(array, at, 0)
        if first.time is not None and TIME in axes:
            along = batch_first(axes).index(TIME)
            if array.shape[along] != steps:
                return False
            if first.squeeze:
                array = array.squeeze(along)
        views.append((name, array, rowwise))
    start = 0
    for part in parts:
        stop = start + part.count
        part.job.results = {name: array[start:stop] if rowwise else array for name, array, rowwise in views}
        start = stop
    return True


def _give(contract: Contract, part: Part, results: Mapping[str, Array], start: int, stop: int) -> None:
    """Give a job its rows of the outputs. Those of a job that ran whole are views of the results."""
    job, bound = part.job, _bound(part)
    whole = part.final and not part.position
    for name in bound.outputs:
        if name not in results:
            continue
        axes = contract.axes_of(name)
        array = _from_graph(results[name], axes, start, stop)
        at = batch_first(axes).index(TIME) if TIME in axes and bound.time is not None else None
        if whole:
            array = array if at is None else _fit(array, at, bound.time)
            job.results[name] = _trim(array, axes, contract.joins, bound) if contract.joins else array
        elif at is not None and name in contract.concatenated:
            _place(job.results, name, array, part, bound, at)
        else:
            _finish(job.results, name, array, part, bound)
    if part.final:
        squeezed = {name for name in bound.outputs if bound.squeeze and TIME in contract.axes_of(name)}
        job.results = {
            name: job.results[name].squeeze(batch_first(contract.axes_of(name)).index(TIME))
            if name in squeezed
            else job.results[name]
            for name in bound.outputs
        }


def _place(results: dict[str, Array], name: str, array: Array, part: Part, bound: Bound, at: int) -> None:
    """Put a chunk where it belongs in an output over time; what no chunk reaches is padding, and 0."""
    found = results.get(name)
    if found is None:
        shape = list(array.shape)
        shape[0], shape[at] = bound.rows, bound.time or 0
        found = np.zeros(shape, array.dtype)
        results[name] = found
    chunk = np.moveaxis(array, at, 1)[:, : part.steps]
    into = np.moveaxis(found, at, 1)[:, part.position : part.position + part.steps]
    if part.rows is None:
        into[:] = chunk
    else:
        into[list(part.rows)] = chunk


def _finish(results: dict[str, Array], name: str, array: Array, part: Part, bound: Bound) -> None:
    """Take the last value of the rows that end in this chunk."""
    lengths = bound.lengths
    if lengths is None or bound.rows == 1:
        if part.final:
            results[name] = array
        return
    found = results.get(name)
    if found is None:
        found = results[name] = np.zeros((bound.rows, *array.shape[1:]), array.dtype)
    rows = np.arange(bound.rows) if part.rows is None else np.asarray(part.rows)
    ends = lengths[rows] <= part.position + part.steps
    found[rows[ends]] = array[ends]


def _generate(parts: Sequence[Part]) -> None:
    """Draw the next tokens, and make each the step that follows."""
    if not parts:
        return
    generations, scores = [], []
    for part in parts:
        job, generation = part.job, part.job.generation
        assert generation is not None
        found = job.results.pop(generation.scores_output)[0]
        generations.append(generation)
        scores.append(found if found.ndim == 1 else found[job.steps - 1])
    advance(generations, scores)
    for part, generation in zip(parts, generations, strict=True):
        part.job.bound = generation.next(_bound(part))


def _fit(array: Array, at: int, time: int | None) -> Array:
    """Return an output with the request's own time axis: shorter than the run's, or longer than its valid steps."""
    assert time is not None
    if array.shape[at] >= time:
        return array[(slice(None),) * at + (slice(0, time),)]
    shape = list(array.shape)
    shape[at] = time
    found = np.zeros(shape, array.dtype)
    found[(slice(None),) * at + (slice(0, array.shape[at]),)] = array
    return found


def _bound(part: Part) -> Bound:
    bound = part.job.bound
    assert bound is not None
    return bound


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


def _trim(array: Array, axes: Axes, joins: Sequence[str], bound: Bound) -> Array:
    """Return a batch-first output with the request's own sizes along the axes that were padded."""
    return array[tuple(slice(bound.sizes[str(axis)]) if axis in joins else slice(None) for axis in batch_first(axes))]


def _valid(part: Part, bound: Bound) -> Array:
    """Return how many steps of the part are valid, for each of its rows."""
    if bound.lengths is None:
        return np.full(part.count, part.steps if bound.time is not None else 0, np.int64)
    lengths = bound.lengths if part.rows is None else bound.lengths[part.rows]
    valid: Array = np.clip(lengths - part.position, 0, part.steps)
    return valid


def _concatenate(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _to_graph(array: Array, axes: Axes) -> Array:
    at = axes.index(BATCH)
    return array if at == 0 else np.moveaxis(array, 0, at)


def _from_graph(array: Array, axes: Axes, start: int, stop: int) -> Array:
    if BATCH not in axes:
        return array
    at = axes.index(BATCH)
    first: Array = array if at == 0 else np.moveaxis(array, at, 0)
    return first[start:stop]


def _refusal(model: Model, error: Exception) -> Exception:
    if isinstance(error, ServingError) and not isinstance(error, InternalServingError):
        return error
    _log.error("%r failed to run", model, exc_info=error)
    return error
