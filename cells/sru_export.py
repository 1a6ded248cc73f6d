"""One SRU layer in the form that exports well: only c is in the loop, and each projection stands alone.

The loop carries c and computes, with e_t = c_{t-1} - u0_t,

    p_t = sigmoid(v_f * e_t + a_t) * e_t        a_t = u1_t + v_f * u0_t
    c_t = p_t + u0_t

which is the specification's f_t * c_{t-1} + (1 - f_t) * u0_t. Its body is six operators and hands out e and p, two
values that it computes anyway: handing out c would cost a copy in every step, because c is the state. The reset gate
and the output are computed for all steps at once, from the same e:

    r_t = sigmoid(v_r * e_t + u2_t + v_r * u0_t)        c_t = p_t + u0_t

The sums u1 + v_f * u0 and u2 + v_r * u0 depend on the input's row alone, so an embedding in front folds into one table
of rows for each. Where they are computed, they are computed from u0 itself: as products of their own, with the weights
W_f + W diag(v_f), they would round otherwise than u0 does, and the difference, which v_f * e takes away again, would
stay. So do a layer norm, before the projections or of the output, and a factorised projection: none of them needs c.

Lengths stay out of the loop: after a sequence's end it computes what nobody reads. Backwards the padding comes first;
there u0 is the initial state, so e is 0 and c does not move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .lengths import align, mask_steps, take_final, valid_steps
from .recurrence import recurrence
from .sru_elementwise import activate

if TYPE_CHECKING:
    from .sru_layer import SRULayer

__all__ = ["run_exported"]


def run_exported(layer: SRULayer, input: Tensor, c0: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run one layer under export; arguments and results are those of `SRULayer.forward`, without dropout."""
    hidden = layer.hidden_size
    valid = None if lengths is None else valid_steps(lengths, input.shape[0])
    projected = layer.projected_input(input)
    runs = [
        _run_direction(
            layer,
            d,
            input,
            projected,
            c0[:, d * hidden : (d + 1) * hidden] if layer.directions > 1 else c0,
            lengths,
            valid,
        )
        for d in range(layer.directions)
    ]
    h, final = runs[0] if layer.directions == 1 else (torch.cat(column, -1) for column in zip(*runs, strict=True))
    h = layer.normalize_output(h)
    return (h if valid is None else mask_steps(h, valid)), final


def _run_direction(
    layer: SRULayer,
    d: int,
    input: Tensor,
    projected: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run one direction: h [T, B, H], not yet normalised or masked, and the final state [B, H]."""
    weight = layer.blocks()[:, d]
    v_f, v_r = layer.weight_c.view(2, layer.directions, layer.hidden_size)[:, d].unbind()
    u0, u1, u2 = (projected @ weight[..., m].contiguous() for m in range(3))
    if layer.bias is not None:
        b_f, b_r = layer.bias.view(2, layer.directions, layer.hidden_size)[:, d].unbind()
        u1, u2 = u1 + b_f, u2 + b_r
    if layer.version == 2:
        u1, u2 = u1 + v_f * u0, u2 + v_r * u0
    c, e, final = _scan_cell(u0, u1, v_f if layer.version == 2 else None, c0, lengths, valid, reverse=d == 1)
    reset = torch.sigmoid(u2 + v_r * e if layer.version == 2 else u2)
    g = activate(c, layer.activation)
    skip = _skip(layer, d, input, projected, weight)
    return (reset * g if skip is None else reset * (g - skip) + skip), final


def _scan_cell(
    u0: Tensor,
    u1: Tensor,
    v_f: Tensor | None,
    c0: Tensor,
    lengths: Tensor | None,
    valid: Tensor | None,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """All c_t and e_t in their time slots [T, B, H], and the c after the last valid step [B, H]."""
    own = u0
    if valid is not None and reverse:
        mask = align(valid, u0)
        own, u1 = torch.where(mask, u0, c0), mask_steps(u1, valid)

    def step(c: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        u0, gate = inputs
        e = c - u0
        p = (gate if v_f is None else torch.sigmoid(e * v_f + gate)) * e
        return p + u0, (e, p)

    (e, p), final = recurrence(step, c0, (own, torch.sigmoid(u1) if v_f is None else u1), reverse=reverse)
    c = p + own
    if lengths is not None and not reverse:
        final = take_final(c, lengths, c0)
    return c, e, final


def _skip(layer: SRULayer, d: int, input: Tensor, projected: Tensor, weight: Tensor) -> Tensor | None:
    if not layer.skip:
        return None
    if layer.projections == 4:
        return projected @ weight[..., 3].contiguous()
    lanes = input[..., d * layer.hidden_size : (d + 1) * layer.hidden_size] if layer.directions > 1 else input
    return lanes if layer.alpha is None else lanes * layer.alpha
