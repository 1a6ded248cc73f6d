"""The LSTM with layer normalisation: over a sequence, and one step of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import StepCell
from .checks import CellError, check_flag, check_number
from .layered import TorchLayers
from .parameters import step_parameters
from .recurrence import recurrence
from .steps import LSTMState

__all__ = ["LayerNormLSTM", "LayerNormLSTMCell"]


class LayerNormLSTM(TorchLayers):
    """LSTM with layer normalisation (Ba, Kiros, Hinton 2016, arXiv 1607.06450, equations 20 to 22), stacked.

    a_t = LN(W_ih x_t) + LN(W_hh h_{t-1}), blocks i, f, g, o, each norm over all four together;
    c_t = s(a_f) * c_{t-1} + s(a_i) * tanh(a_g); h_t = s(a_o) * tanh(LN(c_t)).

    LN(v) = gain * (v - mean(v)) / sqrt(var(v) + eps) + bias. The paper's further bias b is part of the first norm's.
    Called as `lstm(input, state=None, lengths=None)`; the state is `LSTMState(h, c)`, each [num_layers * directions,
    batch, hidden_size]; a plain tuple is accepted. torch has no kernel for it: it trains in a Python loop, and exports
    as a Scan.

    For layer l and direction suffix s ('' or '_reverse') the parameters are weight_ih_l{l}{s} [4H, I or D*H] and
    weight_hh_l{l}{s} [4H, H] as of torch.nn.LSTM, bias_ih_l{l}{s} and bias_hh_l{l}{s} [4H], the biases of the first two
    norms, gain_ih_l{l}{s} and gain_hh_l{l}{s} [4H], gain_c_l{l}{s} and bias_c_l{l}{s} [H].

    Args:
        input_size: features of the input.
        hidden_size: features of each state per direction.
        num_layers: stacked layers.
        bias: whether the norms have biases.
        batch_first: whether input and output are [batch, time, features].
        dropout: probability on the output of every layer but the last, in training.
        bidirectional: whether each layer also runs from the last step to the first.
        device: where the parameters are.
        dtype: what the parameters are.
        eps: what the norms add to the variance.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        gains = [("gain_ih", (4 * hidden_size,)), ("gain_hh", (4 * hidden_size,)), ("gain_c", (hidden_size,))]
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            gates=4,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            own=[*gains, ("bias_c", (hidden_size,))] if bias else gains,
            device=device,
            dtype=dtype,
        )
        self.eps = _checked("LayerNormLSTM", eps)

    def reset_parameters(self) -> None:
        """Weights as torch.nn.LSTM draws them; gains 1 and biases 0."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if not name.startswith("weight"):
                nn.init.constant_(parameter, float(name.startswith("gain")))

    @property
    def kernel(self) -> None:
        """Torch has no kernel for it."""

    def state_shapes(self, batch_size: int) -> tuple[tuple[int, int, int], ...]:
        """Both h and c: [num_layers * directions, batch, hidden_size]."""
        shape = (self.num_layers * self.num_directions, batch_size, self.hidden_size)
        return shape, shape

    def pack_state(self, tensors: Sequence[Tensor]) -> LSTMState:
        """The named tuple (h, c)."""
        return LSTMState(*tensors)

    def run_layer(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, layer: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer as a recurrence for each direction, with the input's norm outside of it."""

        def run(of_direction: tuple[Tensor, ...], d: int) -> tuple[Tensor, LSTMState]:
            weight_ih, weight_hh, bias_ih, bias_hh = self.of_direction(layer, d)
            suffix = self.suffixes(layer)[d]
            gain_ih, gain_hh, gain_c = (self.weight(f"{name}{suffix}") for name in ("gain_ih", "gain_hh", "gain_c"))
            bias_c = self.weight(f"bias_c{suffix}") if self.bias else None

            def step(state: LSTMState, normed: Tensor) -> tuple[LSTMState, Tensor]:
                state = layer_norm_lstm_step(normed, state, weight_hh, (gain_hh, bias_hh), (gain_c, bias_c), self.eps)
                return state, state.h

            normed = _norm(F.linear(input, weight_ih), (gain_ih, bias_ih), self.eps)
            return recurrence(step, LSTMState(*of_direction), normed, lengths=lengths, reverse=d == 1)

        return self.run_directions(run, state)


class LayerNormLSTMCell(StepCell):
    """One step of an LSTM with layer normalisation, with the parameters of `LayerNormLSTM`, without suffixes.

    Called as `cell(input, state=None) -> (output, state)`; the output is the new h [batch, hidden_size], the state
    `LSTMState(h, c)`.

    Args:
        input_size: features of the input.
        hidden_size: features of each state.
        bias: whether the norms have biases.
        device: where the parameters are.
        dtype: what the parameters are.
        eps: what the norms add to the variance.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size)
        check_flag("LayerNormLSTMCell", "bias", bias)
        self.eps = _checked("LayerNormLSTMCell", eps)
        rows = 4 * hidden_size
        self.weight_ih, self.weight_hh, _, _ = step_parameters(input_size, hidden_size, rows, False, device, dtype)

        def constant(size: int, value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((size,), value, device=device, dtype=dtype))

        self.bias_ih = constant(rows, 0.0) if bias else None
        self.bias_hh = constant(rows, 0.0) if bias else None
        self.gain_ih = constant(rows, 1.0)
        self.gain_hh = constant(rows, 1.0)
        self.gain_c = constant(hidden_size, 1.0)
        self.bias_c = constant(hidden_size, 0.0) if bias else None

    def pack_state(self, tensors: Sequence[Tensor]) -> LSTMState:
        """The named tuple (h, c)."""
        return LSTMState(*tensors)

    def step(self, input: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """C' = s(a_f) * c + s(a_i) * tanh(a_g); h' = s(a_o) * tanh(LN(c'))."""
        normed = _norm(F.linear(input, self.weight_ih), (self.gain_ih, self.bias_ih), self.eps)
        state = layer_norm_lstm_step(
            normed, state, self.weight_hh, (self.gain_hh, self.bias_hh), (self.gain_c, self.bias_c), self.eps
        )
        return state.h, state


def layer_norm_lstm_step(
    normed: Tensor,
    state: LSTMState,
    weight_hh: Tensor,
    norm_hh: tuple[Tensor, Tensor | None],
    norm_c: tuple[Tensor, Tensor | None],
    eps: float,
) -> LSTMState:
    """One step of the equations above.

    Args:
        normed: LN(W_ih x), [batch, 4H], blocks i, f, g, o.
        state: h and c, [batch, H].
        weight_hh: [4H, H].
        norm_hh: gain and bias of the norm of W_hh h, [4H].
        norm_c: gain and bias of the norm of the memory cell, [H].
        eps: what the norms add to the variance.
    """
    i, f, g, o = (normed + _norm(F.linear(state.h, weight_hh), norm_hh, eps)).chunk(4, -1)
    c = torch.sigmoid(f) * state.c + torch.sigmoid(i) * torch.tanh(g)
    return LSTMState(torch.sigmoid(o) * torch.tanh(_norm(c, norm_c, eps)), c)


def _norm(values: Tensor, norm: tuple[Tensor, Tensor | None], eps: float) -> Tensor:
    return F.layer_norm(values, (values.shape[-1],), *norm, eps)


def _checked(cell: str, eps: float) -> float:
    check_number(cell, "eps", eps)
    if eps <= 0:
        raise CellError(f"{cell}: eps is {eps}; accepted is a number greater than 0")
    return eps
