"""Python loops over time as recurrences: a module whose forward runs such loops as one whose recurrences are dynamic.

A loop around a single-step cell, or around a cell of the user's own, fixes its number of steps when it is traced. Here
the calls that the loop makes are recorded at several sizes of every axis (`recording`), the rules that they follow are
found (`reading`), and a module that follows the rules takes the place of the user's (`rolled`) if it computes the same
at other sizes.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.errors import CellportError
from cellport.manifest import BATCH, TIME

from .capture import unlike_sizes
from .constants import numbers_of
from .drawing import draw
from .flat import in_precision, results
from .hoisting import hoisted
from .reading import programs
from .recording import record
from .rolled import Rerolled
from .signature import Leaf, axis_names
from .traces import NotALoop, Trace

__all__ = ["Rerolled", "reroll"]

_RUNS = 8
_LENGTHS = 3
_PROVED = ((1, 1), (1, 3), (2, 2), (3, 1), (4, 1), (8, 3), (40, 2), (5, 100), (150, 1), (300, 2), (1100, 1))
"""Steps and batch sizes. A branch on a size beyond, which no number in the code tells of, is not seen."""

_LONGEST, _LARGEST = 1200, 600
"""Steps and rows up to which the numbers in the code are tried."""
_TOLERANCE = 1e-9


def reroll(model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> tuple[Rerolled | None, str]:
    """Make a module's loops over time recurrences.

    Args:
        model: a module that torch.export traces at a fixed number of steps.
        leaves: its arguments.
        structure: how they are put together.

    Returns:
        The module and what became of its loops; or None and why it could not be made.
    """
    axes = {
        axis: (place, leaf.axes.index(axis))
        for place, leaf in reversed([*enumerate(leaves)])
        for axis in leaf.axes
        if isinstance(axis, str)
    }
    if TIME not in axes:
        return None, f"no input has an axis {TIME!r}"
    reason = ""
    try:
        traces = hoisted(_traces(model, leaves, structure))
        for program in programs(traces, axes):
            if not program.loops:
                return None, "no operators in it repeat over the steps"
            made = Rerolled(model, program)
            differs = _why_not_the_module(made, model, leaves, structure)
            if differs is None:
                sizes = " and ".join(str(sum(call is not None for call in loop.body)) for loop in program.loops)
                return made, f"a Python loop of {sizes} operators a step became a recurrence"
            reason = reason or differs
    except NotALoop as error:
        return None, reason or str(error)
    return None, reason


def _traces(model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> list[Trace]:
    """What a module calls at several lengths and other sizes, the last time in float64."""
    first = unlike_sizes(model, leaves)
    primes = [number for number in range(5, 200) if all(number % each for each in range(2, number))]
    taken = {size for each in (*model.parameters(), *model.buffers()) for size in each.shape}
    free = [number for number in primes if number not in taken]
    lengths, others = free[:_LENGTHS], free[_LENGTHS:]
    tensors = (each.dtype for each in (*model.parameters(), *model.buffers()) if each.is_floating_point())
    own = next(tensors, torch.float32)
    traces = []
    for number in range(_RUNS):
        dtype = torch.float64 if number == _RUNS - 1 else own
        names = [axis for axis in axis_names(leaves) if axis != TIME]
        sizes = {axis: others[(3 * place + number * (place + 1)) % 8] for place, axis in enumerate(names)}
        sizes = {**dict.fromkeys(first, 0), **sizes, TIME: lengths[number % _LENGTHS]}
        try:
            with _silent(dtype):
                traces.append(record(_in(model, dtype, own), leaves, structure, sizes, dtype))
        except NotALoop:
            raise
        except Exception as error:  # whatever the user's forward raises
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotALoop(f"it does not run with the sizes {sizes}: {said}") from error
    return traces


def _in(model: nn.Module, dtype: torch.dtype, own: torch.dtype) -> nn.Module:
    return model if dtype == own else in_precision(model, dtype)


@contextmanager
def _silent(dtype: torch.dtype) -> Iterator[None]:
    """Without warnings, and with another precision for what names none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


def _why_not_the_module(made: Rerolled, model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> str | None:
    """Compare in float64 at lengths and batch sizes of which the traces were none."""
    original, rolled = in_precision(model, torch.float64), in_precision(made, torch.float64)
    with _silent(torch.float64):
        for number, (steps, batch) in enumerate([*_PROVED, *_sizes_in_code(model)]):
            values = _drawn(leaves, {**unlike_sizes(model, leaves), BATCH: batch, TIME: steps}, number)
            truth = _answers(original, values, structure)
            if isinstance(truth, str):
                continue  # it does not run at this size, such as with lengths that must be longer
            found = _answers(rolled, values, structure)
            if isinstance(found, str):
                return f"the loop as a recurrence does not run over {steps} steps and {batch} rows: {found}"
            for index, (one, other) in enumerate(zip(truth, found, strict=True)):
                if one.shape != other.shape or not np.allclose(one, other, _TOLERANCE, _TOLERANCE, equal_nan=True):
                    return f"result {index} of the loop as a recurrence differs over {steps} steps and {batch} rows"
    return None


def _sizes_in_code(model: nn.Module) -> list[tuple[int, int]]:
    """Steps and batch sizes around the numbers that the code may compare them to."""
    named = {int(each) for each in numbers_of(model) if each == int(each) and each > 1}
    around = sorted({number + change for number in named for change in (-1, 0, 1)})
    steps = [(each, 1) for each in around if 1 <= each <= _LONGEST]
    return [*steps, *((2, each) for each in around if 1 <= each <= _LARGEST)]


def _drawn(leaves: Sequence[Leaf], sizes: Mapping[str, int], seed: int) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    values = []
    for leaf in leaves:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in leaf.axes)
        bounds = None if leaf.rows is None else (0, leaf.rows - 1)
        value = torch.from_numpy(
            draw(rng, shape, str(leaf.example.numpy().dtype), bounds, leaf.example.numpy(), leaf.special)
        )
        values.append(value.double() if value.is_floating_point() else value)
    return values


def _answers(model: nn.Module, values: Sequence[Tensor], structure: Any) -> list[np.ndarray[Any, Any]] | str:
    """What a module computes, or why it does not."""
    try:
        with torch.no_grad():
            found = model(*pytree.tree_unflatten([each.clone() for each in values], structure))
    except (CellportError, RuntimeError, IndexError, ValueError, TypeError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return [each.numpy() for each in results(found)]
