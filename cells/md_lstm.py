"""The multi-dimensional LSTM."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .checks import CellError, check_flag
from .md_forms import GATE_PER_DIMENSION, MEMORY_CELLS, MemoryCell, MemoryForm
from .md_layer import Combine, Directions, MDLayer, product

__all__ = ["MDLSTM", "MDLSTMState"]

_STD = 0.1


class MDLSTMState(NamedTuple):
    """The state of each position.

    Attributes:
        h: the output.
        s: the memory.
    """

    h: Tensor
    s: Tensor


class MDLSTM(MDLayer):
    """Multi-dimensional LSTM (Graves, Fernandez, Schmidhuber 2007, arXiv 0705.2011), in up to 2^N directions.

    With p - e_d the predecessor of position p along dimension d, anything outside of the grid being 0:

        a = W x^p + b + sum_d R_d h^{p-e_d}        blocks i, f_1 to f_N, g, o
        i, f_d, o = sigmoid(a)    g = tanh(a_g)
        s^p = i g + sum_d f_d s^{p-e_d}            h^p = o tanh(s^p)

    With `peepholes` a_i gets sum_d p_id s^{p-e_d} more, a_fd gets p_fd s^{p-e_d}, and a_o gets p_o s^p.

    This standard cell sums the memory over all paths, whose number grows like a binomial coefficient: with open forget
    gates it overflows on large grids. The other cells (Leifert, Strauss, Gruning, Wustlich, Labahn 2016, arXiv
    1412.2620; in `cells.md_forms`) bound it. Their blocks are

        halved, ratio_leaky   i, f_1 to f_N, g, o
        stable                i, f, g, o, lambda
        leaky                 f, g, o, lambda
        leaky_lp              f, lambda, g, o_1, o_0

    with N - 1 blocks lambda: for N > 2 the shares of the predecessors are the softmax of these and of 0.

    Parameters, for each direction with its suffix (see `MDLayer`): weight_ih [rows, I], weight_hh [N, rows, H],
    bias [rows], and with peepholes weight_peephole [2N + 1, H]: i from each s, f_1 to f_N, o. They are drawn from a
    normal distribution of standard deviation 0.1, and biases are 0, but for those of forget gates: of the standard cell
    -log(N - 1), with which the gates of all predecessors sum to 1 (0 for N = 2), and 1 for N = 1; 0 of ratio_leaky,
    whose gates are relative; else 1.

    Args:
        input_size: features of the input.
        hidden_size: features of h and s per direction.
        dimensions: N.
        directions: 'all' 2^N, 'forward' for one, or the number of the first ones.
        combine: 'concat' gives directions * hidden_size features, 'sum' hidden_size.
        cell: 'standard', 'halved', 'stable', 'leaky', 'leaky_lp' or 'ratio_leaky'.
        peepholes: whether the gates see the memory; for the cells with a forget gate for each dimension.
        output: 'tanh', or for the leaky cell 'identity' for h = o s.
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
        cell: MemoryCell = "standard",
        peepholes: bool = False,
        output: Literal["tanh", "identity"] = "tanh",
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
        if cell not in MEMORY_CELLS:
            raise CellError(f"MDLSTM: cell is {cell!r}; accepted: {', '.join(map(repr, MEMORY_CELLS))}")
        check_flag("MDLSTM", "peepholes", peepholes)
        if peepholes and cell not in GATE_PER_DIMENSION:
            raise CellError(
                f"MDLSTM: peepholes=True with the cell {cell!r}; accepted: {', '.join(map(repr, GATE_PER_DIMENSION))}"
            )
        if output not in ("tanh", "identity") or (output == "identity" and cell != "leaky"):
            raise CellError(
                f"MDLSTM: output is {output!r} of the cell {cell!r}; accepted: 'tanh', or 'identity' of 'leaky'"
            )
        self.cell = cell
        self.form = MemoryForm(cell, dimensions, hidden_size, output == "tanh")
        rows = len(self.form.blocks) * hidden_size
        shapes = {
            "weight_ih": (rows, input_size),
            "weight_hh": (dimensions, rows, hidden_size),
            "bias": (rows,) if bias else None,
            "weight_peephole": (2 * dimensions + 1, hidden_size) if peepholes else None,
        }
        for suffix in self.suffixes():
            for name, shape in shapes.items():
                made = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(name + suffix, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as the class says."""
        forget = 1.0
        if self.cell == "ratio_leaky":
            forget = 0.0
        elif self.cell == "standard" and self.dimensions > 1:
            forget = -math.log(self.dimensions - 1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if not name.startswith("bias"):
                    parameter.normal_(std=_STD)
                    continue
                parameter.zero_()
                for block, rows in zip(self.form.blocks, torch.split(parameter, self.hidden_size), strict=True):
                    if block.startswith("f"):
                        rows.fill_(forget)

    def forward(self, input: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Run the layer over a batch of grids.

        Args:
            input: [n_1, ..., n_N, batch, input_size], or [batch, n_1, ..., n_N, input_size] with `batch_first`.
            sizes: integer [batch, N], the size of each image, 0 to that of the axis; a negative one means the whole
                axis. What the padding holds is never read, and the output there is 0. A direction that goes backwards
                starts at each image's own far end.

        Returns:
            h, laid out like the input, with the features of all directions.

        Raises:
            CellError: if a shape, a dtype or a size is not accepted.
        """
        return self.joined(self.run(input, sizes)["h"])

    def forward_with_memory(self, input: Tensor, sizes: Tensor | None = None) -> MDLSTMState:
        """The output and the memory of every position, each as of `forward`."""
        found = self.run(input, sizes, memory=True)
        return MDLSTMState(self.joined(found["h"]), self.joined(found["s"]))

    def initial(self, like: Tensor) -> MDLSTMState:
        """Zeros."""
        return MDLSTMState(like, torch.zeros_like(like))

    def ordered(self, rows: Tensor, axis: int) -> Tensor:
        """The gates side by side."""
        return self.form.ordered(rows, axis)

    def make_step(self, weight_hh: Tensor, *, memory: bool = False, **_: Any) -> Any:
        """The equations above; the output holds h, and with `memory` s."""
        peepholes = self.of_directions("weight_peephole")
        if peepholes is not None and peepholes.dim() == 3:
            peepholes = peepholes.transpose(0, 1).unsqueeze(2)

        def step(before: tuple[MDLSTMState, ...], a: Tensor) -> tuple[MDLSTMState, dict[str, Tensor]]:
            a = product(a, tuple([each.h for each in before]), weight_hh)
            h, s = self.form(a, [each.s for each in before], peepholes)
            return MDLSTMState(h, s), {"h": h, "s": s} if memory else {"h": h}

        return step
