"""What the multi-dimensional networks have in common: directions, parameters, layouts, one wavefront."""

import itertools
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import CellError, check_flag, check_input, check_size
from .sizes import check_sizes, mask_grid, valid_positions
from .wavefront import wavefront_outputs

__all__ = ["Combine", "Directions", "MDLayer"]

Directions = Literal["all", "forward"] | int
Combine = Literal["concat", "sum"]


class MDLayer(nn.Module, ABC):
    """One layer of a recurrent network over grids of N dimensions, in up to 2^N directions.

    Direction k of 0 to 2^N - 1 goes backwards along dimension d where the binary digit d of k, the first being the
    highest of N, is 1. Each has parameters of its own, whose names end in what it flips: '' for none, '_flip1' for
    dimension 1, '_flip01' for both. All directions run in one wavefront.

    Attributes:
        input_size: features of the input.
        hidden_size: features of the state per direction.
        dimensions: N.
        flips: for each direction the dimensions that it goes backwards along.
        combine: whether the outputs of the directions are concatenated or summed.
        batch_first: whether input and output are [batch, n_1, ..., n_N, features].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dimensions: int,
        directions: Directions,
        combine: Combine,
        bias: bool,
        batch_first: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for what, size in (("input_size", input_size), ("hidden_size", hidden_size), ("dimensions", dimensions)):
            check_size(name, what, size)
        for what, flag in (("bias", bias), ("batch_first", batch_first)):
            check_flag(name, what, flag)
        if combine not in ("concat", "sum"):
            raise CellError(f"{name}: combine is {combine!r}; accepted: 'concat', 'sum'")
        corners = 2**dimensions
        count = (
            {"all": corners, "forward": 1}.get(directions, directions) if isinstance(directions, str) else directions
        )
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= corners:
            raise CellError(f"{name}: directions is {directions!r}; accepted: 'all', 'forward', or 1 to {corners}")
        self.input_size, self.hidden_size, self.dimensions = input_size, hidden_size, dimensions
        self.combine, self.batch_first = combine, batch_first
        every = itertools.product((False, True), repeat=dimensions)
        self.flips = [
            tuple(d for d, backwards in enumerate(corner) if backwards) for corner in itertools.islice(every, count)
        ]

    @property
    def num_directions(self) -> int:
        """How many directions there are."""
        return len(self.flips)

    @property
    def output_size(self) -> int:
        """Features of the output, all directions together."""
        return self.hidden_size * (self.num_directions if self.combine == "concat" else 1)

    def suffixes(self) -> list[str]:
        """What the names of each direction's parameters end in."""
        return ["_flip" + "".join(map(str, flip)) if flip else "" for flip in self.flips]

    def of_directions(self, name: str) -> Tensor | None:
        """A parameter of all directions, [directions, ...], or None where there is none; without the axis for one."""
        found = [getattr(self, name + suffix) for suffix in self.suffixes()]
        if found[0] is None:
            return None
        return torch.stack(found) if self._stacked else found[0]

    @property
    def _stacked(self) -> bool:
        return self.flips != [()]

    @abstractmethod
    def initial(self, like: Tensor) -> Any:
        """The state outside of the grid, from a tensor of zeros [(directions), batch, hidden_size]."""

    @abstractmethod
    def make_step(self, weight_hh: Tensor, **options: Any) -> Any:
        """`(before, a) -> (state, output)` of a wavefront.

        Args:
            weight_hh: [(directions), N * hidden_size, rows], for the predecessors' h side by side; with rows for the
                input behind these, where the step is to multiply it too (see `product`).
            **options: a cell's own.
        """

    def ordered(self, rows: Tensor, axis: int) -> Tensor:  # noqa: ARG002 - of a cell with blocks
        """Rows of the parameters in the order that the step takes them."""
        return rows

    def run(self, input: Tensor, sizes: Tensor | None, **options: Any) -> Any:
        """What the step gives for every position.

        Args:
            input: as of `forward`.
            sizes: as of `forward`.
            **options: of the step.

        Returns:
            [n_1, ..., n_N, batch, directions, features] each, in the structure of the step's output.

        Raises:
            CellError: if a shape, a dtype or a size is not accepted.
        """
        name, rank = type(self).__name__, self.dimensions
        grid_axes = [f"n_{d}" for d in range(1, rank + 1)]
        axes = ["batch", *grid_axes, "features"] if self.batch_first else [*grid_axes, "batch", "features"]
        weight_ih, bias = self.of_directions("weight_ih"), self.of_directions("bias")
        weight_hh = self.of_directions("weight_hh")
        assert weight_ih is not None
        assert weight_hh is not None
        check_input(name, input, rank + 2, f"[{', '.join(axes)}]", self.input_size, weight_ih)
        if self.batch_first:
            input = input.movedim(0, -2)
        grid, batch = input.shape[:rank], input.shape[rank]
        if sizes is not None:
            sizes = check_sizes(sizes, grid, batch)
            if not torch.compiler.is_exporting():
                # The projection's weight has the gradient x^T g: NaN in x would reach it although g is 0 there.
                input = mask_grid(input, valid_positions(sizes, grid))
        lead = (self.num_directions,) if self._stacked else ()
        # [(directions), N, rows, H] to [(directions), N * H, rows]
        together = self.ordered(weight_hh, -2).transpose(-1, -2).flatten(-3, -2)
        weight_ih = self.ordered(weight_ih, -2)
        bias = None if bias is None else self.ordered(bias, -1)
        exporting = torch.compiler.is_exporting()
        if exporting and self.input_size < weight_ih.shape[-2]:
            # Fewer features than gates: they are brought to the step, and multiplied by their weights there.
            scanned = input if bias is None else F.pad(input, (0, 1), value=1.0)
            scanned = scanned.unsqueeze(-2) if self._stacked else scanned
            of_input = [weight_ih.transpose(-1, -2), *([] if bias is None else [bias.unsqueeze(-2)])]
            together = torch.cat([together, *of_input], -2)
        else:
            # What does not depend on the state, for all positions and directions in one product.
            scanned = F.linear(input, weight_ih.flatten(0, -2), None if bias is None else bias.flatten())
            if self._stacked:
                scanned = scanned.reshape(*scanned.shape[:-1], self.num_directions, weight_hh.shape[-2])
        state = self.initial(input.new_zeros((*lead, batch, self.hidden_size)))
        return wavefront_outputs(
            self.make_step(together, **options),
            state,
            scanned,
            grid,
            # The result is the same to the bit; a file has to keep to one dimension.
            along=-1 if exporting else max(range(rank), key=lambda d: grid[d]),
            sizes=sizes,
            flips=self.flips if self._stacked else None,
        )

    def joined(self, h: Tensor) -> Tensor:
        """The layer's output of what `run` gave for h."""
        if self._stacked:
            h = h.flatten(-2) if self.combine == "concat" else h.sum(-2)
        return h.movedim(-2, 0) if self.batch_first else h

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = [str(self.input_size), str(self.hidden_size), f"dimensions={self.dimensions}"]
        shown.append(f"directions={self.num_directions}")
        if self.combine != "concat":
            shown.append(f"combine={self.combine!r}")
        if self.batch_first:
            shown.append("batch_first=True")
        return ", ".join(shown)


def product(x: Tensor, h: tuple[Tensor, ...], weight: Tensor) -> Tensor:
    """W x + b + sum_d R_d h_d for all rows, of one direction or of several.

    Args:
        x: [(directions), rows, features of the weight] with what W x + b is, or the input as the rest of the weight
            takes it: [(directions), rows, I], or I + 1 with a 1 at the end.
        h: [(directions), rows, H] each.
        weight: [(directions), N * H, features], or with rows for the input behind these.
    """
    if weight.shape[-2] > len(h) * h[0].shape[-1]:
        return torch.cat([*h, x], -1) @ weight
    together = h[0] if len(h) == 1 else torch.cat(h, -1)
    return torch.addmm(x, together, weight) if x.dim() == 2 else torch.baddbmm(x, together, weight)
