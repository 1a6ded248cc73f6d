"""Parameters and layers of the cells that torch.nn has too: RNN, LSTM and GRU."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import SequenceCell
from .checks import check_flag
from .fused import Kernel, run_fused

__all__ = ["TorchLayers"]


class TorchLayers(SequenceCell):
    """Stacked layers with torch.nn's parameters: their names, shapes, order and initialisation.

    For layer l and direction suffix s ('' or '_reverse'): weight_ih_l{l}{s} [G*H, I or D*P], weight_hh_l{l}{s}
    [G*H, P], bias_ih_l{l}{s} and bias_hh_l{l}{s} [G*H], and, projected, weight_hr_l{l}{s} [P, H]. G is the number of
    gates, H the hidden size, P what is handed on: the projection's size, or H. After them come the cell's own
    parameters, if it has any.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        gates: int,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        own: Sequence[tuple[str, tuple[int, ...]]] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        check_flag(type(self).__name__, "bias", bias)
        self.bias = bias
        self.proj_size = proj_size
        rows = gates * hidden_size
        handed_on = proj_size or hidden_size
        self._names: list[str] = []
        for layer in range(num_layers):
            features = input_size if layer == 0 else self.num_directions * handed_on
            shapes: list[tuple[str, tuple[int, ...]]] = [
                ("weight_ih", (rows, features)),
                ("weight_hh", (rows, handed_on)),
            ]
            if bias:
                shapes += [("bias_ih", (rows,)), ("bias_hh", (rows,))]
            if proj_size:
                shapes += [("weight_hr", (proj_size, hidden_size))]
            shapes += own
            for suffix in self.suffixes(layer):
                for name, shape in shapes:
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}{suffix}", parameter)
                    self._names.append(f"{name}{suffix}")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def suffixes(self, layer: int) -> list[str]:
        """What the names of a layer's parameters end in, one for each direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.num_directions]

    @property
    @abstractmethod
    def kernel(self) -> Kernel | None:
        """The fused kernel that computes this cell, or None where torch has none."""

    @abstractmethod
    def run_layer(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, layer: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one layer in the form that exports, on the state's [directions, batch, features] of this layer."""

    def run(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers at once in torch's kernel, or one after the other under export and where there is no kernel."""
        if self.kernel is not None and not torch.compiler.is_exporting():
            return run_fused(
                self.kernel,
                input,
                state,
                [self.weight(name) for name in self._names],
                lengths,
                bias=self.bias,
                num_layers=self.num_layers,
                bidirectional=self.bidirectional,
                dropout=self.dropout,
                training=self.training,
            )
        finals = []
        for layer in range(self.num_layers):
            if layer:
                input = F.dropout(input, self.dropout, self.training)
            first = layer * self.num_directions
            of_layer = tuple(tensor[first : first + self.num_directions] for tensor in state)
            input, final = self.run_layer(input, of_layer, lengths, layer)
            finals.append(final)
        return input, tuple(_join(column) for column in zip(*finals, strict=True))

    def run_directions(
        self,
        run: Callable[[tuple[Tensor, ...], int], tuple[Tensor, tuple[Tensor, ...]]],
        state: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer as `run(state, d)` for each direction, on the state's [directions, batch, features]."""
        runs = [run(tuple(tensor[d] for tensor in state), d) for d in range(self.num_directions)]
        finals = tuple(torch.stack(column) for column in zip(*(final for _, final in runs), strict=True))
        return torch.cat([output for output, _ in runs], -1), finals

    def stacked(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """A layer's weight_ih [D, G*H, I], weight_hh [D, G*H, H] and bias [D, 2*G*H], or None without one."""
        of = [self.of_direction(layer, d) for d in range(self.num_directions)]
        biases = [torch.cat([b_ih, b_hh]) for _, _, b_ih, b_hh in of if b_ih is not None and b_hh is not None]
        return (
            torch.stack([weights[0] for weights in of]),
            torch.stack([weights[1] for weights in of]),
            torch.stack(biases) if biases else None,
        )

    def of_direction(self, layer: int, d: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """weight_ih, weight_hh, bias_ih and bias_hh of one layer and direction; None for a bias that is off."""
        suffix = self.suffixes(layer)[d]
        weight_ih, weight_hh = self.weight(f"weight_ih{suffix}"), self.weight(f"weight_hh{suffix}")
        if not self.bias:
            return weight_ih, weight_hh, None, None
        return weight_ih, weight_hh, self.weight(f"bias_ih{suffix}"), self.weight(f"bias_hh{suffix}")

    def weight(self, name: str) -> Tensor:
        """A parameter, or the tensor that a parametrisation or a functional call puts in its place."""
        return cast(Tensor, getattr(self, name))

    @property
    def direction(self) -> str:
        """The direction of a layer in ONNX's words."""
        return "bidirectional" if self.bidirectional else "forward"

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = super().extra_repr()
        return shown if self.bias else f"{shown}, bias=False"


def _join(states: tuple[Tensor, ...]) -> Tensor:
    """Final states of the layers as one tensor; a single one is passed on, so that no Concat is exported for it."""
    return states[0] if len(states) == 1 else torch.cat(states)
