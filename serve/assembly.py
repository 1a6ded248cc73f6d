"""Joining bound requests into the tensors of one run, and cutting the run's results into answers again."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cellport.manifest import BATCH, TIME, Axes, StateSpec

from .codec import Array
from .contract import Bound, Contract, batch_first, padding


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One request of a batch.

    Attributes:
        bound: the request.
        carried: batch-first states that its sequence carries, by input name; None outside a sequence. A state that is
            not in it starts at its initial value.
    """

    bound: Bound
    carried: Mapping[str, Array] | None = None

    def state(self, name: str) -> Array | None:
        """Return the state that the request's rows start from; None for the initial value."""
        given = self.bound.states.get(name)
        return given if given is not None or self.carried is None else self.carried.get(name)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What one member gets: its outputs, and the states after its run (empty outside a sequence)."""

    outputs: Mapping[str, Array]
    states: Mapping[str, Array]


def key(contract: Contract, member: Member) -> Hashable | None:
    """Return what members must have in common to share a run; None for a member that must run alone."""
    bound = member.bound
    if not contract.splits:
        return None
    static = tuple(
        (name, array.shape, array.tobytes())
        for name, array in bound.inputs.items()
        if BATCH not in _axes(contract, name)
    )
    if any(array.dtype.kind in "OSU" for name, array in bound.inputs.items() if BATCH not in _axes(contract, name)):
        return None
    shapes = tuple(
        (name, None if array is None else array.shape[1:])
        for name, state in contract.states.items()
        if any(isinstance(axis, str) and axis != BATCH for axis in state.axes)
        for array in [member.state(name)]
    )
    time = None if contract.pads else bound.time
    # A default of an input that is left out is known to the graph only, so it cannot fill another request's rows.
    return (time, tuple(bound.inputs), tuple(sorted(bound.sizes.items())), static, shapes)


def join(contract: Contract, members: Sequence[Member], required: frozenset[str]) -> dict[str, Array]:
    """Return the feeds of one run over all members' rows, with the batch axis where the graph has it.

    Args:
        contract: the model's.
        members: requests of one `key`.
        required: names of inputs that the graph has no default for.
    """
    feeds: dict[str, Array] = {}
    times = [member.bound.time for member in members if member.bound.time is not None]
    longest = max(times, default=0)
    for name, first in members[0].bound.inputs.items():
        axes = contract.inputs[name].axes
        if BATCH not in axes:
            feeds[name] = first
            continue
        wire = batch_first(axes)
        parts = [member.bound.inputs[name] for member in members]
        if TIME in axes:
            fill = padding(contract.inputs[name])
            parts = [_pad(part, wire.index(TIME), longest, fill) for part in parts]
        feeds[name] = _to_graph(_concatenate(parts), axes)
    lengths = contract.manifest.lengths
    if lengths is not None:
        ragged = any(time != longest for time in times) or any(each.bound.lengths is not None for each in members)
        if ragged or lengths.name in required:
            feeds[lengths.name] = _concatenate([_lengths(member.bound) for member in members])
    for name, state in contract.states.items():
        given = [member.state(name) for member in members]
        if name in required or any(each is not None for each in given):
            initial = np.moveaxis(state.initial_value(), state.batch_axis, 0)
            parts = [
                each if each is not None else _rows(initial, member.bound.rows)
                for each, member in zip(given, members, strict=True)
            ]
            feeds[name] = _to_graph(_concatenate(parts), state.axes)
    return feeds


def fetches(contract: Contract, members: Sequence[Member]) -> list[str]:
    """Return the names of the outputs that a run over `members` has to compute, in the manifest's order."""
    wanted = {name for member in members for name in member.bound.outputs}
    if any(member.carried is not None for member in members):
        wanted.update(contract.state_outputs)
    return [name for name in (*contract.outputs, *contract.state_outputs) if name in wanted]


def split(contract: Contract, members: Sequence[Member], results: Mapping[str, Array]) -> list[Answer]:
    """Cut the results of one run into the members' answers: their rows, and their own time.

    Outputs are views of the results; states are copies, since they outlive the run.
    """
    answers = []
    start = 0
    for member in members:
        bound = member.bound
        stop = start + bound.rows
        outputs = {}
        for name in bound.outputs:
            axes = _output_axes(contract, name)
            rows = _from_graph(results[name], axes, start, stop)
            if TIME in axes and bound.time is not None:
                at = batch_first(axes).index(TIME)
                rows = rows[(slice(None),) * at + (slice(0, bound.time),)]
                if bound.squeeze:
                    rows = rows.squeeze(at)
            outputs[name] = rows
        states = {}
        if member.carried is not None:
            for state in contract.states.values():
                states[state.input] = _from_graph(results[state.output], state.axes, start, stop).copy()
        answers.append(Answer(outputs=outputs, states=states))
        start = stop
    return answers


def initial_rows(state: StateSpec, rows: int) -> Array:
    """Return `rows` batch-first rows of a state's initial value."""
    return _rows(np.moveaxis(state.initial_value(), state.batch_axis, 0), rows).copy()


def _axes(contract: Contract, name: str) -> Axes:
    return contract.inputs[name].axes


def _output_axes(contract: Contract, name: str) -> Axes:
    if name in contract.outputs:
        return contract.outputs[name].axes
    return contract.state_outputs[name].axes


def _lengths(bound: Bound) -> Array:
    if bound.lengths is not None:
        return bound.lengths
    return np.full(bound.rows, bound.time if bound.time is not None else 0, np.int64)


def _rows(initial: Array, rows: int) -> Array:
    return np.broadcast_to(initial, (rows, *initial.shape[1:]))


def _concatenate(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pad(array: Array, axis: int, size: int, fill: int) -> Array:
    missing = size - array.shape[axis]
    if not missing:
        return array
    shape = list(array.shape)
    shape[axis] = missing
    value: object = b"" if array.dtype.kind in "OSU" else fill
    return np.concatenate([array, np.full(shape, value, array.dtype)], axis)


def _to_graph(array: Array, axes: Axes) -> Array:
    at = axes.index(BATCH)
    return array if at == 0 else np.moveaxis(array, 0, at)


def _from_graph(array: Array, axes: Axes, start: int, stop: int) -> Array:
    if BATCH not in axes:
        return array
    at = axes.index(BATCH)
    rows = array[(slice(None),) * at + (slice(start, stop),)]
    return rows if at == 0 else np.moveaxis(rows, at, 0)
