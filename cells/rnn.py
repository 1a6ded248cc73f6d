"""The Elman RNN: over a sequence, and one step of it."""

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
from .steps import rnn_step

__all__ = ["RNN", "RNNCell"]

NONLINEARITIES = ("tanh", "relu")


class RNN(TorchLayers):
    """Elman RNN (Elman 1990), stacked, in one or two directions: h_t = phi(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Arguments, parameters and results are torch.nn.RNN's. Called as `rnn(input, state=None, lengths=None)`; the state
    is one tensor h [num_layers * directions, batch, hidden_size], the output [time, batch, directions * hidden_size].

    Args:
        input_size: features of the input.
        hidden_size: features of the state per direction.
        num_layers: stacked layers.
        nonlinearity: phi, 'tanh' or 'relu'.
        bias: whether there are biases.
        batch_first: whether input and output are [batch, time, features].
        dropout: probability on the output of every layer but the last, in training.
        bidirectional: whether each layer also runs from the last step to the first.
        device: where the parameters are.
        dtype: what the parameters are.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("h",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            gates=1,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = _checked("RNN", nonlinearity)

    @property
    def kernel(self) -> Kernel:
        """Torch's kernel for the nonlinearity."""
        return "rnn_tanh" if self.nonlinearity == "tanh" else "rnn_relu"

    def state_shapes(self, batch_size: int) -> tuple[tuple[int, int, int], ...]:
        """h: [num_layers * directions, batch, hidden_size]."""
        return ((self.num_layers * self.num_directions, batch_size, self.hidden_size),)

    def pack_state(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor h."""
        return tensors[0]

    def run_layer(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, layer: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer as the operator `cellport::rnn`."""
        weight_ih, weight_hh, bias = self.stacked(layer)
        output, h = native.rnn(input, weight_ih, weight_hh, bias, lengths, state[0], self.direction, self.nonlinearity)
        return output, (h,)


class RNNCell(StepCell):
    """One step of an Elman RNN, with the parameters of torch.nn.RNNCell.

    Called as `cell(input, state=None) -> (output, state)`, both the new h [batch, hidden_size].

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        bias: whether there are biases.
        nonlinearity: 'tanh' or 'relu'.
        device: where the parameters are.
        dtype: what the parameters are.

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
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.nonlinearity = _checked("RNNCell", nonlinearity)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = step_parameters(
            input_size, hidden_size, hidden_size, bias, device, dtype
        )

    def pack_state(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor h."""
        return tensors[0]

    def step(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """H' = phi(W_ih x + b_ih + W_hh h + b_hh)."""
        projected = F.linear(input, self.weight_ih, self.bias_ih)
        h = rnn_step(projected, state, self.weight_hh, self.bias_hh, self.nonlinearity)
        return h, h


def _checked(cell: str, nonlinearity: str) -> str:
    if nonlinearity not in NONLINEARITIES:
        raise CellError(f"{cell}: nonlinearity is {nonlinearity!r}; accepted is 'tanh' or 'relu'")
    return nonlinearity
