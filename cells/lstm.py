"""The LSTM: over a sequence, with or without projection, and one step of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import native
from .base import StepCell
from .checks import CellError
from .fused import Kernel
from .layered import TorchLayers
from .parameters import step_parameters
from .recurrence import recurrence
from .steps import LSTMState, lstm_step

__all__ = ["LSTM", "LSTMCell", "LSTMState"]


class LSTM(TorchLayers):
    """LSTM with forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000), stacked, in one or two directions.

    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, blocks i, f, g, o;
    c_t = s(a_f) * c_{t-1} + s(a_i) * tanh(a_g); h_t = s(a_o) * tanh(c_t), with `proj_size` h_t = W_hr (...)
    (Sak et al. 2014, arXiv 1402.1128, without peepholes).

    Arguments, parameters and results are torch.nn.LSTM's. Called as `lstm(input, state=None, lengths=None)`; the
    state is `LSTMState(h, c)`, h [num_layers * directions, batch, hidden_size or proj_size] and c
    [num_layers * directions, batch, hidden_size]; a plain tuple is accepted.

    Args:
        input_size: features of the input.
        hidden_size: features of the memory cell per direction.
        num_layers: stacked layers.
        bias: whether there are biases.
        batch_first: whether input and output are [batch, time, features].
        dropout: probability on the output of every layer but the last, in training.
        bidirectional: whether each layer also runs from the last step to the first.
        proj_size: features of h per direction; 0 for hidden_size and no projection.
        device: where the parameters are.
        dtype: what the parameters are.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h", "c")
    gates = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= proj_size < max(hidden_size, 1):
            raise CellError(f"LSTM: proj_size is {proj_size}; accepted is 0 to hidden_size - 1 = {hidden_size - 1}")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )

    @property
    def kernel(self) -> Kernel:
        """Torch's kernel, which does the projection too."""
        return "lstm"

    @property
    def output_size(self) -> int:
        """Features of the output, both directions together."""
        return self.num_directions * (self.proj_size or self.hidden_size)

    def state_shapes(self, batch_size: int) -> tuple[tuple[int, int, int], ...]:
        """h: [num_layers * directions, batch, P]; c: [num_layers * directions, batch, hidden_size]."""
        count = self.num_layers * self.num_directions
        return (count, batch_size, self.proj_size or self.hidden_size), (count, batch_size, self.hidden_size)

    def pack_state(self, tensors: Sequence[Tensor]) -> LSTMState:
        """The named tuple (h, c)."""
        return LSTMState(*tensors)

    def run_layer(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, layer: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer as the operator `cellport::lstm`; projected, as a recurrence for each direction."""
        if not self.proj_size:
            weight_ih, weight_hh, bias = self.stacked(layer)
            output, h, c = native.lstm(input, weight_ih, weight_hh, bias, lengths, *state, self.direction)
            return output, (h, c)
        runs = [
            self._run_projected(input, LSTMState(state[0][d], state[1][d]), lengths, layer, d)
            for d in range(self.num_directions)
        ]
        finals = tuple(torch.stack(column) for column in zip(*(final for _, final in runs), strict=True))
        return torch.cat([output for output, _ in runs], -1), finals

    def _run_projected(
        self, input: Tensor, state: LSTMState, lengths: Tensor | None, layer: int, d: int
    ) -> tuple[Tensor, LSTMState]:
        weight_ih, weight_hh, bias_ih, bias_hh = self.of_direction(layer, d)
        weight_hr = self.weight(f"weight_hr{self.suffixes(layer)[d]}")

        def step(state: LSTMState, projected: Tensor) -> tuple[LSTMState, Tensor]:
            state = lstm_step(projected, state, weight_hh, bias_hh, weight_hr)
            return state, state.h

        projected = F.linear(input, weight_ih, bias_ih)
        return recurrence(step, state, projected, lengths=lengths, reverse=d == 1)

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = super().extra_repr()
        return f"{shown}, proj_size={self.proj_size}" if self.proj_size else shown


class LSTMCell(StepCell):
    """One step of an LSTM, with the parameters of torch.nn.LSTMCell.

    Called as `cell(input, state=None) -> (output, state)`; the output is the new h [batch, hidden_size], the state
    `LSTMState(h, c)`.

    Args:
        input_size: features of the input.
        hidden_size: features of each state.
        bias: whether there are biases.
        device: where the parameters are.
        dtype: what the parameters are.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h", "c")
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = step_parameters(
            input_size, hidden_size, 4 * hidden_size, bias, device, dtype
        )

    def pack_state(self, tensors: Sequence[Tensor]) -> LSTMState:
        """The named tuple (h, c)."""
        return LSTMState(*tensors)

    def step(self, input: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """C' = s(a_f) * c + s(a_i) * tanh(a_g); h' = s(a_o) * tanh(c')."""
        projected = F.linear(input, self.weight_ih, self.bias_ih)
        state = lstm_step(projected, state, self.weight_hh, self.bias_hh)
        return state.h, state
