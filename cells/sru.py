"""The SRU, versions 1 and 2: over a sequence, and one step of it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import SequenceCell, StepCell
from .checks import CellError
from .sru_elementwise import ACTIVATIONS, Masks, run_elementwise, sru_step
from .sru_export import run_exported

__all__ = ["SRU", "SRUCell", "SRULayer"]


class SRULayer(nn.Module):
    """Parameters of one SRU layer, in the layout of the `sru` package (2.6.0), and its run.

    With I input features, O = directions * H outputs, and k projections, 4 if there is a skip term and I is not O,
    else 3:

    - weight [I, O*k], column (d*H + j)*k + m; m = 0 candidate, 1 forget, 2 reset, 3 skip;
    - weight_c [2*O]: v_f of all lanes, then v_r; zero and frozen in version 1;
    - bias [2*O]: b_f of all lanes, then b_r;
    - scale_x [1], a buffer: the highway's alpha, which multiplies the skip where k is 3.
    """

    weight_c: nn.Parameter
    bias: nn.Parameter | None
    scale_x: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool,
        dropout: float,
        directions: int,
        version: int,
        activation: str,
        highway_bias: float,
        rescale: bool,
        skip: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.directions = directions
        self.output_size = directions * hidden_size
        self.dropout = dropout
        self.version = version
        self.activation = activation
        self.highway_bias = highway_bias
        self.rescale = rescale
        self.skip = skip
        self.projections = 4 if skip and input_size != self.output_size else 3
        lanes = 2 * self.output_size
        self.weight = nn.Parameter(
            torch.empty(input_size, self.output_size * self.projections, device=device, dtype=dtype)
        )
        self.weight_c = nn.Parameter(torch.empty(lanes, device=device, dtype=dtype), requires_grad=version == 2)
        self.bias = nn.Parameter(torch.empty(lanes, device=device, dtype=dtype)) if bias else None
        self.register_buffer("scale_x", torch.ones(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as the authors do: Var(u0) = Var(x), and, rescaled, Var(h) = Var(x) at the start."""
        alpha = math.sqrt(1 + 2 * math.exp(self.highway_bias)) if self.rescale and self.skip else 1.0
        bound = math.sqrt(3 / self.input_size)
        with torch.no_grad():
            self.scale_x.fill_(alpha)
            self.weight.uniform_(-bound, bound)
            blocks = self.blocks()
            blocks[..., 0] *= math.sqrt(1 - self.dropout)
            if self.projections == 4:
                blocks[..., 3] *= alpha
            if self.version == 2:
                blocks[..., 1:3] *= math.sqrt(0.5)
                self.weight_c.uniform_(-math.sqrt(1.5), math.sqrt(1.5))
            else:
                self.weight_c.zero_()
            if self.bias is not None:
                self.bias[: self.output_size] = 0
                self.bias[self.output_size :] = self.highway_bias

    def blocks(self) -> Tensor:
        """A view of the weight as [I, directions, H, k]."""
        return self.weight.view(self.input_size, self.directions, self.hidden_size, self.projections)

    @property
    def alpha(self) -> Tensor | None:
        """What multiplies an input that is its own skip term, [1]; None for 1."""
        return self.scale_x if self.rescale else None

    def forward(self, input: Tensor, c0: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            input: [T, B, I].
            c0: the initial state [B, O].
            lengths: int64 [B] without negatives, or None for the whole time axis.

        Returns:
            h [T, B, O], 0 in the padding, and the final state [B, O].
        """
        if torch.compiler.is_exporting():
            return run_exported(self, input, c0, lengths)
        u, skip = self.project(input)
        return run_elementwise(
            u,
            skip,
            self.vectors(),
            c0,
            lengths,
            directions=self.directions,
            activation=self.activation,
            masks=self._draw_masks(input),
        )

    def vectors(self) -> Tensor:
        """v_f, v_r, b_f and b_r as [4, O]."""
        weight_c = self.weight_c.view(2, -1)
        return torch.cat([weight_c, torch.zeros_like(weight_c) if self.bias is None else self.bias.view(2, -1)])

    def project(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Project the input to u [T, B, 3, O] and the skip term [T, B, O], if there is one."""
        steps, batch, _ = input.shape
        # The loops want the lanes adjacent, the weight has the blocks adjacent: turn whichever is smaller, and under
        # export the constant one.
        if not torch.compiler.is_exporting() and steps * batch < self.input_size:
            u = (input @ self.weight).view(steps, batch, self.output_size, self.projections).transpose(2, 3)
            gates, own = u[:, :, :3], u[:, :, 3:]
        else:
            weight = self.weight.view(self.input_size, self.output_size, self.projections).transpose(1, 2)
            gates = (input @ weight[:, :3].reshape(self.input_size, -1)).view(steps, batch, 3, self.output_size)
            own = (input @ weight[:, 3:].reshape(self.input_size, -1)).view(steps, batch, -1, self.output_size)
        if not self.skip:
            return gates, None
        if self.projections == 4:
            return gates, own.squeeze(2)
        return gates, input if self.alpha is None else input * self.alpha

    def _draw_masks(self, input: Tensor) -> Masks | None:
        """Variational dropout: one mask per sequence and lane, the same at every step."""
        if not self.training or not self.dropout:
            return None
        mask = input.new_empty((input.shape[1], self.output_size)).bernoulli_(1 - self.dropout) / (1 - self.dropout)
        return Masks(mask, mask if self.version == 2 else torch.ones_like(mask))

    def extra_repr(self) -> str:
        """Sizes and options."""
        return f"{self.input_size}, {self.output_size}, version={self.version}, activation={self.activation!r}"


class SRU(SequenceCell):
    """Simple recurrent unit (Lei et al., EMNLP 2018, arXiv 1709.02755), stacked, in one or two directions.

    f_t = s(W_f x_t + v_f * c_{t-1} + b_f); r_t = s(W_r x_t + v_r * c_{t-1} + b_r);
    c_t = f_t * c_{t-1} + (1 - f_t) * W x_t; h_t = r_t * g(c_t) + (1 - r_t) * skip_t.

    skip_t is alpha * x_t where the layer's input is as wide as its output, else a fourth projection of x_t. Version 1
    has v_f = v_r = 0. All products with matrices are over the whole sequence at once; only c is recurrent.

    Called as `sru(input, state=None, lengths=None)`; the state is one tensor c [num_layers, batch,
    directions * hidden_size], features forward; backward. The parameters are those of the package `sru` 2.6.0, whose
    state_dict loads unchanged (rnn_lst.{l}.weight and so on; see `SRULayer`).

    Args:
        input_size: features of the input.
        hidden_size: features of the state per direction.
        num_layers: stacked layers.
        bias: whether the gates have biases.
        batch_first: whether input and output are [batch, time, features].
        dropout: probability on the output of every layer but the last, in training; one mask for all steps of a
            sequence, and none on the skip term.
        bidirectional: whether each layer also runs from the last step to the first.
        device: where the parameters are.
        dtype: what the parameters are.
        version: 1 or 2.
        activation: g: 'identity', 'tanh' or 'relu'.
        highway_bias: initial value of b_r; at most 0, such as -2, for deep networks.
        rescale: whether alpha is sqrt(1 + 2 exp(highway_bias)), which keeps the variance from layer to layer, and
            not 1.
        skip: whether there is a skip term; without one h_t = r_t * g(c_t).

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("c",)

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
        version: int = 2,
        activation: str = "identity",
        highway_bias: float = 0.0,
        rescale: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        check_options("SRU", version, activation)
        self.bias = bias
        self.version = version
        self.activation = activation
        self.rnn_lst = nn.ModuleList(
            SRULayer(
                input_size if layer == 0 else self.output_size,
                hidden_size,
                bias=bias,
                dropout=self.dropout if layer + 1 < num_layers else 0.0,
                directions=self.num_directions,
                version=version,
                activation=activation,
                highway_bias=highway_bias,
                rescale=rescale,
                skip=skip,
                device=device,
                dtype=dtype,
            )
            for layer in range(num_layers)
        )

    def state_shapes(self, batch_size: int) -> tuple[tuple[int, int, int], ...]:
        """c: [num_layers, batch, directions * hidden_size]."""
        return ((self.num_layers, batch_size, self.output_size),)

    def pack_state(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor c."""
        return tensors[0]

    def run(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers, one after the other."""
        finals = []
        for index, layer in enumerate(self.rnn_lst):
            input, final = layer(input, state[0][index], lengths)
            finals.append(final)
        return input, (finals[0].unsqueeze(0) if len(finals) == 1 else torch.stack(finals),)


class SRUCell(StepCell):
    """One step of an SRU, with the parameters of `SRULayer`.

    Called as `cell(input, state=None) -> (output, state)`; the output is h, the state c, each [batch, hidden_size].

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        bias: whether the gates have biases.
        device: where the parameters are.
        dtype: what the parameters are.
        version: 1 or 2.
        activation: 'identity', 'tanh' or 'relu'.
        highway_bias: initial value of b_r.
        rescale: whether alpha is sqrt(1 + 2 exp(highway_bias)) and not 1.
        skip: whether there is a skip term.

    Raises:
        CellError: if an argument is not accepted.
    """

    state_names = ("c",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        version: int = 2,
        activation: str = "identity",
        highway_bias: float = 0.0,
        rescale: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size)
        check_options("SRUCell", version, activation)
        layer = SRULayer(
            input_size,
            hidden_size,
            bias=bias,
            dropout=0.0,
            directions=1,
            version=version,
            activation=activation,
            highway_bias=highway_bias,
            rescale=rescale,
            skip=skip,
            device=device,
            dtype=dtype,
        )
        self.layer = layer

    def pack_state(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor c."""
        return tensors[0]

    def step(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: c' = f * c + (1 - f) * W x; h = r * g(c') + (1 - r) * skip."""
        u, skip = self.layer.project(input.unsqueeze(0))
        inputs = {"u": u[0]} if skip is None else {"u": u[0], "skip": skip[0]}
        c, h = sru_step(self.layer.vectors(), self.layer.activation, None, state, inputs)
        return h, c


def check_options(cell: str, version: int, activation: str) -> None:
    """Refuse a version or an activation that SRU does not have."""
    if version not in (1, 2):
        raise CellError(f"{cell}: version is {version!r}; accepted is 1 or 2")
    if activation not in ACTIVATIONS:
        raise CellError(f"{cell}: activation is {activation!r}; accepted is 'identity', 'tanh' or 'relu'")
