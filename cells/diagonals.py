"""The index arithmetic of a wavefront: which position of a grid a slot holds on each anti-diagonal, and the way back.

Positions are counted in scan order: from each image's own first corner, which for a direction that runs backwards
along a dimension is the far end of the image. On anti-diagonal q the slot (c_j for j != along) holds the position
with c_along = q - sum of the c_j. Tensors of coordinates have the axes

    [diagonals, directions, slots..., batch]

with size 1 where nothing varies; without flips the axis of directions is not there. The values that a step sees have
slots and batch as one axis of rows, but for a dimension that is kept apart:

    [directions, slots of the dimension apart, rows, ...]

One gather skews, flips and stacks the directions, and one brings everything back.
"""

import functools
import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Diagonals"]


class Diagonals:
    """The schedule of a grid for one batch.

    Args:
        grid: the sizes n_1 to n_N.
        along: the dimension that has no slots, 0 to N - 1.
        apart: a dimension whose slots have an axis of their own, or None.
        batch: images.
        sizes: int64 [batch, N] without negatives, or None.
        flips: for each direction the dimensions that it runs backwards along, or None for one direction without an
            axis of its own.
        device: where the indices are.
    """

    def __init__(
        self,
        grid: Sequence[int],
        along: int,
        apart: int | None,
        batch: int,
        sizes: Tensor | None,
        flips: Sequence[Collection[int]] | None,
        device: torch.device,
    ) -> None:
        self.grid, self.along, self.apart, self.batch = tuple(grid), along, apart, batch
        self.flips, self.device = flips, device
        first = () if apart is None else (apart,)
        self.slots = first + tuple(d for d in range(len(grid)) if d not in (along, apart))
        self._count_apart = len(first)
        self.rows_axis = len(first) + (0 if flips is None else 1)
        # A file may be given images of which no diagonal is left, and the runtime takes no Scan of no steps. The bound
        # is what sizes of 1 along all open axes give: torch's tracer takes a lower one for always kept, and drops it.
        least = 1 + sum(n - 1 for n in grid if isinstance(n, int))
        self.count: int = torch.sym_max(sum(grid) - len(grid) + 1, least)  # type: ignore[no-untyped-call]
        self.leading = 1 if flips is None else 2
        rank = self.leading + len(self.slots) + 1
        self._rank = rank
        self._same_for_images = sizes is None
        self._per_image = sizes is not None or flips is not None
        self._sizes = sizes
        self.sizes: dict[int, Tensor | int] = {
            d: n if sizes is None else self._spread(sizes[:, d], -1) for d, n in enumerate(self.grid)
        }
        self._batch = self._spread(torch.arange(batch, device=device), -1)
        # In scan order, of every slot on every diagonal.
        coordinates = {d: self._range(self.grid[d], self.leading + axis) for axis, d in enumerate(self.slots)}
        coordinates[along] = self._range(self.count, 0) - sum(coordinates.values())
        self.coordinates = coordinates

    @property
    def in_rows(self) -> tuple[int, ...]:
        """The dimensions whose slots are rows, the slowest first."""
        return self.slots[self._count_apart :]

    @property
    def unit(self) -> int:
        """The rows of one slot along the first dimension of rows."""
        return math.prod([*(self.grid[d] for d in self.in_rows[1:]), self.batch])

    @property
    def rows(self) -> int:
        """The rows of all slots."""
        return math.prod([*(self.grid[d] for d in self.in_rows), self.batch])

    def active(self) -> tuple[Tensor, Tensor]:
        """Between which slots along the first dimension of rows there are positions: int64 [diagonals] from and to."""
        largest: dict[int, Tensor | int] = dict(enumerate(self.grid))
        if self._sizes is not None:
            # There may be no images.
            every = torch.cat([self._sizes.new_zeros(1, len(self.grid)), self._sizes])
            largest = dict(enumerate(every.amax(0).unbind()))
        first = self.in_rows[0]
        place = torch.arange(self.count, device=self.device)
        high = torch.where(place < largest[first], place + 1, largest[first])
        # Where the last of the other dimensions' slots has its last position.
        reach = _total([largest[d] - 1 for d in range(len(self.grid)) if d != first])
        low = torch.where(place - reach < high, place - reach, high - 1)
        return low.clamp(min=0), high

    def valid(self) -> Tensor:
        """Which slots hold a position of their image: bool [diagonals, (1), (slots of the dimension apart), rows]."""
        inside = self._inside(self.coordinates)
        shape = [self.count, 1, *(self.grid[d] for d in self.slots), self.batch]
        return self._merged(inside.expand(shape if self.flips is not None else shape[:1] + shape[2:]))

    def neighbours(self, dimension: int, of_side: bool) -> Tensor:
        """For each row the row of its predecessor along a dimension that has slots and is not apart: int64 [rows].

        The rows are followed by those of what enters at the near side, in the order of `enter_side`; or by one for
        each image, where the same enters everywhere.
        """
        dimensions = self.in_rows
        rank = len(dimensions) + 1
        places = {d: _range(self.grid[d], axis, rank, self.device) for axis, d in enumerate(dimensions)}
        batch = _range(self.batch, rank - 1, rank, self.device)
        row = entering = torch.zeros([1] * rank, dtype=torch.int64, device=self.device)
        count = self.batch
        for d in dimensions:
            count = count * self.grid[d]
            row = row * self.grid[d] + places[d] - (1 if d == dimension else 0)
            if of_side and d != dimension:
                entering = entering * self.grid[d] + places[d]
        index = torch.where(places[dimension] > 0, row * self.batch + batch, count + entering * self.batch + batch)
        return index.reshape(-1)

    def enter(self, values: Tensor, blank: bool = False) -> Tensor:
        """What each slot reads on each diagonal.

        Args:
            values: [n_1, ..., n_N, batch, (directions), ...]; an axis of 1 direction if all of them read the same.
            blank: whether slots without a position get zeros.

        Returns:
            [diagonals, ...]; slots without a position get some value of their image if not zeros.
        """
        return self._merged(self._take(values, self.coordinates, self._inside(self.coordinates), blank))

    def enter_side(self, values: Tensor, dimension: int, blank: bool = False) -> Tensor:
        """What enters the grid along one dimension.

        Args:
            values: [the other n..., batch, (directions), ...].
            dimension: which.
            blank: as of `enter`.

        Returns:
            For the dimension without slots what a step sees, else [diagonals, ...] of it with one slot along this
            dimension.
        """
        if dimension == self.along:
            if not self.slots and not self._per_image:
                return values
            coordinates: Mapping[int, Tensor] = {d: self.coordinates[d] for d in self.slots}
            return self._merged(self._take(values, coordinates, self._inside(coordinates), blank)).squeeze(0)
        coordinates = {
            d: self.coordinates[d] if d != self.along else self._without(dimension)
            for d in range(len(self.grid))
            if d != dimension
        }
        return self._merged(self._take(values, coordinates, self._inside(coordinates), blank))

    def enter_same(self, values: Tensor, dimension: int) -> Tensor:
        """What enters along one dimension where it is the same at every position.

        Args:
            values: [(directions), batch, ...].
            dimension: which.

        Returns:
            As of `enter_side` for one diagonal, but with a row for each image alone where the dimension has slots and
            is not apart.
        """
        slots = [1 if d == dimension else self.grid[d] for d in self.slots]
        if dimension in self.in_rows:
            slots = slots[: self._count_apart]
        front, tail = values.shape[: self.leading - 1], values.shape[self.leading :]
        values = values.reshape(*front, *[1] * len(slots), self.batch, *tail)
        values = values.expand(*front, *slots, self.batch, *tail)
        return values.flatten(self.rows_axis, self.leading - 1 + len(slots))

    def leave(self, values: Tensor) -> Tensor:
        """The values of each position, from those of the slots.

        Args:
            values: [diagonals, (directions), (slots of the dimension apart), rows, ...]; of the dimension apart all
                slots or the last one alone.

        Returns:
            [n_1, ..., n_N, batch, (directions), ...], 1 position along a dimension of which there is the last alone;
            positions that an image does not have get some value.
        """
        rank = len(self.grid)
        alone = self.alone(values, self.rows_axis)
        slots = [d for d in self.slots if d != alone]
        if not self._per_image:
            axes = {d: self._place(d, d, rank, alone) for d in range(rank)}
            row = _total(axes.values())
            for d in slots:
                row = row * self.grid[d] + axes[d]
            return _gather(self._by_image(values, 2 + self.rows_axis, slots), row, 1)
        places, direction = self._places(tuple(range(rank)), alone)
        row = _total(places.values())
        return self._gather_back(values, row, places, direction, self.rows_axis + 2, slots)

    def alone(self, values: Tensor, axis: int) -> int | None:
        """The dimension apart, if an axis that could hold its slots or positions holds one of several."""
        if self.apart is None or values.shape[axis] != 1 or self.grid[self.apart] == 1:
            return None
        return self.apart

    def leave_far(self, values: Tensor) -> Tensor:
        """What leaves along the dimension without slots.

        Args:
            values: [(directions), (slots of the dimension apart), rows, ...].

        Returns:
            [the other n..., batch, (directions), ...]; positions that an image does not have get some value.
        """
        if not self._per_image:
            slots = [self.grid[d] for d in self.slots]
            values = values.reshape(*slots, self.batch, *values.shape[self.rows_axis + 1 :])
            return values.movedim(0, sorted(self.slots).index(self.slots[0])) if slots else values
        places, direction = self._places(sorted(self.slots))
        return self._gather_back(values, 0, places, direction, self.rows_axis + 1, self.slots)

    def _by_image(self, values: Tensor, axes: int, slots: Sequence[int]) -> Tensor:
        """The first axes, the last of which is of rows, as one of slots and one of images."""
        tail = values.shape[axes:]
        if torch.compiler.is_exporting():
            # In one step, torch's tracer would compare strides, and take its answer for a bound on the batch.
            return values.reshape(self.count, -1, self.batch, *tail).flatten(0, 1)
        # The batch may be 0.
        return values.reshape(math.prod([self.count, *(self.grid[d] for d in slots)]), self.batch, *tail)

    def _merged(self, values: Tensor) -> Tensor:
        """[diagonals, (directions), slots..., batch, ...] with slots and batch as one axis, but for those apart."""
        return values.flatten(self.rows_axis + 1, self._rank - 1)

    def _inside(self, coordinates: Mapping[int, Tensor]) -> Tensor:
        inside = None
        for d, c in coordinates.items():
            if d != self.along and self.sizes[d] is self.grid[d]:
                continue
            one = c < self.sizes[d]
            one = one & (c >= 0) if d == self.along else one
            inside = one if inside is None else inside & one
        if inside is None:
            return torch.ones([1] * self._rank, dtype=torch.bool, device=self.device)
        return inside

    def _take(self, values: Tensor, coordinates: Mapping[int, Tensor], inside: Tensor, blank: bool) -> Tensor:
        row = torch.zeros([1] * self._rank, dtype=torch.int64, device=self.device)
        for number, d in enumerate(sorted(coordinates)):
            place = self._turned(d, coordinates[d], self.sizes[d], 1)
            row = row * self.grid[d] + place if number else place
        # Some position of the same image, so that NaN in one image cannot reach the gradients of another.
        row = torch.where(inside, row, 0)
        axes = len(coordinates)
        shared = self.flips is not None and values.shape[axes + 1] == 1
        if shared:
            values = values.squeeze(axes + 1)
        if self._same_for_images and (shared or self.flips is None):
            return _gather(values, row.squeeze(-1), axes, inside.squeeze(-1) if blank else None)
        row = row * self.batch + self._batch
        if self.flips is not None and not shared:
            row = row * len(self.flips) + self._range(len(self.flips), 1)
        return _gather(values, row, axes + (1 if shared else self.leading), inside if blank else None)

    def _without(self, dimension: int) -> Tensor:
        """The coordinate along the dimension without slots of the slots at the near side of another one."""
        others = [self.coordinates[d] for d in self.slots if d != dimension]
        return self._range(self.count, 0) - sum(others)

    def _place(self, d: int, axis: int, rank: int, alone: int | None) -> Tensor:
        """The coordinates along one dimension, or the last one alone."""
        if d == alone:
            return torch.full([1] * rank, self.grid[d] - 1, device=self.device)
        return _range(self.grid[d], axis, rank, self.device)

    def _places(self, dimensions: Sequence[int], alone: int | None = None) -> tuple[dict[int, Tensor], Tensor | None]:
        """The scan-order coordinates of the positions [n..., batch, (directions)] of some dimensions."""
        rank = len(dimensions) + self.leading
        batch_axis = len(dimensions)
        places = {}
        for axis, d in enumerate(dimensions):
            size = self.sizes[d]
            if isinstance(size, Tensor):
                size = size.reshape([-1 if each == batch_axis else 1 for each in range(rank)])
            place = self._place(d, axis, rank, alone)
            places[d] = place if d == alone else self._turned(d, place, size, rank - 1)
            # A position in the padding has none.
            places[d] = places[d].clamp(min=0)
        return places, None if self.flips is None else _range(len(self.flips), rank - 1, rank, self.device)

    def _gather_back(
        self,
        values: Tensor,
        row: Tensor | int,
        places: Mapping[int, Tensor],
        direction: Tensor | None,
        axes: int,
        slots: Sequence[int],
    ) -> Tensor:
        rank = len(places) + self.leading
        if direction is not None and self.flips is not None:
            row = row * len(self.flips) + direction
        for d in slots:
            row = row * self.grid[d] + places[d]
        row = row * self.batch + _range(self.batch, len(places), rank, self.device)
        return _gather(values, row, axes)

    def _turned(self, d: int, coordinate: Tensor, size: Tensor | int, axis: int) -> Tensor:
        """The coordinate in scan order of one in memory, or the other way round, for each direction on an axis."""
        if self.flips is None or not any(d in flip for flip in self.flips):
            return coordinate
        shape = [len(self.flips) if each == axis else 1 for each in range(coordinate.dim())]
        backwards = torch.tensor([d in flip for flip in self.flips], device=self.device).reshape(shape)
        return torch.where(backwards, size - 1 - coordinate, coordinate)

    def _range(self, size: int, axis: int) -> Tensor:
        return _range(size, axis, self._rank, self.device)

    def _spread(self, values: Tensor, axis: int) -> Tensor:
        shape = [1] * self._rank
        shape[axis] = -1
        return values.reshape(shape)


def _range(size: int, axis: int, rank: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device).reshape([size if each == axis else 1 for each in range(rank)])


def _total(coordinates: Iterable[Any]) -> Any:
    return functools.reduce(operator.add, coordinates)


def _gather(values: Tensor, index: Tensor, axes: int, inside: Tensor | None = None) -> Tensor:
    """Rows of `values`, whose first `axes` axes are taken as one; index_select has a fast gradient, indexing not.

    Args:
        values: [..., ...].
        index: of rows.
        axes: how many.
        inside: where it is false the result is 0, whatever the index; None for nowhere.
    """
    tail = values.shape[axes:]
    rows = values.flatten(0, axes - 1) if axes else values.unsqueeze(0)
    if inside is not None:
        rows = torch.cat([rows.new_zeros((1, *tail)), rows])
        index = torch.where(inside, index + 1, 0)
    return rows.index_select(0, index.reshape(-1)).reshape(*index.shape, *tail)
