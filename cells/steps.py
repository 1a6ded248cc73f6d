"""One step of the RNN, the LSTM and the GRU as pure functions of a projected input.

The input projections do not depend on the state, so that they are computed for all steps before the loop.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LSTMState", "gru_step", "lstm_step", "rnn_step"]


class LSTMState(NamedTuple):
    """State of an LSTM.

    Attributes:
        h: the output state; [layers * directions, batch, hidden_size or proj_size], in a single-step cell
            [batch, hidden_size].
        c: the memory cell; [layers * directions, batch, hidden_size], in a single-step cell [batch, hidden_size].
    """

    h: Tensor
    c: Tensor


def rnn_step(projected: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, nonlinearity: str) -> Tensor:
    """Elman RNN (Elman 1990): h' = phi(W_ih x + b_ih + W_hh h + b_hh).

    Args:
        projected: W_ih x + b_ih, [batch, H].
        h: [batch, H].
        weight_hh: [H, H].
        bias_hh: [H] or None.
        nonlinearity: 'tanh' or 'relu'.
    """
    a = projected + F.linear(h, weight_hh, bias_hh)
    h = torch.tanh(a) if nonlinearity == "tanh" else torch.relu(a)
    return h


def lstm_step(
    projected: Tensor,
    state: LSTMState,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None = None,
    weight_peephole: Tensor | None = None,
    *,
    coupled: bool = False,
) -> LSTMState:
    """LSTM with forget gate (Gers et al. 2000), peepholes (Gers and Schmidhuber 2000) and projection (Sak et al. 2014).

    i, f, o = s(a_i + p_i * c), s(a_f + p_f * c), s(a_o + p_o * c'); g = tanh(a_g); c' = f * c + i * g;
    h' = W_hr (o * tanh(c')). Coupled, f = 1 - i (Greff et al. 2015, arXiv 1503.04069).

    Args:
        projected: W_ih x + b_ih, [batch, 4H], blocks i, f, g, o; coupled [batch, 3H], blocks i, g, o.
        state: h [batch, P], c [batch, H]; P is H without a projection.
        weight_hh: [4H, P]; coupled [3H, P].
        bias_hh: [4H], coupled [3H], or None.
        weight_hr: [P, H], or None for no projection.
        weight_peephole: p_i, p_f and p_o, [3H]; coupled p_i and p_o, [2H]; None for no peepholes.
        coupled: whether the forget gate is 1 - i.
    """
    a = (projected + F.linear(state.h, weight_hh, bias_hh)).chunk(3 if coupled else 4, -1)
    p = (None,) * len(a) if weight_peephole is None else weight_peephole.chunk(len(a) - 1)
    i = torch.sigmoid(_peep(a[0], p[0], state.c))
    f = 1 - i if coupled else torch.sigmoid(_peep(a[1], p[1], state.c))
    c = f * state.c + i * torch.tanh(a[-2])
    h = torch.sigmoid(_peep(a[-1], p[-1], c)) * torch.tanh(c)
    return LSTMState(h if weight_hr is None else F.linear(h, weight_hr), c)


def _peep(a: Tensor, weight: Tensor | None, c: Tensor) -> Tensor:
    """What a gate is the sigmoid of: a [batch, H], and with a peephole [H] what that sees of c [batch, H]."""
    return a if weight is None else a + weight * c


def gru_step(projected: Tensor, h: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, reset_after: bool) -> Tensor:
    """GRU: h' = (1 - z) * n + z * h, with the reset after or before the recurrent product.

    After it (torch, cuDNN): n = tanh(W_in x + b_in + r * (W_hn h + b_hn)).
    Before it (Cho et al. 2014, arXiv 1406.1078): n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    Args:
        projected: W_ih x + b_ih, [batch, 3H], blocks r, z, n.
        h: [batch, H].
        weight_hh: [3H, H].
        bias_hh: [3H] or None.
        reset_after: which of the two forms.
    """
    size = h.shape[-1]
    if reset_after:
        r, z, recurrent = F.linear(h, weight_hh, bias_hh).chunk(3, -1)
        r, z = torch.sigmoid(projected[..., :size] + r), torch.sigmoid(projected[..., size : 2 * size] + z)
        n = torch.tanh(projected[..., 2 * size :] + r * recurrent)
    else:
        bias_rz, bias_n = (None, None) if bias_hh is None else (bias_hh[: 2 * size], bias_hh[2 * size :])
        gates = torch.sigmoid(projected[..., : 2 * size] + F.linear(h, weight_hh[: 2 * size], bias_rz))
        r, z = gates.chunk(2, -1)
        n = torch.tanh(projected[..., 2 * size :] + F.linear(r * h, weight_hh[2 * size :], bias_n))
    return (1 - z) * n + z * h
