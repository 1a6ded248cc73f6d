"""One layer of an SRU: its options, its parameters in the layout of the package `sru`, and its run."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .checks import CellError, check_flag, check_number, check_probability, check_size
from .lengths import mask_steps, valid_steps
from .sru_elementwise import ACTIVATIONS, Masks, run_elementwise
from .sru_export import run_exported

__all__ = ["LayerNormPlace", "SRULayer", "SRUOptions"]

LayerNormPlace = Literal["pre", "post"]


@dataclass(frozen=True)
class SRUOptions:
    """What the layers of an SRU have in common; the arguments of `SRU` of the same names."""

    bias: bool = True
    version: int = 2
    activation: str = "identity"
    highway_bias: float = 0.0
    rescale: bool = True
    skip: bool = True
    n_proj: int = 0
    layer_norm: LayerNormPlace | None = None
    input_dropout: float = 0.0

    def check(self, cell: str) -> None:
        """Refuse what SRU does not have.

        Raises:
            CellError: naming the cell, the option, its value and what is accepted.
        """
        for what in ("bias", "rescale", "skip"):
            check_flag(cell, what, getattr(self, what))
        if isinstance(self.version, bool) or self.version not in (1, 2):
            raise CellError(f"{cell}: version is {self.version!r}; accepted is 1 or 2")
        if self.activation not in ACTIVATIONS:
            raise CellError(f"{cell}: activation is {self.activation!r}; accepted is 'identity', 'tanh' or 'relu'")
        check_number(cell, "highway_bias", self.highway_bias)
        check_size(cell, "n_proj", self.n_proj, least=0)
        if self.layer_norm not in (None, "pre", "post"):
            raise CellError(f"{cell}: layer_norm is {self.layer_norm!r}; accepted is None, 'pre' or 'post'")
        check_probability(cell, "input_dropout", self.input_dropout)


class SRULayer(nn.Module):
    """Parameters of one SRU layer, in the layout of the `sru` package (2.6.0), and its run.

    With I input features, O = directions * H outputs, and k projections, 4 if there is a skip term and I is not O,
    else 3:

    - weight [I, O*k], column (d*H + j)*k + m; m = 0 candidate, 1 forget, 2 reset, 3 skip;
    - weight_proj [I, p], where p = `n_proj` is less than I and O: weight is then [p, O*k], and the projections are
      those of x weight_proj;
    - weight_c [2*O]: v_f of all lanes, then v_r; zero and frozen in version 1;
    - bias [2*O]: b_f of all lanes, then b_r;
    - scale_x [1], a buffer: the highway's alpha, which multiplies the skip where k is 3;
    - layer_norm.weight and layer_norm.bias: [I] of the projections' input ('pre'; the skip stays as it is), [O] of h
      ('post').
    """

    weight_proj: nn.Parameter | None
    weight_c: nn.Parameter
    bias: nn.Parameter | None
    scale_x: Tensor
    layer_norm: nn.LayerNorm | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        options: SRUOptions,
        *,
        dropout: float = 0.0,
        directions: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.directions = directions
        self.output_size = directions * hidden_size
        self.dropout = dropout
        self.input_dropout = options.input_dropout
        self.version = options.version
        self.activation = options.activation
        self.highway_bias = options.highway_bias
        self.rescale = options.rescale
        self.skip = options.skip
        self.normalize_after = options.layer_norm == "post"
        self.projections = 4 if self.skip and input_size != self.output_size else 3
        lanes = 2 * self.output_size

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        factorised = 0 < options.n_proj < min(input_size, self.output_size)
        self.weight_proj = nn.Parameter(empty(input_size, options.n_proj)) if factorised else None
        rows = options.n_proj if factorised else input_size
        self.weight = nn.Parameter(empty(rows, self.output_size * self.projections))
        self.weight_c = nn.Parameter(empty(lanes), requires_grad=self.version == 2)
        self.bias = nn.Parameter(empty(lanes)) if options.bias else None
        self.register_buffer("scale_x", torch.ones(1, device=device, dtype=dtype))
        features = self.output_size if self.normalize_after else input_size
        self.layer_norm = None if options.layer_norm is None else nn.LayerNorm(features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as the authors do: Var(u0) = Var(x), and, rescaled, Var(h) = Var(x) at the start."""
        alpha = math.sqrt(1 + 2 * math.exp(self.highway_bias)) if self.rescale and self.skip else 1.0
        with torch.no_grad():
            self.scale_x.fill_(alpha)
            for weight in (self.weight, self.weight_proj):
                if weight is not None:
                    bound = math.sqrt(3 / weight.shape[0])
                    weight.uniform_(-bound, bound)
            blocks = self.blocks()
            blocks[..., 0] *= math.sqrt(1 - self.dropout)
            if self.input_dropout:
                blocks *= math.sqrt(1 - self.input_dropout)
            if self.layer_norm is not None:
                self.layer_norm.reset_parameters()
                blocks *= 0.1
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
        """A view of the weight as [I or p, directions, H, k]."""
        return self.weight.view(-1, self.directions, self.hidden_size, self.projections)

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
        h, final = run_elementwise(
            u,
            skip,
            self.vectors(),
            c0,
            lengths,
            directions=self.directions,
            activation=self.activation,
            masks=self._draw_masks(input),
        )
        if not self.normalize_after:
            return h, final
        h = self.normalize_output(h)
        return (h if lengths is None else mask_steps(h, valid_steps(lengths, input.shape[0]))), final

    def vectors(self) -> Tensor:
        """v_f, v_r, b_f and b_r as [4, O]."""
        weight_c = self.weight_c.view(2, -1)
        return torch.cat([weight_c, torch.zeros_like(weight_c) if self.bias is None else self.bias.view(2, -1)])

    def projected_input(self, input: Tensor) -> Tensor:
        """What `weight` multiplies: the input [T, B, I], normalised and factorised as told, [T, B, I or p]."""
        if self.layer_norm is not None and not self.normalize_after:
            input = self.layer_norm(input)
        if self.training and self.input_dropout:
            input = input * self._draw_mask(input, self.input_size, self.input_dropout)
        return input if self.weight_proj is None else input @ self.weight_proj

    def normalize_output(self, h: Tensor) -> Tensor:
        """The output [..., O] as it leaves the layer: normalised with 'post'."""
        return self.layer_norm(h) if self.layer_norm is not None and self.normalize_after else h

    def project(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Project the input to u [T, B, 3, O] and the skip term [T, B, O], if there is one."""
        steps, batch, _ = input.shape
        x = self.projected_input(input)
        # The loops want the lanes adjacent, the weight has the blocks adjacent: turn whichever is smaller, and under
        # export the constant one.
        if not torch.compiler.is_exporting() and steps * batch < x.shape[-1]:
            u = (x @ self.weight).view(steps, batch, self.output_size, self.projections).transpose(2, 3)
            gates, own = u[:, :, :3], u[:, :, 3:]
        else:
            weight = self.weight.view(-1, self.output_size, self.projections).transpose(1, 2)
            gates = (x @ weight[:, :3].flatten(1)).view(steps, batch, 3, self.output_size)
            own = (x @ weight[:, 3:].flatten(1)).view(steps, batch, -1, self.output_size)
        if not self.skip:
            return gates, None
        if self.projections == 4:
            return gates, own.squeeze(2)
        return gates, input if self.alpha is None else input * self.alpha

    def _draw_masks(self, input: Tensor) -> Masks | None:
        """Variational dropout: one mask per sequence and lane, the same at every step."""
        if not self.training or not self.dropout:
            return None
        mask = self._draw_mask(input, self.output_size, self.dropout)
        return Masks(mask, mask if self.version == 2 else torch.ones_like(mask))

    def _draw_mask(self, input: Tensor, features: int, dropout: float) -> Tensor:
        return input.new_empty((input.shape[1], features)).bernoulli_(1 - dropout) / (1 - dropout)

    def extra_repr(self) -> str:
        """Sizes and options."""
        return f"{self.input_size}, {self.output_size}, version={self.version}, activation={self.activation!r}"
