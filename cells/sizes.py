"""What the sizes of a batch of grids mean: which positions an image has, and what leaves it at its far sides.

Everything here selects (`torch.where`, gather) and never multiplies, so that NaN in the padding stays there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import INTEGER_DTYPES, CellError
from .lengths import align

__all__ = ["check_sizes", "far_side", "mask_grid", "valid_positions"]


def check_sizes(sizes: Tensor, grid: Sequence[int], batch: int) -> Tensor:
    """Check the sizes of a batch of grids and give them as int64 without negatives.

    Args:
        sizes: [batch, N], any integer dtype; each at most the size of its axis, or negative for the whole axis.
        grid: sizes of the N axes.
        batch: size of the batch axis.

    Returns:
        int64 [batch, N], 0 to the size of the axis each.

    Raises:
        CellError: if the shape, the dtype or, outside export, a value is not accepted.
    """
    if sizes.dtype not in INTEGER_DTYPES:
        raise CellError(f"sizes have dtype {sizes.dtype}; accepted is an integer dtype, such as torch.int64")
    if sizes.dim() != 2 or sizes.shape[1] != len(grid):
        raise CellError(f"sizes have shape {list(map(str, sizes.shape))}; accepted is [batch, {len(grid)}]")
    sizes = sizes.to(torch.int64)
    if not torch.compiler.is_exporting():
        if sizes.shape[0] != batch:
            raise CellError(
                f"sizes have shape {list(sizes.shape)}; accepted is [batch, {len(grid)}] = [{batch}, {len(grid)}]"
            )
        for d, limit in enumerate(grid):
            largest = int(sizes[:, d].max()) if batch else 0
            if largest > limit:
                raise CellError(
                    f"sizes have the value {largest} in column {d}; accepted is 0 to {limit}, the size of that axis, "
                    "or a negative number for the whole axis"
                )
    columns = [torch.where(sizes[:, d] < 0, limit, sizes[:, d]) for d, limit in enumerate(grid)]
    if torch.compiler.is_exporting():
        # A file cannot raise the error: one too large selects what is not there, which the runtime refuses.
        accepted = [torch.arange(limit + 1, device=sizes.device) for limit in grid]
        columns = [each.index_select(0, column) for each, column in zip(accepted, columns, strict=True)]
    return torch.stack(columns, 1)


def valid_positions(sizes: Tensor, grid: Sequence[int]) -> Tensor:
    """Which positions an image has: bool [n_1, ..., n_N, batch] from sizes [batch, N] without negatives."""
    valid = None
    for d, limit in enumerate(grid):
        inside = torch.arange(limit, device=sizes.device).unsqueeze(1) < sizes[:, d]
        inside = inside.reshape([limit if axis == d else 1 for axis in range(len(grid))] + [sizes.shape[0]])
        valid = inside if valid is None else valid & inside
    assert valid is not None
    return valid


def mask_grid(values: Tensor, valid: Tensor) -> Tensor:
    """`values` [n_1, ..., n_N, batch, ...] where `valid` [n_1, ..., n_N, batch] holds, 0 elsewhere."""
    return torch.where(align(valid, values), values, torch.zeros((), dtype=values.dtype, device=values.device))


def far_side(values: Tensor, dimension: int, sizes: Tensor | None = None) -> Tensor:
    """What leaves a grid along one dimension: the values of each image's last positions.

    Args:
        values: [n_1, ..., n_N, batch, ...], none of n_1 to n_N being 0.
        dimension: which of 0 to N - 1.
        sizes: int64 [batch, N] without negatives, or None where all images fill the grid.

    Returns:
        [the other n..., batch, ...]; 0 where an image has no position.
    """
    if sizes is None:
        return values.select(dimension, -1)
    count = sizes.shape[1]
    last = (sizes[:, dimension] - 1).clamp(min=0)
    index = last.reshape([1] * count + [-1] + [1] * (values.dim() - count - 1))
    shape = [1 if axis == dimension else size for axis, size in enumerate(values.shape)]
    return values.gather(dimension, index.expand(shape)).squeeze(dimension)
