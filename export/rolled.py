"""A module whose Python loops over time are recurrences: the calls of its forward, by the rules found in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.cells.recurrence import unroll

from .affine import Number
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
    Program,
    Rows,
    Scan,
    Span,
    Steps,
)
from .traces import Input, Layer, Weight

__all__ = ["Rerolled"]


class Rerolled(nn.Module):
    """The calls of a module's forward, with its loops over time as recurrences.

    It has the module's own parts under their names.

    Args:
        model: the module.
        program: its calls.
    """

    def __init__(self, model: nn.Module, program: Program) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.program = program
        self.eval()

    def forward(self, *args: Any) -> Any:
        """Run the calls."""
        program = self.program
        run = self._run(args, len(program.parts))
        found = [run.value(each, _Iteration()) for each in program.results]
        return pytree.tree_unflatten(found, program.structure)

    def initial(self, number: int, args: tuple[Any, ...]) -> list[Tensor]:
        """The state with which the loop that is a given part begins."""
        loop = self.program.parts[number]
        assert isinstance(loop, Loop)
        return self._run(args, number).initial(loop)

    def _run(self, args: tuple[Any, ...], count: int) -> "_Run":
        """The first parts, run."""
        program = self.program
        leaves = pytree.tree_leaves(args)
        run = _Run(self, leaves, {name: leaves[place].shape[axis] for name, (place, axis) in program.sizes.items()})
        for number, part in enumerate(program.parts[:count]):
            if isinstance(part, Loop):
                run.loop(number, part)
            else:
                run.outer[number] = run.call(part, _Iteration())
        return run

    def weight(self, weight: Weight) -> Tensor:
        """A tensor of the module."""
        if not weight.owned:
            return self.program.held[weight.name]
        path, _, name = weight.name.rpartition(".")
        found = getattr(self.get_submodule(path), name)
        assert isinstance(found, Tensor)
        return found

    def dtype(self) -> torch.dtype:
        """The precision that the module is in now."""
        tensors = (each.dtype for each in (*self.parameters(), *self.buffers()) if each.is_floating_point())
        return next(tensors, torch.get_default_dtype())


@dataclass
class _Iteration:
    """What one iteration has: what its calls returned so far, the state, the inputs."""

    calls: list[list[Any]] = field(default_factory=list)
    state: Sequence[Tensor] = ()
    inputs: Sequence[Tensor] = ()


class _Run:
    """One run of a program."""

    def __init__(self, owner: Rerolled, leaves: Sequence[Any], sizes: Mapping[str, Any]) -> None:
        self.outer: dict[int, list[Any]] = {}
        self._owner, self._leaves, self._sizes = owner, leaves, sizes
        self._loops: dict[int, tuple[Sequence[Tensor], Sequence[Tensor]]] = {}

    def loop(self, number: int, loop: Loop) -> None:
        """Run all steps of a loop."""
        lead = loop.lead
        inputs = tuple(self._rows_of(each, lead) for each in loop.scans)
        if lead or not inputs:
            inputs = (*inputs, self._counted(loop.count.plus(lead)))

        def step(state: tuple[Tensor, ...], scanned: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Any]:
            now = _Iteration([], state, scanned)
            for call in loop.body:
                now.calls.append([] if call is None else self.call(call, now))
            new = tuple(self.value(each, now) for each in loop.new)
            if lead:
                new = tuple(torch.where(scanned[-1] < lead, old, each) for old, each in zip(state, new, strict=True))
            return new, tuple(self.value(each, now) for each in loop.outputs)

        outputs, final = unroll(step, tuple(self.initial(loop)), inputs)
        self._loops[number] = outputs, final

    def initial(self, loop: Loop) -> list[Tensor]:
        """The state with which a loop begins."""
        found = []
        for rule, shape in zip(loop.initial, loop.shapes, strict=True):
            value = self.value(rule, _Iteration())
            value = value if shape is None else value.expand([size.at(self._sizes) for size in shape])
            found.append(value.clone())  # two that are parts of one tensor would be taken for aliases
        return found

    def call(self, call: Call, now: _Iteration) -> list[Any]:
        """Run one call; the tensors that it returns."""
        if call.args and isinstance(call.args[0], Joined):
            return [self._joined(call, now)]
        args = [self.value(each, now) for each in call.args]
        kwargs = {name: self.value(each, now) for name, each in call.kwargs.items()}
        target = call.target
        if isinstance(target, Layer):
            target = self._owner.get_submodule(target.path)
        return list(pytree.tree_leaves(target(*args, **kwargs)))

    def value(self, rule: Any, now: _Iteration) -> Any:
        """What a rule gives."""
        if isinstance(rule, Picked) and isinstance(rule.source, Rows):
            start, size = self._place_of(Along(rule.source, 0, rule.index, rule.size, rule.size, False))
            return self._picked(Picked(rule.source, 0, start, size, False), self.value(rule.source, now))
        match rule:
            case Number():
                return rule.at(self._sizes)
            case Input():
                return self._leaves[rule.position]
            case Weight():
                return self._owner.weight(rule)
            case Outer():
                return self.outer[rule.call][rule.leaf]
            case Place():
                return now.calls[rule.call][rule.leaf]
            case Carried():
                return now.state[rule.slot]
            case Scan():
                picked = now.inputs[rule.slot]
                return picked if rule.axis is None else picked.unsqueeze(rule.axis)
            case Picked():
                return self._picked(rule, self.value(rule.source, now))
            case Final():
                return self._loops[rule.loop][1][rule.slot]
            case Rows():
                return self._loops[rule.loop][0][rule.slot]
            case Filled():
                return self._filled(rule)
            case InPrecision():
                return dict(rule.values)[self._owner.dtype()]
            case slice():
                return slice(*(self.value(each, now) for each in (rule.start, rule.stop, rule.step)))
            case tuple() | list():
                return type(rule)(self.value(each, now) for each in rule)
            case dict():
                return {name: self.value(each, now) for name, each in rule.items()}
        return rule

    def _picked(self, rule: Picked, source: Tensor) -> Tensor:
        from_end = rule.index.minus(rule.size).constant
        index = (
            self.value(rule.index, _Iteration()) if rule.index.constant is not None or from_end is None else from_end
        )
        picked = source.select(rule.axis, index)
        return picked.unsqueeze(rule.axis) if rule.keep else picked

    def _rows_of(self, along: Along, lead: int = 0) -> Tensor:
        """Places of an axis as rows of axis 0, in the order of the steps, with `lead` more of any in front."""
        count = along.count.plus(lead)
        if isinstance(along.source, Steps):
            steps = along.source
            numbers: Tensor = (self._counted(count) - lead) * steps.factor + steps.start.at(self._sizes)
            return numbers
        start, size = self._place_of(along)
        start = start.plus(lead) if along.backwards else start.minus(lead)
        source: Tensor = self.value(along.source, _Iteration())
        rows: Tensor = source.movedim(along.axis, 0)
        first = start.minus(count).plus(1) if along.backwards else start
        if count != size or first.terms:  # a part cut out would have to be known to be neither 0 nor 1 nor too long
            places = self._counted(count) * (-1 if along.backwards else 1) + start.at(self._sizes)
            return rows.index_select(0, places.clamp(min=0) if lead else places)
        return rows.flip(0) if along.backwards else rows

    def _place_of(self, along: Along) -> tuple[Number, Number]:
        """Where rows begin, and how many there are, in the tensor that holds them."""
        loop = self._owner.program.parts[along.source.loop] if isinstance(along.source, Rows) else None
        lead = loop.lead if isinstance(loop, Loop) else 0
        return along.start.plus(lead), along.size.plus(lead)

    def _counted(self, count: Number) -> Tensor:
        return torch.arange(count.at(self._sizes))

    def _joined(self, call: Call, now: _Iteration) -> Tensor:
        """torch.stack or torch.cat of a list that holds a tensor a step."""
        axis = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", call.kwargs.get("axis", 0))
        stacks = call.target.__name__ == "stack"
        items = call.args[0].items
        if len(items) > 1:
            rows = self._mixed(items, now)
        else:
            rows = self._spanned(items[0], self._rows_of(items[0].along))
        if stacks:
            return rows.movedim(0, axis).contiguous()
        place = axis % (rows.dim() - 1)
        return rows.movedim(0, place).flatten(place, place + 1)

    @staticmethod
    def _spanned(item: Span, rows: Tensor) -> Tensor:
        return rows.unsqueeze(item.along.axis + 1) if item.keep else rows

    def _mixed(self, items: Sequence[Any], now: _Iteration) -> Tensor:
        """Spans and single tensors as rows; spans are taken whole and then picked from, as a size may be 0 or 1."""
        parts: list[Tensor] = []
        total, base = Number(()), Number(())
        picks: list[tuple[Number, Number, int]] = []
        for item in items:
            if isinstance(item, Span):
                along = item.along
                start, size = self._place_of(along)
                rows = self.value(along.source, now).movedim(along.axis, 0)
                parts.append(self._spanned(item, rows))
                picks.append((total, base.plus(start), -1 if along.backwards else 1))
                total, base = total.plus(along.count), base.plus(size)
            else:
                parts.append(self.value(item, now).unsqueeze(0))
                picks.append((total, base, 1))
                total, base = total.plus(1), base.plus(1)
        counted = self._counted(total)
        places = counted
        for offset, start, way in picks:
            here = (counted - offset.at(self._sizes)) * way + start.at(self._sizes)
            places = here if offset == Number(()) else torch.where(counted >= offset.at(self._sizes), here, places)
        return torch.cat(parts).index_select(0, places)

    def _filled(self, rule: Filled) -> Tensor:
        """A tensor into which a loop wrote."""
        rows: Tensor = self.value(rule.rows, _Iteration())
        before: Tensor = self.value(rule.before, _Iteration())
        start, size = self._place_of(Along(rule.rows, 0, Number(()), rule.count, rule.count, False))
        if rule.size == rule.count and not start.terms:
            rows = rows.flip(0) if rule.backwards else rows
            return rows.movedim(0, rule.axis).to(before.dtype).contiguous()
        written = self._counted(rule.size) - rule.start.at(self._sizes)
        written = -written if rule.backwards else written
        taken = (written + start.at(self._sizes)).clamp(0, size.at(self._sizes) - 1)
        moved = rows.index_select(0, taken).movedim(0, rule.axis).to(before.dtype)
        inside = (written >= 0) & (written < rule.count.at(self._sizes))
        shape = [1] * before.dim()
        shape[rule.axis] = -1
        return torch.where(inside.view(shape), moved, before)
