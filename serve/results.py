"""What becomes of a run's results: states go where they are kept, and each request gets its rows of the outputs."""

from collections.abc import Mapping, Sequence

import numpy as np

from .codec import Array
from .contract import Bound, Contract
from .jobs import Part
from .layouts import Layout
from .model import Model


def fetches_of(contract: Contract, parts: Sequence[Part]) -> list[str]:
    """Return the names of the outputs that a run has to compute, in the manifest's order."""
    forms = {
        (
            part.bound.outputs,
            part.final or (part.bound.lengths is not None and part.bound.rows > 1),
            part.target is not None,
        )
        for part in parts
    }
    found = [contract.fetches(outputs, ends=ends, keeps=keeps) for outputs, ends, keeps in forms]
    if len(found) == 1:
        return found[0]
    wanted = {name for names in found for name in names}
    return [name for name in contract.fetchable if name in wanted]


def keep(model: Model, parts: Sequence[Part], results: Mapping[str, Array], rows: int) -> None:
    """Write the states after the run to where they are kept."""
    slots: list[int] = []
    for part in parts:
        if part.target is not None:
            slots += part.target
    if not slots:
        return
    states = {name: results[state.output] for name, state in model.contract.states.items()}
    if len(slots) == rows:
        model.arena.scatter(slots, states)
        return
    places: list[int] = []
    start = 0
    for part in parts:
        stop = start + part.count
        if part.target is not None:
            places.extend(range(start, stop))
        start = stop
    model.arena.scatter(slots, states, places)


def give(contract: Contract, parts: Sequence[Part], results: Mapping[str, Array], steps: int) -> None:
    """Give each job its rows of the outputs."""
    if _give_whole(contract, parts, results, steps):
        return
    start = 0
    for part in parts:
        stop = start + part.count
        _give(contract, part, results, start, stop)
        start = stop


def _give_whole(contract: Contract, parts: Sequence[Part], results: Mapping[str, Array], steps: int) -> bool:
    """Give each job its rows of the outputs, if all jobs ran whole, took all steps and want the same; else do nothing.

    What is done with the axes is done once for all of them.
    """
    first = parts[0].bound
    if contract.joins:
        return False
    wanted, squeeze, timed = first.outputs, first.squeeze, first.time is not None
    for part in parts:
        bound = part.bound
        if (
            not part.final
            or part.position
            or part.rows is not None
            or (bound.outputs is not wanted and bound.outputs != wanted)
            or bound.squeeze is not squeeze
            or (timed and bound.time != steps)
        ):
            return False
    views: list[tuple[str, Array, bool]] = []
    for name in wanted:
        layout = contract.output_layouts[name]
        array = layout.from_graph(results[name])
        if timed and layout.time is not None:
            if array.shape[layout.time] != steps:
                return False
            if squeeze:
                array = array.squeeze(layout.time)
        views.append((name, array, layout.batch is not None))
    if len(parts) == 1:
        parts[0].job.results = {name: array for name, array, _ in views}
        return True
    start = 0
    for part in parts:
        stop = start + part.bound.rows
        part.job.results = {name: array[start:stop] if rowwise else array for name, array, rowwise in views}
        start = stop
    return True


def _give(contract: Contract, part: Part, results: Mapping[str, Array], start: int, stop: int) -> None:
    """Give a job its rows of the outputs. Those of a job that ran whole are views of the results."""
    job, bound = part.job, part.bound
    whole = part.final and not part.position
    for name in bound.outputs:
        if name not in results:
            continue
        layout = contract.output_layouts[name]
        array = layout.from_graph(results[name])
        if layout.batch is not None:
            array = array[start:stop]
        at = layout.time if bound.time is not None else None
        if whole:
            array = array if at is None else _fit(array, at, bound.time)
            job.results[name] = _trim(array, layout, contract.joins, bound) if contract.joins else array
        elif at is not None and name in contract.concatenated:
            _place(job.results, name, array, part, at)
        else:
            _finish(job.results, name, array, part)
    if part.final:
        squeezed = {name for name in bound.outputs if bound.squeeze and contract.output_layouts[name].time is not None}
        job.results = {
            name: job.results[name].squeeze(contract.output_layouts[name].time)
            if name in squeezed
            else job.results[name]
            for name in bound.outputs
        }


def _place(results: dict[str, Array], name: str, array: Array, part: Part, at: int) -> None:
    """Put a chunk where it belongs in an output over time; what no chunk reaches is padding, and 0."""
    bound = part.bound
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


def _finish(results: dict[str, Array], name: str, array: Array, part: Part) -> None:
    """Take the last value of the rows that end in this chunk."""
    bound = part.bound
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


def _trim(array: Array, layout: Layout, joins: Sequence[str], bound: Bound) -> Array:
    """Return a batch-first output with the request's own sizes along the axes that were padded."""
    return array[tuple(slice(bound.sizes[str(axis)]) if axis in joins else slice(None) for axis in layout.wire)]
