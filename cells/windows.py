"""The slots of a diagonal that hold positions, as one range of rows: what a step of a file computes of it.

A diagonal has a slot for each place along the dimensions other than one, and at the corners of a grid most of them hold
no position. Those that do lie between two places of the first of these dimensions. The rows of slots and images have
that dimension outermost, so that they are neighbours, and a file that starts from zeros takes these rows out of the
state, computes them, and puts zeros around them.

How many rows that are differs from step to step, which torch's tracer refuses. So it sees operators that give all rows,
whose translations to ONNX are a Slice and a Pad; `export/passes/narrow_scans.py` has a look at what is between them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .diagonals import Diagonals

__all__ = ["LeaveOut", "Windows", "choose", "widen", "window"]

LeaveOut = Literal["first", "last"] | None


@torch.library.custom_op("cellport::window", mutates_args=())
def window(
    values: Tensor,
    starts: Tensor,
    stops: Tensor,
    border: Tensor | None,
    in_front: bool,
    axes: Sequence[int],
    others: Sequence[int],
) -> Tensor:
    """Some rows of a tensor; in a file those of the step's window alone.

    Args:
        values: [...].
        starts: int64 [axes], where the window begins.
        stops: int64 [axes], where it ends.
        border: as many rows as are left out of all of them, or None. It is a tensor because torch's tracer fails on a
            size of three factors that a step is given as a number.
        in_front: whether the first are left out, or the last.
        axes: that of rows first, and others of which a constant part is taken.
        others: from and to along each of the other axes.
    """
    left_out = 0 if border is None else border.shape[0]
    values = values.narrow(axes[0], left_out if in_front else 0, values.shape[axes[0]] - left_out)
    for axis, start, stop in zip(axes[1:], others[::2], others[1::2], strict=True):
        values = values.narrow(axis, start, stop - start)
    return values.clone(memory_format=torch.contiguous_format)


@window.register_fake
def _(
    values: Tensor,
    starts: Tensor,
    stops: Tensor,
    border: Tensor | None,
    in_front: bool,
    axes: Sequence[int],
    others: Sequence[int],
) -> Tensor:
    shape = list(values.shape)
    if border is not None:
        shape[axes[0]] = shape[axes[0]] - border.shape[0]
    for axis, start, stop in zip(axes[1:], others[::2], others[1::2], strict=True):
        shape[axis] = stop - start
    return values.new_empty(shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, _, _, border, ctx.in_front, ctx.axes, ctx.others = inputs
    ctx.border, ctx.shape = (0 if border is None else border.shape[0]), values.shape


def _window_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    whole = gradient.new_zeros(ctx.shape)
    part = whole.narrow(ctx.axes[0], ctx.border if ctx.in_front else 0, ctx.shape[ctx.axes[0]] - ctx.border)
    for axis, start, stop in zip(ctx.axes[1:], ctx.others[::2], ctx.others[1::2], strict=True):
        part = part.narrow(axis, start, stop - start)
    part.copy_(gradient)
    return whole, None, None, None, None, None, None


window.register_autograd(_window_gradient, setup_context=_keep)


@torch.library.custom_op("cellport::widen", mutates_args=())
def widen(values: Tensor, pads: Tensor, border: Tensor | None, axis: int) -> Tensor:
    """All rows of a tensor with a border of zeros in front; in a file of those of the window, with zeros on both sides.

    Args:
        values: [...].
        pads: int64 [2], how many rows of zeros there are before and after the window.
        border: as many rows as are in front of all rows, or None.
        axis: that of rows.
    """
    front = list(values.shape)
    front[axis] = 0 if border is None else border.shape[0]
    return torch.cat([values.new_zeros(front), values], axis)


@widen.register_fake
def _(values: Tensor, pads: Tensor, border: Tensor | None, axis: int) -> Tensor:
    shape = list(values.shape)
    if border is not None:
        shape[axis] = shape[axis] + border.shape[0]
    return values.new_empty(shape)


def _keep_axis(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, _, _, ctx.axis = inputs
    ctx.rows = values.shape[ctx.axis]


def _widen_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient.narrow(ctx.axis, gradient.shape[ctx.axis] - ctx.rows, ctx.rows), None, None, None


widen.register_autograd(_widen_gradient, setup_context=_keep_axis)


@torch.library.custom_op("cellport::choose", mutates_args=())
def choose(narrow: Tensor, whole: Tensor) -> Tensor:
    """The bounds of a window, or those of all slots where a step cannot do with fewer; a pass decides."""
    return whole.clone()


@choose.register_fake
def _(narrow: Tensor, whole: Tensor) -> Tensor:
    return torch.empty_like(whole)


class Windows:
    """The windows of all diagonals of a grid.

    Args:
        diagonals: with slots that are rows.
        border: whether states have a slot of zeros in front, along the first dimension of rows.

    Attributes:
        border: whether they have.
        axis: that of rows.
        rows: of all slots.
        unit: rows of one slot along the first dimension.
        scanned: int64 [diagonals, ...] each, what a step is given of the windows.
    """

    def __init__(self, diagonals: Diagonals, border: bool) -> None:
        self.border, self.axis, self.rows, self.unit = border, diagonals.rows_axis, diagonals.rows, diagonals.unit
        low, high = diagonals.active()
        low = choose(low, torch.zeros_like(low))
        high = choose(high, torch.full_like(high, diagonals.grid[diagonals.in_rows[0]]))
        self._low, self._high = low * self.unit, high * self.unit
        self._behind = self.rows - self._high
        # Of one slot; what it holds is not read.
        self.slot = self._low.new_zeros(self.unit)
        self.scanned: list[Tensor] = []
        self._places: dict[object, int] = {}

    def start(self, leaf: Tensor) -> Tensor:
        """Zeros for the state before the first diagonal, from those [..., rows, ...] without a border."""
        shape = list(leaf.shape)
        shape[self.axis] = self.rows + self.unit if self.border else self.rows
        return leaf.new_zeros(shape)

    def without_border(self, leaf: Tensor) -> Tensor:
        """The rows [..., rows, ...] of a state after the last diagonal."""
        return leaf.narrow(self.axis, self.unit, self.rows) if self.border else leaf

    def cut(self, leave_out: LeaveOut = None, others: Sequence[tuple[int, int, int]] = ()) -> "Cut":
        """What takes the rows of the window out of a tensor.

        Args:
            leave_out: the slot that the tensor has more than there are, in front or at the end.
            others: axis, from and to of each other axis that a part is taken of.
        """
        shifted = leave_out == "first"
        key = (shifted, *others)
        if key not in self._places:
            self._places[key] = len(self.scanned)
            mask = self._low.new_tensor([1, *[0 for _ in others]])
            for rows, end in ((self._low, 1), (self._high, 2)):
                bound = (rows + self.unit if shifted else rows).unsqueeze(1)
                if others:
                    bound = bound * mask + rows.new_tensor([0, *[each[end] for each in others]])
                self.scanned.append(bound)
        return Cut(self, self._places[key], leave_out, others)

    def fill(self, border: bool) -> "Fill":
        """What puts zeros around the rows of the window, with those of the border or without."""
        key = ("fill", border)
        if key not in self._places:
            self._places[key] = len(self.scanned)
            self.scanned.append(torch.stack([self._low + self.unit if border else self._low, self._behind], 1))
        return Fill(self, self._places[key], border)


class Cut:
    """What takes the rows of the window out of a tensor."""

    def __init__(
        self, windows: Windows, place: int, leave_out: LeaveOut, others: Sequence[tuple[int, int, int]]
    ) -> None:
        self._windows, self._place, self._leave_out = windows, place, leave_out
        self._axes = [windows.axis, *(each[0] for each in others)]
        self._others = [end for each in others for end in each[1:]]

    def __call__(self, values: Tensor, bounds: Sequence[Tensor]) -> Tensor:
        """The rows of [..., rows, ...] or of [rows], for what a step is given of `Windows.scanned`."""
        axes = self._axes if values.dim() > 1 else [0]
        slot = None if self._leave_out is None else self._windows.slot
        starts, stops = bounds[self._place : self._place + 2]
        taken: Tensor = window(values, starts, stops, slot, self._leave_out == "first", axes, self._others)
        return taken


class Fill:
    """What puts zeros around the rows of the window."""

    def __init__(self, windows: Windows, place: int, border: bool) -> None:
        self._windows, self._place, self._border = windows, place, border

    def __call__(self, values: Tensor, bounds: Sequence[Tensor]) -> Tensor:
        """All rows, from those of the window."""
        slot = self._windows.slot if self._border else None
        filled: Tensor = widen(values, bounds[self._place], slot, self._windows.axis)
        return filled
