"""A module whose forward runs a Python loop over time, as one recurrence.

A loop around a single-step cell, or around a cell of the user's own, fixes its number of steps when it is traced. Here
it is read from traces at three lengths (`unrolled`, `rules`), and becomes the same operators around
`cellport.cells.recurrence`: what an iteration takes from the one before is the state, what it picks along time is a
scanned input, what it appends to a list is an output. The result computes with the module's own weights, and is kept
only if it equals the module at other lengths than those of the traces.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.cells import recurrence
from cellport.errors import CellportError
from cellport.manifest import BATCH, TIME

from .capture import unlike_sizes
from .drawing import draw
from .flat import in_precision, results
from .rules import (
    JOINED,
    STACKED,
    Collected,
    Final,
    Input,
    Integer,
    Loop,
    Moved,
    Outer,
    Picked,
    Place,
    Previous,
    Program,
    Scanned,
    program_of,
)
from .signature import Leaf, axis_names
from .translate import quiet
from .unrolled import NotALoop, Op, Trace, loops_of, read

__all__ = ["Rerolled", "reroll"]

_LENGTHS = (4, 5, 7)
_PROVED = ((1, 1), (1, 3), (2, 2), (3, 1), (8, 3), (40, 2), (150, 1))
_TOLERANCE = 1e-9


class Rerolled(nn.Module):
    """The operators of a module, with its loops over time as recurrences.

    It has the module's own parts under their names.

    Args:
        model: the module.
        program: its operators.
        time: the tensor among the arguments, and its axis, whose size is the number of steps.
    """

    def __init__(self, model: nn.Module, program: Program, time: tuple[int, int]) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for index, value in enumerate(program.constants):
            self.register_buffer(f"_constant_{index}", value.detach())
        self.program = program
        self._time = time
        self._weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._traced = _precision(model)
        self.eval()

    def forward(self, *args: Any) -> Any:
        """Run the operators."""
        leaves = pytree.tree_leaves(args)
        run = _Run(self, leaves, leaves[self._time[0]].shape[self._time[1]])
        for part in self.program.parts:
            if isinstance(part, Loop):
                run.loop(part)
            else:
                run.outer.append(run.call(part, _Iteration()))
        found = [run.value(each, _Iteration()) for each in self.program.results]
        return pytree.tree_unflatten(found, self.program.structure)

    def tensor(self, kind: str, name: Any) -> Tensor:
        """A weight or constant of the program."""
        if kind == "constant":
            return self.get_buffer(f"_constant_{name}")
        return self.get_parameter(name) if name in self._weights else self.get_buffer(name)

    def dtype(self, traced: torch.dtype) -> torch.dtype:
        """The element type that stands for one of the traces: the module may be in another precision now."""
        return _precision(self) if traced == self._traced else traced


def _precision(model: nn.Module) -> torch.dtype:
    tensors = (each for each in (*model.parameters(), *model.buffers()) if each.is_floating_point())
    return next((each.dtype for each in tensors), torch.get_default_dtype())


@dataclass
class _Iteration:
    """What one iteration has: its operators' values so far, the state, the inputs."""

    values: list[Any] = field(default_factory=list)
    state: Sequence[Tensor] = ()
    inputs: Sequence[Tensor] = ()


