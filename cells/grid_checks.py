"""Checks of what a Grid LSTM is made of and called with."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .checks import CellError, check_lengths
from .lengths import whole_axis
from .sizes import check_sizes

__all__ = ["check_choice", "check_dimensions", "check_grid_state", "grid_sizes"]


def check_choice(what: str, value: object, accepted: Sequence[str]) -> None:
    """Refuse what is not one of the given words."""
    if value not in accepted:
        raise CellError(f"GridLSTM: {what} is {value!r}; accepted is one of {', '.join(map(repr, accepted))}")


def check_dimensions(what: str, given: object, count: int) -> None:
    """Refuse what is not a collection of dimensions 0 to count - 1."""
    if isinstance(given, str) or not isinstance(given, Collection):
        raise CellError(f"GridLSTM: {what} is {given!r}; accepted is a collection of dimensions")
    for each in given:
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < count:
            accepted = f"dimensions 0 to {count - 1}" if count else "none, as depth is the only dimension"
            raise CellError(f"GridLSTM: {what} has {each!r}; accepted are {accepted}")


def check_grid_state(state: object, names: Sequence[str], shape: Sequence[int], fixed: Collection[int]) -> None:
    """Refuse a state that is not a pair of tensors of one shape.

    Args:
        state: what is given.
        names: of the tensors that it must hold, in order; what comes after them is not looked at.
        shape: of each.
        fixed: the axes whose sizes are the cell's own. Under export only they are compared: the others are symbols,
            which a comparison would tie together.

    Raises:
        CellError: naming what it is and what is accepted.
    """
    if not isinstance(state, tuple | list) or len(state) != 2:
        raise CellError(f"GridLSTM: state is a {type(state).__name__}; accepted is a tuple (h, m)")
    compared = fixed if torch.compiler.is_exporting() else range(len(shape))
    for name, tensor in zip(names, state, strict=False):
        if not isinstance(tensor, Tensor):
            raise CellError(f"GridLSTM: state '{name}' is a {type(tensor).__name__}; accepted is a tensor")
        if tensor.dim() != len(shape) or any(tensor.shape[axis] != shape[axis] for axis in compared):
            got, wanted = (list(map(str, each)) for each in (tensor.shape, shape))
            raise CellError(f"GridLSTM: state '{name}' has shape {got}; accepted is {wanted}")


def grid_sizes(lengths: Tensor | None, grid: Sequence[int], batch: int) -> Tensor | None:
    """Check the lengths of a batch along all dimensions but depth.

    Args:
        lengths: integer [batch, N - 1], over time and depth [batch]; or None.
        grid: the sizes of these dimensions.
        batch: size of the batch axis.

    Returns:
        int64 [batch, N - 1] without negatives, or None.

    Raises:
        CellError: if they are not accepted.
    """
    if lengths is None:
        return None
    if not grid:
        raise CellError("GridLSTM: lengths are given; accepted is None where depth is the only dimension")
    if len(grid) > 1:
        return check_sizes(lengths, grid, batch)
    return whole_axis(check_lengths(lengths, grid[0], batch), grid[0]).unsqueeze(1)
