"""One SRU layer in the form that exports well: only c is in the loop, and each projection stands alone.

Each of the candidate, forget, reset and skip projections of each direction is a product with a matrix of its own, with
its bias, so that an embedding in front of it folds into one table of rows. The loop's body is six operators on c, u0
and u1; the reset gate and the output are computed for all steps at once. Lengths stay out of the loop: steps after a
sequence's end compute what nobody reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .lengths import flip_valid, mask_steps, take_final, valid_steps
from .recurrence import recurrence
from .sru_elementwise import activate

if TYPE_CHECKING:
    from .sru import SRULayer

__all__ = ["run_exported"]


def run_exported(layer: SRULayer, input: Tensor, c0: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run one layer under export; arguments and results are those of `SRULayer.forward`, without dropout."""
    hidden = layer.hidden_size
    runs = [
        _run_direction(layer, d, input, c0[:, d * hidden : (d + 1) * hidden] if layer.directions > 1 else c0, lengths)
        for d in range(layer.directions)
    ]
    h, final = runs[0] if layer.directions == 1 else (torch.cat(column, -1) for column in zip(*runs, strict=True))
    if lengths is not None:
        h = mask_steps(h, valid_steps(lengths, input.shape[0]))
    return h, final


def _run_direction(layer: SRULayer, d: int, input: Tensor, c0: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Give h [T, B, H] of one direction, not yet masked, and its final state [B, H]."""
    weight = layer.blocks()[:, d]
    v_f, v_r = layer.weight_c.view(2, layer.directions, layer.hidden_size)[:, d].unbind()
    u0, u1, u2 = (input @ weight[..., m].contiguous() for m in range(3))
    if layer.bias is not None:
        b_f, b_r = layer.bias.view(2, layer.directions, layer.hidden_size)[:, d].unbind()
        u1, u2 = u1 + b_f, u2 + b_r
    c, final = _scan_cell(u0, u1, v_f if layer.version == 2 else None, c0, lengths, reverse=d == 1)
    if layer.version == 2:
        u2 = u2 + v_r * _previous(c, c0, lengths, reverse=d == 1)
    reset = torch.sigmoid(u2)
    g = activate(c, layer.activation)
    skip = _skip(layer, d, input, weight)
    return (reset * g if skip is None else reset * (g - skip) + skip), final


def _scan_cell(
    u0: Tensor, u1: Tensor, v_f: Tensor | None, c0: Tensor, lengths: Tensor | None, *, reverse: bool
) -> tuple[Tensor, Tensor]:
    """All c_t in their time slots [T, B, H], and the one after the last valid step [B, H]."""

    def step(c: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        u0, u1 = inputs
        f = torch.sigmoid(u1 if v_f is None else u1 + v_f * c)
        c = (c - u0) * f + u0
        return c, c

    if lengths is None:
        return recurrence(step, c0, (u0, u1), reverse=reverse)
    if reverse:
        u0, u1 = flip_valid(u0, lengths), flip_valid(u1, lengths)
    c, _ = recurrence(step, c0, (u0, u1))
    final = take_final(c, lengths, c0)
    return (flip_valid(c, lengths) if reverse else c), final


def _previous(c: Tensor, c0: Tensor, lengths: Tensor | None, *, reverse: bool) -> Tensor:
    """The c that each step began with, [T, B, H]."""
    # Longer by c0 first and then cut: an axis of T - 1 would forbid T = 2 to the exported program.
    shifted = torch.cat([c, c0.unsqueeze(0)])[1:] if reverse else torch.cat([c0.unsqueeze(0), c])[:-1]
    if lengths is None or not reverse:
        return shifted
    is_last = torch.arange(c.shape[0], device=c.device).unsqueeze(1) == lengths - 1
    return torch.where(is_last.unsqueeze(-1), c0, shifted)


def _skip(layer: SRULayer, d: int, input: Tensor, weight: Tensor) -> Tensor | None:
    if not layer.skip:
        return None
    if layer.projections == 4:
        return input @ weight[..., 3].contiguous()
    lanes = input[..., d * layer.hidden_size : (d + 1) * layer.hidden_size] if layer.directions > 1 else input
    return lanes if layer.alpha is None else lanes * layer.alpha
