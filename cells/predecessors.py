"""What a step of a wavefront sees of the diagonal before: the states of the predecessors along one dimension."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .diagonals import Diagonals
from .windows import LeaveOut, Windows

__all__ = ["Part", "Predecessors"]

Part = tuple[int, int] | None
"""From where to where in the last axis of a tensor, or all of it."""


class Predecessors:
    """The states of the predecessors along one dimension, from those of the diagonal before.

    What the tracer of torch's scan is to see as a constant is made here, outside of the step.

    Args:
        diagonals: of the grid.
        dimension: which.
        border: what is outside of the grid.
        sides: what enters along this dimension instead, by the number of the state's tensor.
        parts: what is seen of each of the state's tensors.
        windows: of a file that computes a part of the slots.
    """

    def __init__(
        self,
        diagonals: Diagonals,
        dimension: int,
        border: list[Tensor],
        sides: dict[int, Tensor],
        parts: Sequence[Part],
        windows: Windows | None = None,
    ) -> None:
        self.dimension = dimension
        self.same = dimension == diagonals.along
        self.apart = dimension == diagonals.apart
        self.axis = diagonals.rows_axis - (1 if self.apart else 0)
        self.parts, self.windows = parts, windows
        if not self.same:
            self._prepare(diagonals, dimension, border, sides)
        if windows is not None:
            self._prepare_windows(windows, diagonals)

    def _prepare(self, diagonals: Diagonals, dimension: int, border: list[Tensor], sides: dict[int, Tensor]) -> None:
        # The tracer refuses two views of one tensor.
        self.ends = [
            None if i in sides else _part(diagonals.enter_same(leaf, dimension), self.parts[i]).clone()
            for i, leaf in enumerate(border)
        ]
        if not self.apart:
            # The slots that are rows, and the images.
            dimensions = diagonals.in_rows
            self.rows = [*(diagonals.grid[d] for d in dimensions), diagonals.batch]
            self.place = dimensions.index(dimension)
            self.of_border = diagonals.neighbours(dimension, of_side=False)
            self.of_side = diagonals.neighbours(dimension, of_side=True)

    def _prepare_windows(self, windows: Windows, diagonals: Diagonals) -> None:
        last = [[] if part is None else [(-1, *part)] for part in self.parts]
        own: LeaveOut = "first" if windows.border else None
        if self.same:
            self.cuts = [windows.cut(own, part) for part in last]
        elif self.apart:
            count = diagonals.grid[self.dimension]
            # What the last slot has goes nowhere; where their number is fixed, it is left out at once.
            before = [(self.axis, 0, count - 1)] if isinstance(count, int) else []
            self.cut_last = not before
            self.cuts = [windows.cut(own, [*before, *part]) for part in last]
            self.cut_near = windows.cut()
        elif self.place == 0 and windows.border:
            # The border is the first slot's predecessor.
            self.cuts = [windows.cut("last", part) for part in last]
        elif self.place == 0:
            self.cuts = [windows.cut("last") for _ in last]
            one = [None if end is None else list(end.shape) for end in self.ends]
            for shape in filter(None, one):
                shape[self.axis] = windows.unit
            self.ends = [
                None if end is None or shape is None else end.new_zeros(shape)
                for end, shape in zip(self.ends, one, strict=True)
            ]
        else:
            self.cuts = [windows.cut() for _ in last]
            if windows.border:
                self.of_border, self.of_side = self.of_border + windows.unit, self.of_side + windows.unit

    def __call__(self, old: list[Tensor], near: dict[int, Tensor], bounds: Sequence[Tensor] = ()) -> list[Tensor]:
        """The state's tensors.

        Args:
            old: of the diagonal before.
            near: those that enter on this diagonal, by their number.
            bounds: what the step is given of the windows.
        """
        if self.windows is not None:
            # One index for all tensors that the same kind of border belongs to.
            indices: dict[bool, Tensor] = {}
            return [self._in_window(leaf, i, near, bounds, indices) for i, leaf in enumerate(old)]
        seen = [_part(leaf, part) for leaf, part in zip(old, self.parts, strict=True)]
        return seen if self.same else [self._shift(leaf, i, near) for i, leaf in enumerate(seen)]

    def _in_window(
        self, leaf: Tensor, i: int, near: dict[int, Tensor], bounds: Sequence[Tensor], indices: dict[bool, Tensor]
    ) -> Tensor:
        assert self.windows is not None
        cut = self.cuts[i]
        if self.same or (not self.apart and self.place == 0 and self.windows.border):
            return cut(leaf, bounds)
        end = self.ends[i]
        entering = near[i] if end is None else end
        if self.apart:
            both = torch.cat([self.cut_near(entering, bounds), cut(leaf, bounds)], self.axis)
            return both[(slice(None),) * self.axis + (slice(None, -1),)] if self.cut_last else both
        leaf = _part(leaf, self.parts[i])
        if self.place == 0:
            return cut(torch.cat([entering, leaf], self.axis), bounds)
        if (end is None) not in indices:
            indices[end is None] = cut(self.of_side if end is None else self.of_border, bounds)
        return torch.cat([leaf, entering], self.axis).index_select(self.axis, indices[end is None])

    def _shift(self, leaf: Tensor, i: int, near: dict[int, Tensor]) -> Tensor:
        end = self.ends[i]
        if self.apart:
            # Cut off afterwards: torch.export takes a size of n - 1 for a reason to exclude that it is 1.
            both = torch.cat([near[i] if end is None else end, leaf], self.axis)
            return both[(slice(None),) * self.axis + (slice(None, -1),)]
        if not torch.compiler.is_exporting():
            return self._shift_views(leaf, near[i] if end is None else end, of_side=end is None)
        if self.place == 0 and (end is None or len(self.rows) == 2):
            # The rows are shifted by those of the near side; cut off afterwards for the reason above.
            both = torch.cat([near[i] if end is None else end, leaf], self.axis)
            return both.narrow(self.axis, 0, leaf.shape[self.axis])
        both = torch.cat([leaf, near[i] if end is None else end], self.axis)
        return both.index_select(self.axis, self.of_side if end is None else self.of_border)

    def _shift_views(self, leaf: Tensor, end: Tensor, of_side: bool) -> Tensor:
        """What the gather of an export selects, whose gradient is many times slower than that of views."""
        rows, place, axis = self.rows, self.place, self.axis
        front, tail = leaf.shape[:axis], leaf.shape[axis + 1 :]
        near = [1 if each == place or not (of_side or each == len(rows) - 1) else n for each, n in enumerate(rows)]
        first = end.reshape(*front, *near, *tail)
        first = first.expand(*front, *[1 if each == place else n for each, n in enumerate(rows)], *tail)
        values = leaf.reshape(*front, *rows, *tail).narrow(axis + place, 0, rows[place] - 1)
        return torch.cat([first, values], axis + place).reshape(leaf.shape)


def _part(leaf: Tensor, part: Part) -> Tensor:
    return leaf if part is None else leaf[..., part[0] : part[1]]
