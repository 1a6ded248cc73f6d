"""The SRU, versions 1 and 2: over a sequence, and one step of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from .base import SequenceCell, StepCell
from .checks import CellError, check_flag
from .sru_elementwise import sru_step
from .sru_layer import LayerNormPlace, SRULayer, SRUOptions
from .sru_package import read_package

__all__ = ["SRU", "SRUCell"]


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
        n_proj: inner size of factorised projections; 0 for none. A layer whose input or output is not wider is not
            factorised.
        layer_norm: 'pre' normalises what each layer projects, and not its skip term; 'post' normalises its output;
            None for neither.
        input_projection: whether a linear map without bias comes before the first layer, which makes the input as
            wide as the output.
        input_dropout: probability on what each layer projects, in training; one mask for all steps of a sequence.

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
        n_proj: int = 0,
        layer_norm: LayerNormPlace | None = None,
        input_projection: bool = False,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        options = SRUOptions(bias, version, activation, highway_bias, rescale, skip, n_proj, layer_norm, input_dropout)
        options.check("SRU")
        check_flag("SRU", "input_projection", input_projection)
        if input_projection and input_size == self.output_size:
            raise CellError(
                f"SRU: input_projection is True; accepted is False for an input as wide as the output, {input_size}"
            )
        first = self.output_size if input_projection else input_size
        widest = self.output_size if num_layers > 1 else min(first, self.output_size)
        if n_proj >= widest:
            raise CellError(f"SRU: n_proj is {n_proj}; accepted is 0 to {widest - 1}, less than a layer's sizes")
        self.bias = bias
        self.version = version
        self.activation = activation
        self.n_proj = n_proj
        self.layer_norm = layer_norm
        self.input_to_hidden = (
            nn.Linear(input_size, self.output_size, bias=False, device=device, dtype=dtype)
            if input_projection
            else None
        )
        self.rnn_lst = nn.ModuleList(
            SRULayer(
                first if layer == 0 else self.output_size,
                hidden_size,
                options,
                dropout=self.dropout if layer + 1 < num_layers else 0.0,
                directions=self.num_directions,
                device=device,
                dtype=dtype,
            )
            for layer in range(num_layers)
        )

    @classmethod
    def from_sru(
        cls,
        source: nn.Module | Mapping[str, Tensor],
        *,
        prefix: str = "",
        batch_first: bool = False,
        bidirectional: bool | None = None,
        version: int | None = None,
        activation: str | None = None,
        layer_norm: LayerNormPlace | None = None,
        skip: bool | None = None,
        rescale: bool | None = None,
        highway_bias: float | None = None,
        dropout: float | None = None,
        input_dropout: float | None = None,
    ) -> Self:
        """The same network as an `SRU` or `SRUCell` of the package `sru` (2.6.0), with copies of its parameters.

        A module tells everything. A state_dict tells the sizes, the layers, what is factorised, normalised and
        projected first, and often more; what it does not tell has the package's default unless it is given here.
        The state is c [num_layers, batch, directions * hidden_size], also for a module that returns it in nn.LSTM's
        layout (`nn_rnn_compatible_return`). Outputs in the padding are 0, also after a 'post' layer norm, where the
        package has the norm's bias there. The flag `amp_recurrence_fp16` and `weight_c_init` have no effect.

        Args:
            source: the module, or a state_dict.
            prefix: what a state_dict's keys of the network begin with, such as 'encoder.'; other keys are passed over.
            batch_first: as of the constructor; the package has no such option.
            bidirectional: default False.
            version: 2 if any weight_c is not zero, else 1.
            activation: default 'identity'; the package's `use_tanh` is 'tanh'.
            layer_norm: told by the sizes if the first layer's input and output differ; default 'pre'.
            skip: told by the sizes if the first layer's input and output differ; default True.
            rescale: whether `scale_x` multiplies the skip; default whether any is not 1.
            highway_bias: only matters where parameters are drawn anew; default 0.
            dropout: default 0.
            input_dropout: the package's `rnn_dropout`; default 0.

        Raises:
            CellError: `source` is no such network, computes something else (custom modules, SRU++), or contradicts
                an option.
        """
        package = read_package(
            source,
            prefix,
            {
                "bidirectional": bidirectional,
                "version": version,
                "activation": activation,
                "layer_norm": layer_norm,
                "skip": skip,
                "rescale": rescale,
                "highway_bias": highway_bias,
                "dropout": dropout,
                "input_dropout": input_dropout,
            },
        )
        # On the meta device no parameters are drawn, which would take numbers from torch's generator.
        cell = cls(**package.arguments, batch_first=batch_first, device="meta")
        cell.load_state_dict(package.state_dict, assign=True)
        for ours, theirs in zip(cell.rnn_lst, package.layers or cell.rnn_lst, strict=True):
            _copy_settings(cast(SRULayer, ours), theirs)
        return cell.train(source.training if isinstance(source, nn.Module) else True)

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
        if self.input_to_hidden is not None:
            input = self.input_to_hidden(input)
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
        n_proj: inner size of factorised projections, less than both sizes; 0 for none.
        layer_norm: 'pre', 'post' or None.

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
        n_proj: int = 0,
        layer_norm: LayerNormPlace | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size)
        options = SRUOptions(bias, version, activation, highway_bias, rescale, skip, n_proj, layer_norm)
        options.check("SRUCell")
        narrowest = min(input_size, hidden_size)
        if n_proj >= narrowest:
            raise CellError(f"SRUCell: n_proj is {n_proj}; accepted is 0 to {narrowest - 1}, less than both sizes")
        self.layer = SRULayer(input_size, hidden_size, options, device=device, dtype=dtype)

    def pack_state(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor c."""
        return tensors[0]

    def step(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: c' = f * c + (1 - f) * W x; h = r * g(c') + (1 - r) * skip."""
        u, skip = self.layer.project(input.unsqueeze(0))
        inputs = {"u": u[0]} if skip is None else {"u": u[0], "skip": skip[0]}
        c, h = sru_step(self.layer.vectors(), self.layer.activation, None, state, inputs)
        return self.layer.normalize_output(h), c


def _copy_settings(ours: SRULayer, theirs: Any) -> None:
    """What a layer of the package has for itself: the dropout of a single SRUCell, the epsilon of a layer norm."""
    ours.dropout = float(theirs.dropout)
    if ours.layer_norm is not None:
        ours.layer_norm.eps = float(theirs.layer_norm.eps)
