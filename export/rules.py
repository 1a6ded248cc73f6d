"""The rule of a loop: how each argument of each operator follows from the step and from the length.

Every argument is seen in each iteration at three lengths. It is the same value from outside; or one of the same
iteration; or one of the iteration before, and something from outside at first: a state; or a place along an axis that
moves with the step: a scanned input; or an integer that is linear in the length. Anything else is no loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .unrolled import NotALoop, Op, Pick, Ref, Segment, Trace

__all__ = [
    "JOINED",
    "STACKED",
    "Collected",
    "Final",
    "Input",
    "Integer",
    "Loop",
    "Moved",
    "Outer",
    "Picked",
    "Place",
    "Previous",
    "Program",
    "Scanned",
    "program_of",
]

_aten = torch.ops.aten
JOINED, STACKED = "joined", "stacked"
_LISTS = {_aten.stack.default: STACKED, _aten.cat.default: JOINED}


@dataclass(frozen=True)
class Integer:
    """`steps` times the number of steps plus `constant`."""

    steps: int
    constant: int


@dataclass(frozen=True)
class Outer:
    """The value of an operator outside of loops."""

    index: int


@dataclass(frozen=True)
class Place:
    """The value of an operator of the same iteration."""

    index: int


@dataclass(frozen=True)
class Previous:
    """A part of the state."""

    slot: int


@dataclass(frozen=True)
class Input:
    """A scanned input; `keep` gives it back its axis, with size 1."""

    slot: int
    axis: int
    keep: bool


@dataclass(frozen=True)
class Final:
    """A part of a loop's state after its last step."""

    loop: int
    slot: int


@dataclass(frozen=True)
class Collected:
    """An output of a loop: of all steps, in order or from the last to the first, or of the last step alone."""

    loop: int
    slot: int
    reverse: bool = False
    last: bool = False


@dataclass(frozen=True)
class Moved:
    """All steps of an output of a loop, along another axis."""

    rows: Collected
    axis: int


@dataclass(frozen=True)
class Picked:
    """One place along an axis of a value."""

    source: Any
    axis: int
    index: Integer
    keep: bool


@dataclass(frozen=True)
class Scanned:
    """What a loop picks step by step along an axis of a value."""

    source: Any
    axis: int
    reverse: bool