class _Run:
    """One run of a program."""

    def __init__(self, owner: Rerolled, leaves: Sequence[Any], steps: Any) -> None:
        self.outer: list[Any] = []
        self._owner, self._leaves, self._steps = owner, leaves, steps
        self._loops: list[tuple[Sequence[Tensor], Sequence[Tensor]]] = []

    def loop(self, loop: Loop) -> None:
        """Run a loop over all steps."""

        def step(state: Any, inputs: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            now = _Iteration([], state, inputs)
            for op in loop.body:
                now.values.append(None if op is None else self.call(op, now))
            return tuple(now.values[place] for place in loop.state), tuple(
                self.value(each, now) for each in loop.outputs
            )

        initial = tuple(self.value(each, _Iteration()) for each in loop.initial)
        outputs, final = recurrence(step, initial, tuple(self._along(each) for each in loop.inputs))
        self._loops.append((outputs, final))
        self.outer.append(None)  # a loop has a place among the operators

    def _along(self, scanned: Scanned) -> Tensor:
        rows: Tensor = self.value(scanned.source, _Iteration()).movedim(scanned.axis, 0)
        return rows.flip(0) if scanned.reverse else rows

    def call(self, op: Op, now: _Iteration) -> Any:
        """Run one operator."""
        if op.target == "input":
            return self._leaves[op.args[0]]
        if op.target in ("weight", "constant"):
            return self._owner.tensor(op.target, op.args[0])
        args = [self.value(each, now) for each in op.args]
        if op.target == STACKED:
            return args[0].movedim(0, args[1]).contiguous()  # as a stack is
        if op.target == JOINED:
            axis = args[1] % (args[0].dim() - 1)
            return args[0].movedim(0, axis).flatten(axis, axis + 1)
        return op.target(*args, **{name: self.value(each, now) for name, each in op.kwargs.items()})

    def value(self, value: Any, now: _Iteration) -> Any:
        """The value of an argument."""
        match value:
            case list():
                return [self.value(each, now) for each in value]
            case Integer():
                return value.steps * self._steps + value.constant
            case Outer():
                return self.outer[value.index]
            case Place():
                return now.values[value.index]
            case Previous():
                return now.state[value.slot]
            case Input():
                picked = now.inputs[value.slot]
                return picked.unsqueeze(value.axis) if value.keep else picked
            case Final():
                return self._loops[value.loop][1][value.slot]
            case Collected():
                rows = self._loops[value.loop][0][value.slot]
                return rows[-1] if value.last else rows.flip(0) if value.reverse else rows
            case Moved():
                return self.value(value.rows, now).movedim(0, value.axis).contiguous()
            case Picked():
                picked = self.value(value.source, now).select(value.axis, self.value(value.index, now))
                return picked.unsqueeze(value.axis) if value.keep else picked
            case torch.dtype():
                return self._owner.dtype(value)
        return value


def reroll(model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> tuple[Rerolled | None, str]:
    """Make a module's loops over time recurrences.

    Args:
        model: a module that torch.export traces at a fixed number of steps.
        leaves: its arguments.
        structure: how they are put together.

    Returns:
        The module and what became of its loops; or None and why it could not be made.
    """
    time = next(((place, leaf.axes.index(TIME)) for place, leaf in enumerate(leaves) if TIME in leaf.axes), None)
    if time is None:
        return None, f"no input has an axis {TIME!r}"
    try:
        traces = [_trace(model, leaves, structure, steps) for steps in _LENGTHS]
    except NotALoop as error:
        return None, str(error)
    except Exception as error:  # whatever the user's forward and torch's tracer raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return None, f"it cannot be traced at a fixed length either: {first}"
    reason = "no group of operators is repeated once a step"
    for segments in loops_of(traces):
        if not any(segment.loop for segment in segments):
            continue
        try:
            made = Rerolled(model, program_of(traces, segments), time)
        except NotALoop as error:
            reason = str(error)
            continue
        differs = _why_not_the_module(made, model, leaves, structure)
        if differs is None:
            loops = [part for part in made.program.parts if isinstance(part, Loop)]
            sizes = " and ".join(str(len(loop.body)) for loop in loops)
            return made, f"a Python loop of {sizes} operators a step became a recurrence"
        reason = differs
    return None, reason


def _trace(model: nn.Module, leaves: Sequence[Leaf], structure: Any, steps: int) -> Trace:
    sizes = {**unlike_sizes(model, leaves), TIME: steps}
    values = [leaf.sized(sizes) for leaf in leaves]
    free = [axis for axis in axis_names(leaves) if axis != TIME]
    dimensions = {axis: torch.export.Dim(axis, min=1) for axis in free}
    shapes = [
        {place: dimensions[axis] for place, axis in enumerate(leaf.axes) if axis in dimensions} for leaf in leaves
    ]
    wrapped = _Positional(model, structure)
    with quiet(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.nn's layers set their lists of weights anew while they are traced
        torch._dynamo.reset()
        program = torch.export.export(wrapped, tuple(values), dynamic_shapes=(tuple(shapes),), strict=False)
        return read(program, steps, "model.")


class _Positional(nn.Module):
    """A module as a function of flat tensors."""

    def __init__(self, model: nn.Module, structure: Any) -> None:
        super().__init__()
        self.model = model
        self._structure = structure

    def forward(self, *leaves: Tensor) -> Any:
        return self.model(*pytree.tree_unflatten(list(leaves), self._structure))


def _why_not_the_module(made: Rerolled, model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> str | None:
    """Compare in float64 at lengths and batch sizes of which the traces were none."""
    double = torch.float64
    original, rolled = in_precision(model, double), in_precision(made, double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(double)
    try:
        for number, (steps, batch) in enumerate(_PROVED):
            sizes = {**unlike_sizes(model, leaves), BATCH: batch, TIME: steps}
            values = _drawn(leaves, sizes, number)
            truth = _answers(original, values, structure)
            if truth is None:
                continue  # it does not run at this size, such as with lengths that must be longer
            found = _answers(rolled, values, structure)
            if found is None:
                return f"the loop as a recurrence does not run over {steps} steps"
            for index, (one, other) in enumerate(zip(truth, found, strict=True)):
                if one.shape != other.shape or not np.allclose(one, other, _TOLERANCE, _TOLERANCE, equal_nan=True):
                    return f"result {index} of the loop as a recurrence differs over {steps} steps"
    finally:
        torch.set_default_dtype(before)
    return None


def _drawn(leaves: Sequence[Leaf], sizes: dict[str, int], seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    values = []
    for leaf in leaves:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in leaf.axes)
        bounds = None if leaf.rows is None else (0, leaf.rows - 1)
        value = torch.from_numpy(draw(rng, shape, str(leaf.example.numpy().dtype), bounds, leaf.example.numpy()))
        values.append(value.double() if value.is_floating_point() else value)
    return values


def _answers(model: nn.Module, values: Sequence[Tensor], structure: Any) -> list[np.ndarray[Any, Any]] | None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = model(*pytree.tree_unflatten([each.clone() for each in values], structure))
    except (CellportError, RuntimeError, IndexError, ValueError, TypeError):
        return None
    return [each.numpy() for each in results(found)]
