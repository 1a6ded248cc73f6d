"""Checks of what a caller passes to a cell, and the error that they raise."""

import math
from numbers import Real
from typing import TypeGuard

import torch
from torch import Tensor

from cellport.errors import CellportError

__all__ = [
    "CellError",
    "check_flag",
    "check_input",
    "check_lengths",
    "check_number",
    "check_probability",
    "check_size",
    "check_state",
]

INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class CellError(CellportError, ValueError):
    """A recurrent cell was built or called with something that it does not accept."""


def check_size(cell: str, what: str, value: object, least: int = 1) -> None:
    """Refuse a size that is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CellError(f"{cell}: {what} is {value!r}; accepted is an integer of at least {least}")


def check_flag(cell: str, what: str, value: object) -> None:
    """Refuse a flag that is not a bool, such as a probability in the place of one."""
    if not isinstance(value, bool):
        raise CellError(f"{cell}: {what} is {value!r}; accepted is True or False")


def check_number(cell: str, what: str, value: object) -> None:
    """Refuse what is not a finite number."""
    if not _is_number(value):
        raise CellError(f"{cell}: {what} is {value!r}; accepted is a finite number")


def check_probability(cell: str, what: str, value: object) -> None:
    """Refuse what is not a number from 0 to 1."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise CellError(f"{cell}: {what} is {value!r}; accepted is a probability, 0 to 1")


def check_input(cell: str, input: object, rank: int, axes: str, input_size: int, like: Tensor | None = None) -> None:
    """Refuse an input whose type, element type, rank or feature axis is not the cell's.

    Args:
        cell: its name.
        input: what it is called with.
        rank: number of axes.
        axes: their names.
        input_size: size of the last.
        like: a parameter, whose element type the input must have unless autocast converts it.

    Raises:
        CellError: naming the cell, what it got and what it accepts.
    """
    if not isinstance(input, Tensor):
        raise CellError(f"{cell}: input is a {type(input).__name__}; accepted is a tensor {axes}")
    if like is not None and input.dtype != like.dtype and not torch.is_autocast_enabled(input.device.type):
        raise CellError(f"{cell}: input has dtype {input.dtype}; accepted is the parameters' {like.dtype}")
    if input.dim() != rank or input.shape[-1] != input_size:
        raise CellError(
            f"{cell}: input has shape {_shape(input)}; accepted is {axes} with {input_size} features"
            + (" (add a batch axis of 1 for a single sequence)" if input.dim() == rank - 1 else "")
        )


def check_state(cell: str, name: str, state: object, shape: tuple[int, ...]) -> None:
    """Refuse a state tensor that does not have the given shape.

    The batch axis is not compared under export, where it is a symbol that the comparison would constrain.

    Raises:
        CellError: naming the cell, the state, what it got and the shape it accepts.
    """
    if not isinstance(state, Tensor):
        raise CellError(f"{cell}: state '{name}' is a {type(state).__name__}; accepted is a tensor {list(shape)}")
    got = tuple(state.shape)
    if torch.compiler.is_exporting():
        agrees = len(got) == len(shape) and got[-1] == shape[-1] and (len(got) == 2 or got[0] == shape[0])
    else:
        agrees = got == shape
    if not agrees:
        raise CellError(f"{cell}: state '{name}' has shape {list(got)}; accepted is {list(shape)}")


def check_lengths(lengths: Tensor, steps: int, batch: int) -> Tensor:
    """Check the lengths of a batch and give them as int64.

    Args:
        lengths: [batch], any integer dtype; each at most `steps`, or negative for the whole time axis.
        steps: size of the time axis.
        batch: size of the batch axis.

    Returns:
        int64 [batch], negatives unchanged.

    Raises:
        CellError: if the shape, the dtype or, outside export, a value is not accepted.
    """
    if lengths.dtype not in INTEGER_DTYPES:
        raise CellError(f"lengths have dtype {lengths.dtype}; accepted is an integer dtype, such as torch.int64")
    if lengths.dim() != 1:
        raise CellError(f"lengths have shape {_shape(lengths)}; accepted is [batch]")
    if not torch.compiler.is_exporting():
        if lengths.shape[0] != batch:
            raise CellError(f"lengths have shape {_shape(lengths)}; accepted is [batch] = [{batch}]")
        if batch and int(lengths.max()) > steps:
            raise CellError(
                f"lengths have the value {int(lengths.max())}; accepted is 0 to {steps}, the size of the time axis, "
                "or a negative number for the whole axis"
            )
    return lengths.to(torch.int64)


def _is_number(value: object) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _shape(tensor: Tensor) -> list[int | str]:
    """The shape with symbolic sizes as words, so that formatting an error never specialises a dynamic axis."""
    return [size if isinstance(size, int) else str(size) for size in tensor.shape]
