"""A Grid LSTM over time and depth, layer by layer: the time transform as a plain LSTM, the depth transform at once.

As long as time has no priority, its transform sees the h of the depth below and its own last one: it is an LSTM whose
input is h_depth. Nothing along depth is recurrent in time, so that one product makes it for all steps.
"""

import torch
from torch import Tensor

from . import native
from .fused import run_fused
from .grid_block import GATED, GridForm, GridProducts, Stage

__all__ = ["is_layerable", "run_layers"]

TIME, DEPTH = 0, 1


def is_layerable(form: GridForm) -> bool:
    """Whether a grid over time and depth can be run layer by layer: with time an LSTM that waits for nothing new."""
    waits = len(form.stages) == 2 and TIME in form.stages[1].dimensions
    return form.dimensions == 2 and TIME in form.memory and form.output == GATED and not waits


def run_layers(
    form: GridForm,
    weights: list[Tensor],
    biases: list[Tensor | None],
    h: Tensor,
    m: Tensor,
    state: tuple[Tensor, Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run all layers.

    Args:
        form: a form that `is_layerable`.
        weights: of each layer, [rows, 2d].
        biases: of each layer, [rows] or None.
        h: what enters at the depth side, [time, batch, d], with at least one step and one sequence.
        m: its memory, [time, batch, d]; anything where depth has none.
        state: h and m along time, [layers, batch, d] each.
        lengths: int64 [batch] without negatives, or None.

    Returns:
        h and m at the opposite depth side, with anything in the padding, and the final state's h and m.
    """
    depth = Stage((DEPTH,), ()) if DEPTH in form.memory else Stage((), (DEPTH,))
    renewed = len(form.stages) == 2
    finals: list[tuple[Tensor, Tensor]] = []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        first = tuple(tensor[layer : layer + 1] for tensor in state)
        along, *final = _lstm(form, weight, bias, h, first, lengths)
        finals.append((final[0], final[1]))
        seen = along if renewed else torch.cat([first[0], along])[:-1]
        block = GridProducts(form, weight, bias, stages=(depth,))
        h, m = form.transform(block.product(torch.cat([seen, h], -1), 0), m, depth)
    # One layer is passed on, so that no Concat is exported for it.
    final_h, final_m = (of[0] if len(of) == 1 else torch.cat(of) for of in zip(*finals, strict=True))
    return h, m, final_h, final_m


def _lstm(
    form: GridForm,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    state: tuple[Tensor, ...],
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    """The time transform as torch's LSTM: output [time, batch, d], final h and c [1, batch, d]."""
    gates = [form.rows_of(TIME, gate) for gate in "ufco"]
    weight = torch.cat([weight[rows] for rows in gates])
    weight_hh, weight_ih = (weight[:, form.columns_of(each)] for each in (TIME, DEPTH))
    both = None
    if bias is not None:
        # Gates i, f, g, o of the input's bias and, all zeros, of the recurrent one.
        both = torch.cat([*(bias[rows] for rows in gates), bias.new_zeros(4 * form.hidden_size)])
    if torch.compiler.is_exporting():
        stacked = None if both is None else both.unsqueeze(0)
        h, c = state
        exported: tuple[Tensor, ...] = native.lstm(
            x, weight_ih.unsqueeze(0), weight_hh.unsqueeze(0), stacked, lengths, h, c, "forward"
        )
        return exported
    of_kernel = [weight_ih.contiguous(), weight_hh.contiguous(), *(() if both is None else both.chunk(2))]
    output, final = run_fused("lstm", x, state, of_kernel, lengths, bias=both is not None)
    return output, *final
