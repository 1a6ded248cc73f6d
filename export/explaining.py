"""Why a call took what it took: the rule behind each argument, from what it was in every run and iteration.

An argument is the same tensor from outside; or one of the same iteration; or one of an iteration before, and at first
something from outside: a state; or a place along an axis that moves with the step: a scanned input; or a whole number
that is linear in the sizes of the axes. Anything else follows no rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .affine import Number, Sample, fit
from .recording import factory, made_of, set_item
from .rules import (
    Along,
    Call,
    Carried,
    Filled,
    Final,
    InPrecision,
    Joined,
    Loop,
    Outer,
    Picked,
    Place,
    Rows,
    Scan,
    Span,
    Steps,
)
from .traces import Input, NotALoop, Op, Pick, Ref, Trace, Weight

__all__ = ["At", "Rules", "Runs"]

_LAGS = (1, 2, 3)
_NUMBERS = frozenset(
    [
        *("add", "sub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow"),
        *("rsub", "__rsub__", "__radd__", "__rmul__", "__rdiv__", "__rtruediv__", "__pow__"),
        *("lt", "le", "gt", "ge", "eq", "ne"),
    ]
)
_LISTS = frozenset(["stack", "cat", "concat", "concatenate"])

At = tuple[int, int | None]
"""A run, and the iteration of a loop."""


@dataclass(frozen=True)
class Runs:
    """What a module called at several sizes.

    Attributes:
        traces: its calls.
        where: for each run and call that is explained, the number of its loop among the program's parts, the iteration
            and the place in the body; for one outside of loops None, None and its number among the parts.
    """

    traces: Sequence[Trace]
    where: Sequence[dict[int, tuple[int | None, int | None, int]]]


class Rules:
    """Explains arguments of one call by what they are in each run and iteration."""

    def __init__(self, runs: Runs, parts: list[Call | Loop], number: int | None, op: Op | None) -> None:
        self._runs, self._parts, self._number = runs, parts, number
        found = parts[number] if number is not None else None
        self._loop = found if isinstance(found, Loop) else None
        self._target = op.target if op is not None else None
        self._name = getattr(self._target, "__name__", str(self._target))

    def call(self, ops: Sequence[Op], at: list[At]) -> Call:
        """The rules of a call."""
        args = tuple(self.rule(list(each), at) for each in zip(*(op.args for op in ops), strict=True))
        kwargs = {name: self.rule([op.kwargs[name] for op in ops], at) for name in ops[0].kwargs}
        return Call(self._target, args, kwargs)

    def rule(self, values: list[Any], at: list[At]) -> Any:
        """The rule that gives each value in its run and iteration."""
        first = values[0]
        if all(_is_tensor(each) for each in values):
            return self._tensor(values, at)
        if all(type(each) is int for each in values):
            return self._integer(values, at)
        if any(type(each) is not type(first) for each in values):
            raise NotALoop(f"{self._name} takes something of another kind in another iteration")
        if isinstance(first, tuple | list):
            return self._list(values, at)
        if isinstance(first, dict):
            return {name: self.rule([each[name] for each in values], at) for name in first}
        if isinstance(first, slice):
            parts = [[getattr(each, part) for each in values] for part in ("start", "stop", "step")]
            return slice(*(self.rule(each, at) for each in parts))
        if all(each == first for each in values):
            return first
        return self._in_precision(values, at)

    def _in_precision(self, values: list[Any], at: list[At]) -> InPrecision:
        found: dict[torch.dtype, Any] = {}
        for value, (run, _) in zip(values, at, strict=True):
            if found.setdefault(self._runs.traces[run].dtype, value) != value:
                raise NotALoop(f"{self._name} takes {value!r:.50}, and something else at another step or length")
        return InPrecision(tuple(found.items()))

    def _samples(self, at: list[At]) -> list[Sample]:
        return [(self._runs.traces[run].sizes, step) for run, step in at]

    def _fit(self, values: Sequence[int], at: list[At]) -> Number:
        found = fit(values, self._samples(at))
        if found is None:
            raise NotALoop(f"{self._name} takes an integer that is linear neither in the step nor in the sizes")
        return found

    def _integer(self, values: list[int], at: list[At]) -> Any:
        found = self._fit(values, at)
        if not found.step:
            return found if found.constant is None else found.constant
        if self._name not in _NUMBERS and self._target not in (factory, made_of):
            raise NotALoop(f"{self._name} takes the number of the step")
        assert self._loop is not None
        steps = Steps(found.step, replace(found, step=0), self._loop.count)
        return self._scan(Along(steps, 0, Number(()), self._loop.count, self._loop.count, False), None)

    def _list(self, values: list[Any], at: list[At]) -> Any:
        kind = type(values[0])
        if len({len(each) for each in values}) == 1:
            try:
                return kind(self.rule(list(each), at) for each in zip(*values, strict=True))
            except NotALoop:
                if self._loop is not None or self._name not in _LISTS:
                    raise
        if self._loop is not None:
            raise NotALoop(f"{self._name} takes what grows from step to step")
        if self._name not in _LISTS:
            raise NotALoop(f"{self._name} takes as many values as there are steps")
        parsed = [self._grouped(each, run) for each, (run, _) in zip(values, at, strict=True)]
        shapes = {tuple(key for key, *_ in each) for each in parsed}
        if len(shapes) > 1:
            raise NotALoop(f"{self._name} joins other values at another length")
        items = []
        for group in zip(*parsed, strict=True):
            if group[0][0] is None:
                items.append(self.rule([first for _, first, _, _ in group], at))
            else:
                items.append(self._span([list(each) for each in group], at))
        return Joined(tuple(items))

    def _grouped(self, values: list[Any], run: int) -> list[tuple[Any, Any, int, int]]:
        """A list as single values, and as spans of one value in consecutive steps: their key, value, first, last."""
        found: list[tuple[Any, Any, int, int]] = []
        for value in values:
            name, step = self._stepped(value, run)
            if found and name is not None and found[-1][0] is not None:
                (before, way), first, start, last = found[-1]
                if before == name and (step - last == way or (way == 0 and abs(step - last) == 1)):
                    found[-1] = ((name, step - last), first, start, step)
                    continue
            found.append((None, value, 0, 0) if name is None else ((name, 0), value, step, step))
        return [
            (None, value, 0, 0) if each and each[1] == 0 else (each, value, start, last)
            for each, value, start, last in found
        ]

    def _stepped(self, value: Any, run: int) -> tuple[Any, int]:
        """What a value is at a step of a loop or of an axis, and the step."""
        if isinstance(value, Ref):
            loop, step, place = self._runs.where[run].get(value.op, (None, None, 0))
            return (("loop", loop, place, value.leaf), step or 0) if loop is not None else (None, 0)
        if isinstance(value, Pick):
            name, step = self._stepped(value.source, run)
            if name is not None:
                return (name, value.axis, value.index, value.keep), step
            return ("axis", self._fixed(value.source, run), value.axis, value.keep), value.index
        return None, 0

    def _fixed(self, value: Any, run: int) -> Any:
        if isinstance(value, Ref):
            return (*self._runs.where[run].get(value.op, ()), value.leaf)
        if isinstance(value, Pick):
            return (self._fixed(value.source, run), value.axis, value.index, value.keep)
        return value

    def _span(self, group: list[list[Any]], at: list[At]) -> Span:
        """A run of tensors of consecutive steps as one part of an axis."""
        (_, way), sample = group[0][0], group[0][1]
        start = self._fit([each[2] for each in group], at)
        last = self._fit([each[3] for each in group], at)
        count = (last.minus(start) if way > 0 else start.minus(last)).plus(1)
        keep = False
        if isinstance(sample, Pick) and self._stepped(sample.source, at[0][0])[0] is None:
            source = self.rule([each[1].source for each in group], at)
            axis, keep = sample.axis, sample.keep
            size = self._fit([each[1].size for each in group], at)
        else:
            source, axis = self._rows([each[1] for each in group], at), 0
            size = self._loop_of(source).count
        return Span(Along(source, axis, start, count, size, way < 0), keep)

    def _loop_of(self, rows: Rows) -> Loop:
        loop = self._parts[rows.loop]
        assert isinstance(loop, Loop)
        return loop

    def _rows(self, values: list[Any], at: list[At]) -> Rows:
        """All rows of a value of a loop before; its step is left out."""
        loops: set[int] = set()

        def inner(value: Any, run: int) -> Any:
            if isinstance(value, Pick):
                return Picked(
                    inner(value.source, run), value.axis, _constant(value.index), _constant(value.size), value.keep
                )
            loop, _, place = self._runs.where[run][value.op]
            assert loop is not None
            loops.add(loop)
            return Place(place, value.leaf)

        found = {inner(value, run) for value, (run, _) in zip(values, at, strict=True)}
        if len(found) > 1 or len(loops) > 1:
            raise NotALoop(f"{self._name} takes other values of a loop at another length")
        return self._output(loops.pop(), found.pop())

    def _output(self, number: int, value: Any) -> Rows:
        loop = self._parts[number]
        assert isinstance(loop, Loop)
        if isinstance(value, Place) and value.call in loop.filled:
            raise NotALoop(f"{self._name} reads a tensor before the loop has filled it")
        if value not in loop.outputs:
            loop.outputs.append(value)
        return Rows(number, loop.outputs.index(value))

    def _scan(self, along: Along, axis: int | None) -> Scan:
        assert self._loop is not None
        if along not in self._loop.scans:
            self._loop.scans.append(along)
        return Scan(self._loop.scans.index(along), axis)

    def _tensor(self, values: list[Any], at: list[At]) -> Any:
        try:
            return self._direct(values, at, self._tensor)
        except NotALoop:
            if self._loop is None:
                raise
            reason: NotALoop | None = None
            for lag in _LAGS:
                try:
                    return self._carried(values, at, lag)
                except NotALoop as error:
                    reason = reason or error
            assert reason is not None
            raise reason from None

    def _direct(self, values: list[Any], at: list[At], inner: Callable[[list[Any], list[At]], Any]) -> Any:
        """A tensor from outside, of the same iteration, or that is scanned; `inner` explains what it is picked of."""
        first = values[0]
        if all(isinstance(each, Input | Weight) for each in values) and all(each == first for each in values):
            return first
        if all(isinstance(each, Ref) for each in values):
            return self._reference(values, at)
        if all(isinstance(each, Pick) for each in values):
            return self._pick(values, at, inner)
        raise NotALoop(f"{self._name} takes a tensor of another origin in another iteration")

    def _reference(self, values: list[Ref], at: list[At]) -> Any:
        places = [self._runs.where[run].get(value.op) for value, (run, _) in zip(values, at, strict=True)]
        if any(place is None for place in places):
            raise NotALoop(f"{self._name} takes a tensor that comes after it")
        loops, calls = {place[0] for place in places if place}, {place[2] for place in places if place}
        leaves = {value.leaf for value in values}
        if len(loops) > 1 or len(calls) > 1 or len(leaves) > 1:
            raise NotALoop(f"{self._name} takes the result of another call in another iteration")
        loop, call, leaf = loops.pop(), calls.pop(), leaves.pop()
        steps = [place[1] for place in places if place]
        if loop is None:
            return Outer(call, leaf)
        if loop == self._number:
            if any(step != own for step, (_, own) in zip(steps, at, strict=True)):
                raise NotALoop(f"{self._name} looks back over more steps than {_LAGS[-1]}")
            assert self._loop is not None
            if call < len(self._loop.body) and self._loop.body[call] is None:
                raise NotALoop(f"{self._name} reads a tensor before the loop has filled it")
            return Place(call, leaf)
        return self._of_loop(loop, call, leaf, self._fit([step or 0 for step in steps], at))

    def _of_loop(self, number: int, call: int, leaf: int, step: Number) -> Any:
        """A value of a loop before."""
        if number >= len(self._parts):
            raise NotALoop(f"{self._name} takes a result of its own loop where the loop begins")
        loop = self._parts[number]
        assert isinstance(loop, Loop)
        if call in loop.filled:
            if step.plus(1) != loop.count:
                raise NotALoop(f"{self._name} reads a tensor before the loop has filled it")
            return loop.filled[call]
        place = Place(call, leaf)
        if step.step:
            return self._moving(Along(self._output(number, place), 0, step, loop.count, loop.count, False), None)
        if step.plus(1) == loop.count and place in loop.new:
            return Final(number, loop.new.index(place))
        return Picked(self._output(number, place), 0, step, loop.count, False)

    def _moving(self, along: Along, axis: int | None) -> Scan:
        """A scanned input whose place is `along.start`, a rule of the step."""
        assert self._loop is not None
        way = along.start.step
        if abs(way) != 1:
            raise NotALoop(f"{self._name} takes every {abs(way)}th place of an axis")
        start = replace(along.start, step=0)
        return self._scan(replace(along, start=start, count=self._loop.count, backwards=way < 0), axis)

    def _pick(self, values: list[Pick], at: list[At], inner: Callable[[list[Any], list[At]], Any]) -> Any:
        first = values[0]
        if any((each.axis, each.keep) != (first.axis, first.keep) for each in values):
            raise NotALoop(f"{self._name} takes a place of another axis in another iteration")
        size = self._fit([each.size for each in values], at)
        index = self._fit([each.index for each in values], at)
        sources = [each.source for each in values]
        if not index.step:
            return Picked(inner(sources, at), first.axis, index, size, first.keep)
        source = self._direct(sources, at, inner)
        if _inside(source):
            raise NotALoop(f"{self._name} takes a place that moves with the step, of what the loop itself computes")
        return self._moving(Along(source, first.axis, index, size, size, False), first.axis if first.keep else None)

    def _carried(self, values: list[Any], at: list[At], lag: int) -> Carried:
        """A value of the iteration `lag` before; at first, what takes its place."""
        assert self._loop is not None
        later: list[tuple[Any, At]] = [
            (value, (run, step - lag)) for value, (run, step) in zip(values, at, strict=True) if step and step >= lag
        ]
        new = self._direct([value for value, _ in later], [place for _, place in later], self._direct_only)
        first = []
        for number in range(lag):
            each = [(value, (run, None)) for value, (run, step) in zip(values, at, strict=True) if step == number]
            outside = Rules(self._runs, self._parts[: self._number], None, None)
            outside._name = self._name
            first.append(outside.rule([value for value, _ in each], [place for _, place in each]))
        shape = self._shape(later)
        own = [(value, place) for value, place in zip(values, at, strict=True) if (place[1] or 0) < lag]
        kept = None if self._shape(own) == shape else shape
        for place in range(lag):
            new = Carried(self._slot(new, first[lag - 1 - place], kept))
        assert isinstance(new, Carried)
        return new

    def _direct_only(self, values: list[Any], at: list[At]) -> Any:
        return self._direct(values, at, self._direct_only)

    def _shape(self, later: list[tuple[Any, At]]) -> tuple[Number, ...]:
        at: list[At] = [(run, None) for _, (run, _) in later]
        shapes = [self._runs.traces[run].shapes[value] for value, (run, _) in later]
        if len({len(shape) for shape in shapes}) > 1:
            raise NotALoop(f"{self._name} takes a state whose number of axes changes")
        return tuple(self._fit(list(column), at) for column in zip(*shapes, strict=True))

    def _slot(self, new: Any, initial: Any, shape: tuple[Number, ...] | None) -> int:
        loop = self._loop
        assert loop is not None
        for slot, each in enumerate(zip(loop.new, loop.initial, strict=True)):
            if each == (new, initial):
                return slot
        loop.new.append(new)
        loop.initial.append(initial)
        loop.shapes.append(shape)
        return len(loop.new) - 1

    def fills(self, place: int, ops: Sequence[Op], at: list[At]) -> bool:
        """Whether a call writes a row a step into a tensor; the tensor then is made after the loop."""
        if self._target is not set_item or self._loop is None or self._number is None:
            return False
        for op, (run, step) in zip(ops, at, strict=True):
            source = op.args[0]
            if step and (
                not isinstance(source, Ref) or self._runs.where[run][source.op] != (self._number, step - 1, place)
            ):
                return False
        index = list(zip(*(op.args[1] for op in ops), strict=True))
        moving = [axis for axis, column in enumerate(index) if isinstance(column[0], int)]
        if len(moving) != 1 or any(column[0] != slice(None) for axis, column in enumerate(index) if axis not in moving):
            return False
        axis = moving[0]
        start = self._fit(list(index[axis]), at)
        shapes = [self._runs.traces[run].shapes[op.args[0]] for op, (run, _) in zip(ops, at, strict=True)]
        value = self.rule([op.args[2] for op in ops], at)
        if abs(start.step) != 1 or not _is_rule(value):
            return False
        size = self._fit([shape[axis] for shape in shapes], at)
        firsts = [(op.args[0], (run, None)) for op, (run, step) in zip(ops, at, strict=True) if step == 0]
        outside = Rules(self._runs, self._parts[: self._number], None, None)
        before = outside.rule([value for value, _ in firsts], [each for _, each in firsts])
        rows = self._output(self._number, value)
        count = self._loop.count
        self._loop.filled[place] = Filled(rows, before, axis, replace(start, step=0), count, size, start.step < 0)
        return True


def _constant(value: int) -> Number:
    return Number((((), value),) if value else ())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Input | Weight | Ref | Pick)


def _is_rule(value: Any) -> bool:
    return isinstance(value, Place | Carried | Scan | Picked | Outer | Input | Weight | Rows | Final)


def _inside(value: Any) -> bool:
    """Whether a tensor is of an iteration."""
    while isinstance(value, Picked):
        value = value.source
    return isinstance(value, Place | Carried | Scan)