@dataclass
class Loop:
    """One loop.

    Attributes:
        body: its operators; None for one that writes a step's value into a tensor, whose place an output takes.
        state: for each part of the state, the operator whose value the next iteration takes.
        initial: for each part, its value before the first step.
        inputs: what it picks.
        outputs: what it keeps of each step.
        written: for each operator that is None, the output and the axis of the tensor.
    """

    body: list[Op | None] = field(default_factory=list)
    state: list[int] = field(default_factory=list)
    initial: list[Any] = field(default_factory=list)
    inputs: list[Scanned] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    written: dict[int, tuple[int, int, bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A module's operators and loops, in order."""

    parts: Sequence[Op | Loop]
    results: Sequence[Any]
    structure: Any
    constants: Sequence[torch.Tensor]

    def __deepcopy__(self, memo: Any) -> "Program":
        """Itself: nothing in it changes."""
        return self


def program_of(traces: Sequence[Trace], segments: Sequence[Segment]) -> Program:
    """Find the rules of all loops.

    Args:
        traces: a module at several lengths.
        segments: where its loops are.

    Raises:
        NotALoop: an argument follows no rule; the message says which.
    """
    return _Reader(traces, segments).read()


class _Reader:
    def __init__(self, traces: Sequence[Trace], segments: Sequence[Segment]) -> None:
        self._traces, self._segments = traces, segments
        self._places = [_places(trace, segments) for trace in traces]
        self._loops: list[Loop] = []

    def read(self) -> Program:
        parts: list[Op | Loop] = []
        starts = [0] * len(self._traces)
        for segment in self._segments:
            if segment.loop:
                parts.append(self._loop(segment, starts))
            for offset in range(0 if segment.loop else segment.length):
                ops = [trace.ops[start + offset] for trace, start in zip(self._traces, starts, strict=True)]
                parts.append(self._outside(ops))
            repeats = [trace.steps if segment.loop else 1 for trace in self._traces]
            starts = [start + segment.length * count for start, count in zip(starts, repeats, strict=True)]
        first = self._traces[0]
        for trace in self._traces[1:]:
            if str(trace.structure) != str(first.structure):
                raise NotALoop("what forward returns has another structure at another length")
            if not all(torch.equal(a, b) for a, b in zip(trace.constants, first.constants, strict=True)):
                raise NotALoop("forward makes a constant tensor that depends on the length or on the step")
        results = [self._merge(list(each)) for each in zip(*(trace.results for trace in self._traces), strict=True)]
        return Program(parts, results, first.structure, first.constants)

    def _outside(self, ops: Sequence[Op]) -> Op:
        target = ops[0].target
        if target in _LISTS and self._collects([op.args[0] for op in ops]):
            axes = {op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0) for op in ops}
            if len(axes) > 1:
                raise NotALoop(f"{target} joins steps along another axis at another length")
            return Op(_LISTS[target], (self._collected([op.args[0] for op in ops]), axes.pop()), {})
        args = tuple(self._merge(list(each)) for each in zip(*(op.args for op in ops), strict=True))
        return Op(target, args, {name: self._merge([op.kwargs[name] for op in ops]) for name in ops[0].kwargs})

    def _collects(self, lists: Sequence[Any]) -> bool:
        counts = [trace.steps for trace in self._traces]
        return [len(each) for each in lists] == counts and all(
            isinstance(each, Ref) and places[each.index][0] is not None
            for places, values in zip(self._places, lists, strict=True)
            for each in values
        )

    def _collected(self, lists: Sequence[Any]) -> Collected:
        found = set()
        for trace, places, values in zip(self._traces, self._places, lists, strict=True):
            where = [places[each.index] for each in values]
            order = [step for _, step, _ in where]
            forward = list(range(trace.steps))
            if order not in (forward, forward[::-1]) or len({(loop, place) for loop, _, place in where}) > 1:
                raise NotALoop("a list joins values of a loop in another order than that of the steps")
            found.add((where[0][0], where[0][2], order != forward))
        if len(found) > 1:
            raise NotALoop("a list joins other values at another length")
        loop, place, reverse = found.pop()
        return Collected(loop, self._output(loop, Place(place)), reverse)

    def _output(self, loop: int, value: Any) -> int:
        """The slot of an output of a loop."""
        outputs = self._loops[loop].outputs
        if isinstance(value, Place) and self._loops[loop].body[value.index] is None:
            raise NotALoop("a tensor that the loop writes to is read before the loop ends")
        if value not in outputs:
            outputs.append(value)
        return outputs.index(value)

    def _merge(self, samples: list[Any]) -> Any:
        """An argument outside of loops, from what it is at each length."""
        first = samples[0]
        if all(isinstance(each, list) for each in samples):
            if len({len(each) for each in samples}) > 1:
                raise NotALoop("a list of tensors grows with the length, and is neither stacked nor concatenated")
            return [self._merge(list(each)) for each in zip(*samples, strict=True)]
        if all(isinstance(each, Ref) for each in samples):
            return self._outer([places[each.index] for places, each in zip(self._places, samples, strict=True)])
        if all(isinstance(each, Pick) for each in samples) and len({(each.axis, each.keep) for each in samples}) == 1:
            index = _line([(trace.steps, 0, each.index) for trace, each in zip(self._traces, samples, strict=True)])
            return Picked(self._merge([each.source for each in samples]), first.axis, Integer(*index[1:]), first.keep)
        if all(type(each) is int for each in samples):
            rule = _line([(trace.steps, 0, each) for trace, each in zip(self._traces, samples, strict=True)])
            return Integer(*rule[1:]) if rule[1] else first
        if any(each != first for each in samples):
            raise NotALoop(f"an argument is {first!r} at one length and something else at another")
        return first

    def _outer(self, where: list[tuple[int | None, int, int]]) -> Any:
        loops = {loop for loop, _, _ in where}
        places = {place for _, _, place in where}
        if len(loops) > 1 or len(places) > 1:
            raise NotALoop("an operator behind a loop takes another value at another length")
        loop, place = loops.pop(), places.pop()
        if loop is None:
            return Outer(place)
        if any(step != trace.steps - 1 for (_, step, _), trace in zip(where, self._traces, strict=True)):
            raise NotALoop("an operator behind a loop takes a value of a step that is not the last")
        found = self._loops[loop]
        if place in found.written:
            slot, axis, reverse = found.written[place]
            return Moved(Collected(loop, slot, reverse), axis)
        if place in found.state:
            return Final(loop, found.state.index(place))
        return Collected(loop, self._output(loop, Place(place)), last=True)

    def _loop(self, segment: Segment, starts: Sequence[int]) -> Loop:
        number = len(self._loops)
        loop = Loop(body=[None] * segment.length)
        self._loops.append(loop)
        body = _Body(self, number, loop)
        for place in range(segment.length):
            samples = [
                (which, step, trace.ops[start + segment.length * step + place])
                for which, (trace, start) in enumerate(zip(self._traces, starts, strict=True))
                for step in range(trace.steps)
            ]
            loop.body[place] = body.operator(place, samples)
        if not loop.inputs:
            raise NotALoop("a loop takes nothing from step to step along the axis of time")
        if not loop.outputs and loop.state:
            loop.outputs.append(Place(loop.state[0]))
        return loop


class _Body:
    """The rules of one loop's body."""

    def __init__(self, reader: _Reader, number: int, loop: Loop) -> None:
        self._reader, self._number, self._loop = reader, number, loop

    def operator(self, place: int, samples: list[tuple[int, int, Op]]) -> Op | None:
        op = samples[0][2]
        if op.target is _aten.select_scatter.default and self._writes(place, samples):
            return None
        args = tuple(
            self.merge([(which, step, each.args[index]) for which, step, each in samples])
            for index in range(len(op.args))
        )
        kwargs = {
            name: self.merge([(which, step, each.kwargs[name]) for which, step, each in samples]) for name in op.kwargs
        }
        return Op(op.target, args, kwargs)

    def _writes(self, place: int, samples: list[tuple[int, int, Op]]) -> bool:
        """Whether an operator writes a step's value into the tensor that the step before has written to."""
        for which, step, op in samples:
            source = op.args[0]
            if step and not (isinstance(source, Ref) and self._where(which, source) == (self._number, step - 1, place)):
                return False
        traces = self._reader._traces
        rule = _line([(traces[which].steps, step, op.args[3]) for which, step, op in samples])
        reverse = _moves(rule)
        value = self.merge([(which, step, op.args[1]) for which, step, op in samples])
        if value not in self._loop.outputs:
            self._loop.outputs.append(value)
        self._loop.written[place] = (self._loop.outputs.index(value), samples[0][2].args[2], reverse)
        return True

    def _where(self, which: int, value: Ref) -> tuple[int | None, int, int]:
        return self._reader._places[which][value.index]

    def merge(self, samples: list[tuple[int, int, Any]]) -> Any:
        """An argument inside of the loop, from what it is in each iteration at each length."""
        values = [value for _, _, value in samples]
        first = values[0]
        if all(isinstance(each, list) for each in values) and len({len(each) for each in values}) == 1:
            return [
                self.merge([(which, step, value[index]) for which, step, value in samples])
                for index in range(len(first))
            ]
        later = [(which, step, value) for which, step, value in samples if step]
        if all(isinstance(value, Ref) for _, _, value in later):
            places = [(step, *self._where(which, value)) for which, step, value in later]
            if all(loop == self._number and step - 1 == at for step, loop, at, _ in places):
                return self._previous({place for _, _, _, place in places}, samples)
        if all(isinstance(each, Ref) for each in values):
            return self._value(samples)
        if all(isinstance(each, Pick) for each in values) and len({(each.axis, each.keep) for each in values}) == 1:
            return self._pick(samples)
        traces = self._reader._traces
        if all(type(each) is int for each in values):
            rule = _line([(traces[which].steps, step, value) for which, step, value in samples])
            if rule[0]:
                raise NotALoop("an operator of the loop computes with the number of the step")
            return Integer(*rule[1:]) if rule[1] else first
        if any(type(each) is not type(first) or each != first for each in values):
            raise NotALoop("an operator of the loop takes another argument in another iteration")
        return first

    def _previous(self, places: set[int], samples: list[tuple[int, int, Any]]) -> Previous:
        if len(places) > 1:
            raise NotALoop("an operator of the loop takes another value of the step before in another iteration")
        place = places.pop()
        initial = self._reader._merge([value for _, step, value in samples if not step])
        for slot, (body, before) in enumerate(zip(self._loop.state, self._loop.initial, strict=True)):
            if body == place and before == initial:
                return Previous(slot)
        self._loop.state.append(place)
        self._loop.initial.append(initial)
        return Previous(len(self._loop.state) - 1)

    def _value(self, samples: list[tuple[int, int, Any]]) -> Any:
        where = [(which, step, *self._where(which, value)) for which, step, value in samples]
        loops, places = {loop for _, _, loop, _, _ in where}, {place for *_, place in where}
        if len(loops) > 1 or len(places) > 1:
            raise NotALoop("an operator of the loop takes another value in another iteration")
        loop, place = loops.pop(), places.pop()
        if loop is None:
            return Outer(place)
        if loop == self._number:
            if any(at != step for _, step, _, at, _ in where):
                raise NotALoop("an operator of the loop takes a value of a step further back than the one before")
            if place in self._loop.written:
                raise NotALoop("a tensor that the loop writes to is read inside the loop")
            return Place(place)
        steps = [trace.steps for trace in self._reader._traces]
        rule = _line([(steps[which], step, at) for which, step, _, at, _ in where])
        if rule == (0, 1, -1):
            return self._reader._outer([(loop, count - 1, place) for count in steps])
        rows = Collected(loop, self._reader._output(loop, Place(place)))
        return self._input(Scanned(rows, 0, _moves(rule)), 0, False)

    def _pick(self, samples: list[tuple[int, int, Any]]) -> Any:
        traces = self._reader._traces
        first = samples[0][2]
        rule = _line([(traces[which].steps, step, value.index) for which, step, value in samples])
        if not rule[0]:
            source = self.merge([(which, step, value.source) for which, step, value in samples])
            return Picked(source, first.axis, Integer(*rule[1:]), first.keep)
        sources = [value.source for which, step, value in samples if not step]
        if any(value.source != sources[which] for which, _, value in samples):
            raise NotALoop("the loop picks a step of a tensor that changes from step to step")
        source = self._reader._merge(sources)
        return self._input(Scanned(source, first.axis, _moves(rule)), first.axis, first.keep)

    def _input(self, scanned: Scanned, axis: int, keep: bool) -> Input:
        if scanned not in self._loop.inputs:
            self._loop.inputs.append(scanned)
        return Input(self._loop.inputs.index(scanned), axis, keep)


def _places(trace: Trace, segments: Sequence[Segment]) -> list[tuple[int | None, int, int]]:
    """For each operator its loop, step and place in the body; outside of loops None, 0 and its number there."""
    found: list[tuple[int | None, int, int]] = []
    loops = outside = 0
    for segment in segments:
        if segment.loop:
            found += [(loops, step, place) for step in range(trace.steps) for place in range(segment.length)]
            loops += 1
        else:
            found += [(None, 0, outside + place) for place in range(segment.length)]
            outside += segment.length
        outside += segment.loop  # a loop takes one place among what is outside of it
    return found


def _line(samples: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """The integers a, b, c of a·step + b·length + c that give the last of each sample."""
    (count, step, value), *_ = samples
    a = next((each - value for many, at, each in samples if many == count and at == step + 1), 0)
    many, _, other = next(sample for sample in samples if sample[0] != count and sample[1] == step)
    b, rest = divmod(other - value, many - count)
    c = value - a * step - b * count
    if rest or any(a * at + b * many + c != each for many, at, each in samples):
        raise NotALoop("an integer follows neither the step nor the length")
    return a, b, c


def _moves(rule: tuple[int, int, int]) -> bool:
    """Whether a place moves backward with the steps; it moves forward or backward over the whole axis."""
    if rule == (1, 0, 0):
        return False
    if rule in ((-1, 1, -1), (-1, 0, -1)):
        return True
    raise NotALoop(f"the loop picks the place {rule[0]}·step + {rule[1]}·length + {rule[2]}, not that of the step")
