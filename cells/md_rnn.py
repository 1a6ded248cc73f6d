"""The multi-dimensional RNN."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .checks import CellError
from .md_layer import Combine, Directions, MDLayer, product
from .parameters import draw_parameter

__all__ = ["MDRNN"]


class MDRNN(MDLayer):
    """Multi-dimensional RNN (Graves, Fernandez, Schmidhuber 2007, arXiv 0705.2011), in up to 2^N directions.

    h^p = phi(W x^p + b + sum_d R_d h^{p-e_d}), with p - e_d the predecessor along dimension d, 0 outside of the grid.

    Parameters, for each direction with its suffix (see `MDLayer`): weight_ih [H, I], weight_hh [N, H, H] and bias [H],
    drawn from U(-1/sqrt(H), 1/sqrt(H)).

    Args:
        input_size: features of the input.
        hidden_size: features of h per direction.
        dimensions: N.
        directions: 'all' 2^N, 'forward' for one, or the number of the first ones.
        combine: 'concat' gives directions * hidden_size features, 'sum' hidden_size.
        nonlinearity: phi, 'tanh' or 'relu'.
        bias: whether there is one.
        batch_first: whether input and output are [batch, n_1, ..., n_N, features].
        device: where the parameters are.
        dtype: what the parameters are.

    Raises:
        CellError: if an argument is not accepted.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dimensions: int = 2,
        directions: Directions = "all",
        combine: Combine = "concat",
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            dimensions=dimensions,
            directions=directions,
            combine=combine,
            bias=bias,
            batch_first=batch_first,
        )
        if nonlinearity not in ("tanh", "relu"):
            raise CellError(f"MDRNN: nonlinearity is {nonlinearity!r}; accepted: 'tanh', 'relu'")
        self.nonlinearity = nonlinearity

        def draw(*shape: int) -> nn.Parameter:
            return draw_parameter(hidden_size, shape, device, dtype)

        for suffix in self.suffixes():
            self.register_parameter("weight_ih" + suffix, draw(hidden_size, input_size))
            self.register_parameter("weight_hh" + suffix, draw(dimensions, hidden_size, hidden_size))
            self.register_parameter("bias" + suffix, draw(hidden_size) if bias else None)

    def forward(self, input: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Run the layer over a batch of grids; arguments, result and errors as of `MDLSTM.forward`."""
        return self.joined(self.run(input, sizes))

    def initial(self, like: Tensor) -> Tensor:
        """Zeros."""
        return like

    def make_step(self, weight_hh: Tensor, **options: Any) -> Any:  # noqa: ARG002
        """The equation above."""
        phi = torch.tanh if self.nonlinearity == "tanh" else torch.relu

        def step(before: tuple[Tensor, ...], a: Tensor) -> tuple[Tensor, Tensor]:
            h = phi(product(a, before, weight_hh))
            return h, h

        return step
