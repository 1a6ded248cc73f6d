"""The GRU, in torch's form and in Cho's: over a sequence, and one step of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import native
from .base import StepCell
from .fused import Kernel
from .layered import TorchLayers
from .parameters import step_parameters
from .steps import gru_step

__all__ = ["GRU", "GRUCell"]


class GRU(TorchLayers):
    """GRU (Cho et al. 2014, arXiv 1406.1078), stacked, in one or two directions.

    r = s(W_ir x + b_ir + W_hr h + b_hr); z = s(W_iz x + b_iz + W_hz h + b_hz); h' = (1 - z) * n + z * h, where
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn)) in torch's form, and
    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn) in Cho's. No weights make the one compute the other.

    Arguments, parameters and results are torch.nn.GRU's. Called as `gru(input, state=None, lengths=None)`; the state
    is one tensor h [num_layers * directions, batch, hidden_size], the output [time, batch, directions * hidden_size].

    Args:
        input_size: features of the input.
        hidden_size: features of the state per direction.
        num_layers: stacked layers.
        bias: whether there are biases.
        batch_first: whether input and output are [batch, time, features].
        dropout: probability on the output of every layer but the last, in training.
        bidirectional: whether each layer also runs from the last step to the first.
        device: where the parameters are.
        dtype: what the parameters are.
        reset_after: True for torch's form, False for Cho's, which trains in a Python loop.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h",)

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
        reset_after: bool = True,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            gates=3,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.reset_after = reset_after

    @property
    def kernel(self) -> Kernel | None:
        """Torch's kernel, which has torch's form only."""
        return "gru" if self.reset_after else None

    def state_shapes(self, batch_size: int) -> tuple[tuple[int, int, int], ...]:
        """h: [num_layers * directions, batch, hidden_size]."""
        return ((self.num_layers * self.num_directions, batch_size, self.hidden_size),)

    def pack_state(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor h."""
        return tensors[0]

    def run_layer(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, layer: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer as the operator `cellport::gru`; in Cho's form and eager mode, as a recurrence per direction."""
        if torch.compiler.is_exporting():
            weight_ih, weight_hh, bias = self.stacked(layer)
            output, h = native.gru(
                input, weight_ih, weight_hh, bias, lengths, state[0], self.direction, self.reset_after
            )
            return output, (h,)

        def run(of_direction: tuple[Tensor, ...], d: int) -> tuple[Tensor, tuple[Tensor, ...]]:
            output, h = native.gru_reset_before(
                input, of_direction[0], *self.of_direction(layer, d), lengths=lengths, reverse=d == 1
            )
            return output, (h,)

        return self.run_directions(run, state)

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = super().extra_repr()
        return shown if self.reset_after else f"{shown}, reset_after=False"


class GRUCell(StepCell):
    """One step of a GRU, with the parameters of torch.nn.GRUCell.

    Called as `cell(input, state=None) -> (output, state)`, both the new h [batch, hidden_size].

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        bias: whether there are biases.
        device: where the parameters are.
        dtype: what the parameters are.
        reset_after: True for torch's form, False for Cho's.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h",)
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.reset_after = reset_after
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = step_parameters(
            input_size, hidden_size, 3 * hidden_size, bias, device, dtype
        )

    def pack_state(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor h."""
        return tensors[0]

    def step(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """H' = (1 - z) * n + z * h."""
        projected = F.linear(input, self.weight_ih, self.bias_ih)
        h = gru_step(projected, state, self.weight_hh, self.bias_hh, self.reset_after)
        return h, h
