"""RNN, LSTM and GRU layers as one `torch.library` operator each, which an exporter turns into one ONNX node.

They appear in exported programs only; in eager mode the cells call torch's fused kernels. Each is one layer with one
or two directions. Weights are in torch's gate order:

    input      [T, B, I]
    weight_ih  [D, G*H, I]     G = 1 (rnn), 4 (lstm: i, f, g, o), 3 (gru: r, z, n)
    weight_hh  [D, G*H, H]
    bias       [D, 2*G*H] = (b_ih; b_hh), or None
    lengths    int64 [B]; a negative one means the whole time axis; None means that all are whole
    h, c       [D, B, H]
    direction  'forward', 'reverse' or 'bidirectional'
    -> output [T, B, D*H] (forward; reverse), 0 in the padding, and the final states [D, B, H]

A sequence of length 0 keeps its initial state.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .fused import Kernel, run_fused
from .lengths import flip_valid, whole_axis
from .recurrence import recurrence
from .steps import gru_step

__all__ = ["gru", "gru_reset_before", "lstm", "rnn"]


@torch.library.custom_op("cellport::lstm", mutates_args=())
def lstm(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor,
    direction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer: (output, final h, final c). Shapes as in the module's docstring."""
    output, (final_h, final_c) = _run("lstm", input, weight_ih, weight_hh, bias, lengths, (h, c), direction)
    return output, final_h, final_c


@torch.library.custom_op("cellport::gru", mutates_args=())
def gru(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    direction: str,
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    """One GRU layer: (output, final h). Shapes as in the module's docstring."""
    if reset_after:
        output, (final,) = _run("gru", input, weight_ih, weight_hh, bias, lengths, (h,), direction)
        return output, final
    if lengths is not None:
        lengths = whole_axis(lengths, input.shape[0])
    reversed_directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    runs = [
        gru_reset_before(
            input, h[d], weight_ih[d], weight_hh[d], *_split_bias(bias, d), lengths=lengths, reverse=reverse
        )
        for d, reverse in enumerate(reversed_directions)
    ]
    return torch.cat([run[0] for run in runs], -1), torch.stack([run[1] for run in runs])


@torch.library.custom_op("cellport::rnn", mutates_args=())
def rnn(
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    direction: str,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """One RNN layer: (output, final h). Shapes as in the module's docstring; nonlinearity 'tanh' or 'relu'."""
    kernel: Kernel = "rnn_tanh" if nonlinearity == "tanh" else "rnn_relu"
    output, (final,) = _run(kernel, input, weight_ih, weight_hh, bias, lengths, (h,), direction)
    return output, final


def gru_reset_before(
    input: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    *,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """One direction of a GRU layer in Cho's form (arXiv 1406.1078), for which torch has no kernel.

    Args:
        input: [T, B, I].
        h: [B, H].
        weight_ih: [3H, I], blocks r, z, n.
        weight_hh: [3H, H].
        bias_ih: [3H] or None.
        bias_hh: [3H] or None.
        lengths: int64 [B] or None.
        reverse: whether the direction is from the last step to the first.

    Returns:
        Output [T, B, H] and final state [B, H].
    """

    def step(h: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        h = gru_step(projected, h, weight_hh, bias_hh, reset_after=False)
        return h, h

    return recurrence(step, h, F.linear(input, weight_ih, bias_ih), lengths=lengths, reverse=reverse)


def _run(
    kernel: Kernel,
    input: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    state: tuple[Tensor, ...],
    direction: str,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    steps, batch = input.shape[:2]
    directions, _, hidden = state[0].shape
    if not steps or not batch:
        return input.new_zeros((steps, batch, directions * hidden)), tuple(tensor.clone() for tensor in state)
    if lengths is not None:
        lengths = whole_axis(lengths, steps)
    weights = []
    for d in range(directions):
        weights += [weight_ih[d], weight_hh[d], *(half for half in _split_bias(bias, d) if half is not None)]
    if direction == "reverse":
        input = flip_valid(input, lengths)
    output, final = run_fused(
        kernel, input, state, weights, lengths, bias=bias is not None, bidirectional=direction == "bidirectional"
    )
    if direction == "reverse":
        output = flip_valid(output, lengths)
    # An operator's results may not share memory, among themselves or with its arguments.
    return output.clone(), tuple(tensor.clone() for tensor in final)


def _split_bias(bias: Tensor | None, d: int) -> tuple[Tensor | None, Tensor | None]:
    if bias is None:
        return None, None
    bias_ih, bias_hh = bias[d].chunk(2)
    return bias_ih, bias_hh


def _fake(input: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    directions, _, hidden = states[0].shape
    output = input.new_empty((input.shape[0], input.shape[1], directions * hidden))
    return output, *(torch.empty_like(state) for state in states)


# input, weight_ih, weight_hh, bias and lengths come before the states, and the options after them.
lstm.register_fake(lambda *args: _fake(args[0], *args[5:7]))
gru.register_fake(lambda *args: _fake(args[0], args[5]))
rnn.register_fake(lambda *args: _fake(args[0], args[5]))
