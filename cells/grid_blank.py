"""A Grid LSTM as a wavefront for a file, where nothing but the data enters it: each dimension sees its own h and m.

A state that holds h and m of all dimensions side by side, as training has it, is shifted as a whole for every dimension
and selected from. Here h of all dimensions is one tensor and m another, and of each predecessor the part of its
dimension is taken. Nothing is held for slots without a position, and the bias is one more row of the product, whose
factor is 1 at positions and 0 elsewhere.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from .grid_block import GridForm, GridProducts
from .sizes import far_side
from .wavefront import wavefront_outputs

__all__ = ["keeps_zeros", "run_blank"]


def keeps_zeros(form: GridForm) -> bool:
    """Whether a block without bias makes zeros of zeros: sigmoid(0) of a dimension without memory is not 0."""
    return form.activation != "sigmoid" or len(form.memory) == form.dimensions


def run_blank(
    form: GridForm,
    weight: Tensor,
    bias: Tensor | None,
    entering: tuple[Tensor, Tensor | None],
    shape: Sequence[int],
    read: Callable[[Tensor, Tensor], Tensor],
    *,
    apart: int | None,
    sizes: Tensor | None,
    flips: Sequence[Collection[int]] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """Run a grid that `keeps_zeros`, with zeros at all sides but that of depth.

    Args:
        form: of its blocks.
        weight: as of `GridLSTM`.
        bias: as of `GridLSTM`.
        entering: h and m of depth, [n_1, ..., n_(N-1), batch, (directions), d]; m may be None.
        shape: n_1 to n_N.
        read: what is read of h of depth and of m of all dimensions.
        apart: depth, if its positions have weights of their own.
        sizes: int64 [batch, N] without negatives, or None.
        flips: the dimensions that each direction goes backwards along, or None for one direction.

    Returns:
        What is read behind the last layer, [n_1, ..., n_(N-1), batch, (directions), ...], and h and m that leave along
        the first dimension, [n_2, ..., n_N, batch, (directions), d]; m is None where it has none.
    """
    d, depth = form.hidden_size, form.dimensions - 1
    h = entering[0]
    runs = [] if flips is None else [len(flips)]
    batch = h.shape[depth]
    # Each is a tensor of its own: the tracer of torch's scan refuses one that is there twice.
    outside = tuple([h.new_zeros(*runs, batch, n * d) for n in _counts(form) if n])
    # Of all that a predecessor has, the part of the dimension along which it is one.
    own = {i: (k * d, (k + 1) * d) for k, i in enumerate(form.memory)}
    parts = [[(i * d, (i + 1) * d), own.get(i, (0, 0))][: len(outside)] for i in range(form.dimensions)]
    side = (h, entering[1])[: len(outside)]
    ones = [h.new_ones(()).expand(*shape, batch, *([] if flips is None else [1]), 1)] if bias is not None else []
    block = GridProducts(form, weight, bias, factor=True)
    first = form.memory[:1] == (0,)

    def step(before: tuple[Any, ...], factor: list[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        h, m = block.of_parts([each[0] for each in before], [before[i][1] for i in form.memory], factor=factor)
        last = [each if apart is None else each.narrow(-3, shape[depth] - 1, 1) for each in (h, m)]
        given = {"read": read(last[0][..., depth * d :], last[1]), "h": h[..., :d]}
        return (h, m)[: len(outside)], {**given, "m": m[..., :d]} if first else given

    found = wavefront_outputs(
        step,
        outside,
        ones,
        shape,
        along=0,
        apart=apart,
        sizes=sizes,
        sides=[*[None] * depth, side],
        flips=flips,
        parts=parts,
    )
    return found["read"].select(depth, -1), (
        _leaving(found["h"], sizes),
        _leaving(found["m"], sizes) if first else None,
    )


def _counts(form: GridForm) -> tuple[int, int]:
    return form.dimensions, len(form.memory)


def _leaving(values: Tensor, sizes: Tensor | None) -> Tensor:
    """What leaves along the first dimension: zeros where there is nothing, for which it gets a position more in front.

    Where nothing reads the result, the file has no trace of it.
    """
    padded = torch.cat([values.new_zeros((1, *values.shape[1:])), values])
    if sizes is not None:
        sizes = torch.cat([sizes[:, :1] + 1, sizes[:, 1:]], 1)
    return far_side(padded, 0, sizes)
