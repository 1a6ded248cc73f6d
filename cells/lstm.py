"""The LSTM, with or without projection, peepholes and coupled gates: over a sequence, and one step of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import native
from .base import StepCell
from .checks import CellError, check_flag, check_size
from .fused import Kernel
from .layered import TorchLayers
from .parameters import draw_parameter, step_parameters
from .recurrence import recurrence
from .steps import LSTMState, lstm_step

__all__ = ["LSTM", "LSTMCell", "LSTMState"]


class LSTM(TorchLayers):
    """LSTM with forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000), stacked, in one or two directions.

    a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh, blocks i, f, g, o;
    c_t = s(a_f) * c_{t-1} + s(a_i) * tanh(a_g); h_t = s(a_o) * tanh(c_t), with `proj_size` h_t = W_hr (...)
    (Sak et al. 2014, arXiv 1402.1128).

    With `peephole` (Gers and Schmidhuber 2000; arXiv 1308.0850, equations 7 to 11) the gates see the memory cell:
    s(a_i + p_i * c_{t-1}), s(a_f + p_f * c_{t-1}) and s(a_o + p_o * c_t). With `coupled` the forget gate is
    1 - s(a_i), which ONNX calls input_forget=1 (Greff et al. 2015, arXiv 1503.04069). torch has neither: they train
    in a Python loop and export as a Scan.

    Arguments, parameters and results are torch.nn.LSTM's. The options add parameters weight_peephole_l{k}{suffix},
    p_i, p_f and p_o [3 * hidden_size], and drop the forget gate's: coupled, weights and biases have three blocks
    i, g, o, and peepholes are p_i and p_o [2 * hidden_size]. Called as `lstm(input, state=None, lengths=None)`; the
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
        peephole: whether the gates see the memory cell.
        coupled: whether the forget gate is one less the input gate.

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
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        coupled: bool = False,
    ) -> None:
        check_size("LSTM", "hidden_size", hidden_size)
        if isinstance(proj_size, bool) or not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
            raise CellError(f"LSTM: proj_size is {proj_size!r}; accepted is 0 to hidden_size - 1 = {hidden_size - 1}")
        _check_options("LSTM", peephole, coupled)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            gates=3 if coupled else 4,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            own=[("weight_peephole", ((2 if coupled else 3) * hidden_size,))] if peephole else [],
            device=device,
            dtype=dtype,
        )
        self.peephole = peephole
        self.coupled = coupled

    @property
    def kernel(self) -> Kernel | None:
        """Torch's kernel, which does the projection too, but neither peepholes nor coupled gates."""
        return None if self.peephole or self.coupled else "lstm"

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
        """One layer as the operator `cellport::lstm`; where ONNX or torch has none, a recurrence for each direction."""
        if self.kernel is not None and not self.proj_size:
            weight_ih, weight_hh, bias = self.stacked(layer)
            output, h, c = native.lstm(input, weight_ih, weight_hh, bias, lengths, *state, self.direction)
            return output, (h, c)
        return self.run_directions(
            lambda of_direction, d: self._run_direction(input, LSTMState(*of_direction), lengths, layer, d), state
        )

    def _run_direction(
        self, input: Tensor, state: LSTMState, lengths: Tensor | None, layer: int, d: int
    ) -> tuple[Tensor, LSTMState]:
        weight_ih, weight_hh, bias_ih, bias_hh = self.of_direction(layer, d)
        suffix = self.suffixes(layer)[d]
        weight_hr = self.weight(f"weight_hr{suffix}") if self.proj_size else None
        weight_peephole = self.weight(f"weight_peephole{suffix}") if self.peephole else None

        def step(state: LSTMState, projected: Tensor) -> tuple[LSTMState, Tensor]:
            state = lstm_step(projected, state, weight_hh, bias_hh, weight_hr, weight_peephole, coupled=self.coupled)
            return state, state.h

        projected = F.linear(input, weight_ih, bias_ih)
        return recurrence(step, state, projected, lengths=lengths, reverse=d == 1)

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = [super().extra_repr()]
        shown += [f"{name}={value}" for name in ("proj_size", "peephole", "coupled") if (value := getattr(self, name))]
        return ", ".join(shown)


class LSTMCell(StepCell):
    """One step of an LSTM, with the parameters of torch.nn.LSTMCell, and weight_peephole as of `LSTM`.

    Called as `cell(input, state=None) -> (output, state)`; the output is the new h [batch, hidden_size], the state
    `LSTMState(h, c)`.

    Args:
        input_size: features of the input.
        hidden_size: features of each state.
        bias: whether there are biases.
        device: where the parameters are.
        dtype: what the parameters are.
        peephole: whether the gates see the memory cell.
        coupled: whether the forget gate is one less the input gate; weights then have three blocks i, g, o.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h", "c")
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None
    weight_peephole: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        coupled: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        _check_options("LSTMCell", peephole, coupled)
        self.coupled = coupled
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = step_parameters(
            input_size, hidden_size, (3 if coupled else 4) * hidden_size, bias, device, dtype
        )
        peepholes = (2 if coupled else 3) * hidden_size
        self.weight_peephole = draw_parameter(hidden_size, (peepholes,), device, dtype) if peephole else None

    def pack_state(self, tensors: Sequence[Tensor]) -> LSTMState:
        """The named tuple (h, c)."""
        return LSTMState(*tensors)

    def step(self, input: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """C' = f * c + i * tanh(a_g); h' = o * tanh(c')."""
        projected = F.linear(input, self.weight_ih, self.bias_ih)
        state = lstm_step(
            projected,
            state,
            self.weight_hh,
            self.bias_hh,
            weight_peephole=self.weight_peephole,
            coupled=self.coupled,
        )
        return state.h, state


def _check_options(cell: str, peephole: bool, coupled: bool) -> None:
    check_flag(cell, "peephole", peephole)
    check_flag(cell, "coupled", coupled)
