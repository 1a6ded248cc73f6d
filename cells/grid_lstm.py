"""The Grid LSTM: LSTM cells along every dimension of a grid, depth among them."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import CellError, check_flag, check_input, check_size
from .grid_blank import keeps_zeros, run_blank
from .grid_block import ACTIVATIONS, GATED, OUTPUT_FORMS, Activation, GridForm, GridProducts, OutputForm
from .grid_checks import check_choice, check_dimensions, check_grid_state, grid_sizes
from .grid_layers import is_layerable, run_layers
from .lengths import mask_steps, valid_steps
from .sizes import mask_grid, valid_positions
from .wavefront import wavefront

__all__ = ["GridLSTM", "GridState"]

Schedule = Literal["auto", "layers", "wavefront"]
Readout = Literal["h", "hm"]


class GridState(NamedTuple):
    """What passes from one piece of a grid to the next along its first dimension.

    Attributes:
        h: [n_2, ..., n_(N-1), layers, batch, hidden_size]; over time and depth [layers, batch, hidden_size].
        m: the memory, of the same shape; None where the first dimension has none.
    """

    h: Tensor
    m: Tensor | None = None


class GridLSTM(nn.Module):
    """Grid LSTM (Kalchbrenner, Danihelka, Graves 2015, arXiv 1507.01526): LSTM cells along depth too.

    A grid has N dimensions, the last of them depth, whose positions are layers. At each position a block takes a pair
    (h_i, m_i) along every dimension and hands on another; all transforms see H = [h_1; ...; h_N] (section 2):

        u, f, o = s(W_u H + b_u), s(W_f H + b_f), s(W_o H + b_o);  c = tanh(W_c H + b_c)
        m_i' = f * m_i + u * c;  h_i' = o * tanh(m_i')

    With one dimension it is a feed-forward network with gates, with two (time, depth) a stacked LSTM with cells along
    depth, with three it reads images or pairs of sequences. The data enters at the depth side of every position through
    a learned projection to h_N and m_N, and is read at the opposite side after the last layer (section 3.4).

    Called as `grid(input, state=None, lengths=None, sides=None) -> (output, state)`. The state is what leaves along the
    first dimension, `GridState(h, m)`, each [n_2, ..., n_(N-1), num_layers, batch, hidden_size], so that a sequence, or
    an image by its rows, can be cut into pieces. With one dimension it is the pair that leaves the last layer, and
    none is taken; with several `directions` there is none.

    Parameters: weight [rows, N * hidden_size] with, dimension after dimension, the rows u, f, o, c (V without memory);
    bias [rows]; both [num_layers, ...] unless `tied`, and in front of that [directions, ...] if there are any. The
    projections are the torch.nn.Linear `entry` and, for other sides, `entries[str(dimension)]`; each gives h and then
    m. `outside` is what enters where nothing is given, h of all dimensions but depth, then m.

    Args:
        input_size: features of the input.
        hidden_size: features of each h and m, d.
        num_layers: size of the grid along depth.
        dimensions: N, with depth.
        tied: whether all layers share their weights (section 3.5); positions along other dimensions always do.
        priority: dimensions computed after the others, from their new h (section 3.2); 0 to N - 1.
        plain: dimensions without memory, h_i' = activation(V H) (section 3.3).
        activation: of those: 'identity', 'tanh', 'relu' or 'sigmoid'.
        form: 'o*tanh(m)', an LSTM's; or 'tanh(o*m)', as the paper prints it.
        bias: whether there are biases.
        readout: 'h', or 'hm' for h and m of the depth side side by side.
        learned_outside: whether what enters at the other sides is learned instead of 0.
        side_sizes: features of data that is to enter at the sides of other dimensions, by dimension.
        directions: for each of several runs with weights of their own the dimensions that it goes backwards along, such
            as `[(), (0,), (1,), (0, 1)]` for images; their outputs are side by side.
        batch_first: whether input and output have the batch as axis 0.
        schedule: 'layers' for one layer after the other, which a grid over time and depth allows unless time has
            priority or no memory, or the form is 'tanh(o*m)'; 'wavefront' for one anti-diagonal after the other; 'auto'
            for layers where possible. Results are the same up to rounding.
        device: where the parameters are.
        dtype: what the parameters are.

    Raises:
        CellError: if an argument is not accepted.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    outside: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dimensions: int = 2,
        *,
        tied: bool = False,
        priority: Collection[int] = (),
        plain: Collection[int] = (),
        activation: Activation = "identity",
        form: OutputForm = GATED,
        bias: bool = True,
        readout: Readout = "h",
        learned_outside: bool = False,
        side_sizes: Mapping[int, int] | None = None,
        directions: Sequence[Collection[int]] | None = None,
        batch_first: bool = False,
        schedule: Schedule = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for what, value in {**sizes, "dimensions": dimensions}.items():
            check_size("GridLSTM", what, value)
        flags = {"tied": tied, "bias": bias, "learned_outside": learned_outside, "batch_first": batch_first}
        for what, flag in flags.items():
            check_flag("GridLSTM", what, flag)
        for what, given in (("priority", priority), ("plain", plain)):
            check_dimensions(what, given, dimensions)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("form", form, OUTPUT_FORMS)
        check_choice("readout", readout, ("h", "hm"))
        check_choice("schedule", schedule, ("auto", "layers", "wavefront"))
        self.input_size, self.hidden_size, self.num_layers, self.dimensions = *sizes.values(), dimensions
        self.tied, self.readout, self.batch_first = tied, readout, batch_first
        self.priority, self.plain = tuple(sorted(priority)), tuple(sorted(plain))
        self.form = GridForm(dimensions, hidden_size, priority, plain, activation, form)
        self.directions = None if directions is None else tuple(tuple(flip) for flip in directions)
        if self.directions is not None:
            if not self.directions:
                raise CellError("GridLSTM: directions is empty; accepted is at least one, or None")
            for flip in self.directions:
                check_dimensions("directions", flip, dimensions - 1)
        side_sizes = dict(side_sizes or {})
        check_dimensions("side_sizes", side_sizes, dimensions - 1)
        for dimension, size in side_sizes.items():
            check_size("GridLSTM", f"side_sizes[{dimension}]", size)
        layerable = is_layerable(self.form) and self.directions is None
        if schedule == "layers" and not layerable:
            raise CellError(
                "GridLSTM: schedule is 'layers', which needs two dimensions, time with memory and without priority, "
                "form 'o*tanh(m)' and one direction; accepted here is 'wavefront' or 'auto'"
            )
        if readout == "hm" and not self._has_memory(dimensions - 1):
            raise CellError("GridLSTM: readout is 'hm', and depth has no memory; accepted is 'h'")
        self.by_layers = layerable and schedule != "wavefront"
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        runs = [] if self.directions is None else [len(self.directions)]
        own = [*runs, *([] if tied else [num_layers])]
        self.weight = nn.Parameter(torch.empty(*own, self.form.rows, dimensions * hidden_size, **made))
        self.bias = nn.Parameter(torch.empty(*own, self.form.rows, **made)) if bias else None
        depth, count = dimensions - 1, math.prod(runs)
        self.entry = nn.Linear(input_size, count * self._pair(depth), bias=bias, **made)
        self.entries = nn.ModuleDict(
            {str(i): nn.Linear(size, count * self._pair(i), bias=bias, **made) for i, size in side_sizes.items()}
        )
        elsewhere = sum(self._pair(i) for i in range(depth))
        self.outside = nn.Parameter(torch.empty(*runs, elsewhere, **made)) if learned_outside and elsewhere else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw from U(-1/sqrt(d), 1/sqrt(d)) as torch.nn.LSTM does; the forget bias of depth is 1, `outside` is 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
            if self._has_memory(self.dimensions - 1):
                with torch.no_grad():
                    self.bias[..., self.form.rows_of(self.dimensions - 1, "f")] = 1
        for entry in (self.entry, *self.entries.values()):
            cast(nn.Linear, entry).reset_parameters()
        if self.outside is not None:
            nn.init.zeros_(self.outside)

    @property
    def output_size(self) -> int:
        """Features of the output, all directions together."""
        return len(self.directions or [()]) * len(self.readout) * self.hidden_size

    def forward(
        self,
        input: Tensor,
        state: tuple[Tensor, Tensor | None] | None = None,
        lengths: Tensor | None = None,
        sides: Mapping[int, Tensor] | None = None,
    ) -> tuple[Tensor, GridState | None]:
        """Run the grid over a batch.

        Args:
            input: [n_1, ..., n_(N-1), batch, input_size], over time and depth [time, batch, input_size]; with
                `batch_first` the batch is axis 0.
            state: what enters along the first dimension, as a call gives it; None for 0, or what is learned.
            lengths: integer [batch, N - 1], over time and depth [batch]: the valid positions of each element along each
                dimension but depth, 0 to the size of the axis; a negative one means the whole axis. What the padding
                holds is never read, and the output there is 0.
            sides: by dimension, data [the other n..., batch, features] that enters there, at all layers, through the
                projection of that side; only dimensions of `side_sizes`.

        Returns:
            The output, laid out like the input, and the state.

        Raises:
            CellError: if a shape, a dtype or a length is not accepted.
        """
        spatial = self.dimensions - 1
        axes = [*(["time"] if spatial == 1 else [f"n_{i + 1}" for i in range(spatial)])]
        axes = ["batch", *axes, "features"] if self.batch_first else [*axes, "batch", "features"]
        check_input("GridLSTM", input, spatial + 2, f"[{', '.join(axes)}]", self.input_size, self.weight)
        if self.batch_first:
            input = input.movedim(0, -2)
        grid, batch = list(input.shape[:spatial]), input.shape[-2]
        sizes = grid_sizes(lengths, grid, batch)
        if sizes is not None and not torch.compiler.is_exporting():
            # The projection's weight has the gradient x^T g: NaN in x would reach it although g is 0 there.
            input = mask_grid(input, valid_positions(sizes, grid))
        self._check_state(state, grid, batch)
        entering = self._projected(self.entry, self.dimensions - 1, input)
        given = self._sides(state, sides, [*grid, batch], sizes)
        final: GridState | None
        if self.dimensions == 1:
            output, final = self._run_feed_forward(entering)
        elif self.by_layers and (torch.compiler.is_exporting() or 0 not in input.shape[:2]):
            output, final = self._run_layers(entering, given[0], sizes)
        else:
            output, final = self._run_wavefront(entering, given, grid, sizes)
        return (output.movedim(-2, 0) if self.batch_first else output), final

    def _run_feed_forward(self, entering: tuple[Tensor, Tensor | None]) -> tuple[Tensor, GridState]:
        """The layers of a grid without other dimensions."""
        h, m = entering
        m = h.new_empty((*h.shape[:-1], 0)) if m is None else m
        for weight, bias in self._of_layers():
            h, m = GridProducts(self.form, weight, bias)(h, m)
        return self._read(h, m), GridState(h, m if self.form.memory else None)

    def _run_layers(
        self, entering: tuple[Tensor, Tensor | None], state: tuple[Tensor, Tensor | None] | None, sizes: Tensor | None
    ) -> tuple[Tensor, GridState]:
        """One layer after the other, all of a sequence at once."""
        h, m = entering
        if state is None:
            shape = (self.num_layers, h.shape[1], self.hidden_size)
            outside = h.new_zeros(2 * self.hidden_size) if self.outside is None else self.outside
            h_0, m_0 = (each.expand(shape) for each in outside.chunk(2))
        else:
            h_0, m_0 = state[0], cast(Tensor, state[1])
        lengths = None if sizes is None else sizes[:, 0]
        weights, biases = zip(*self._of_layers(), strict=True)
        h, m, *final = run_layers(self.form, list(weights), list(biases), h, h if m is None else m, (h_0, m_0), lengths)
        output = self._read(h, m)
        if lengths is not None:
            output = mask_steps(output, valid_steps(lengths, output.shape[0]))
        return output, GridState(*final)

    def _run_wavefront(
        self,
        entering: tuple[Tensor, Tensor | None],
        given: list[tuple[Tensor, Tensor | None] | None],
        grid: list[int],
        sizes: Tensor | None,
    ) -> tuple[Tensor, GridState | None]:
        """One anti-diagonal of the grid, layers among its dimensions, after the other.

        A state holds h and m of all dimensions side by side, and each position selects, dimension by dimension, what
        its predecessor there has for it.
        """
        h, d, count = entering[0], self.hidden_size, self.dimensions
        if sizes is not None:
            sizes = torch.cat([sizes, torch.full_like(sizes[:, :1], self.num_layers)], 1)
        apart = None if self.tied else count - 1
        shape = [*grid, self.num_layers]
        nothing = all(pair is None for pair in given) and self.outside is None and keeps_zeros(self.form)
        if nothing and torch.compiler.is_exporting():
            output, state = run_blank(
                self.form,
                self.weight,
                self.bias,
                entering,
                shape,
                self._read,
                apart=apart,
                sizes=sizes,
                flips=self.directions,
            )
            return (output, GridState(*state)) if self.directions is None else (output.flatten(-2), None)
        split = [count * d, len(self.form.memory) * d]
        owner = torch.tensor([*range(count), *self.form.memory], device=h.device).repeat_interleave(d)
        owns = [owner == i for i in range(count)]
        block = GridProducts(self.form, self.weight, self.bias)

        def step(before: tuple[Tensor, ...], _: tuple[()]) -> tuple[Tensor, Tensor]:
            seen = before[0]
            for own, each in zip(owns[1:], before[1:], strict=True):
                seen = torch.where(own, each, seen)
            h, m = block(*torch.split(seen, split, -1))
            return torch.cat([h, m], -1), self._read(h[..., self.form.columns_of(count - 1)], m)

        outside = self._outside(h)
        sides = [None if pair is None else self._placed(i, *pair) for i, pair in enumerate([*given, entering])]
        output, final = wavefront(
            step, outside, (), shape, along=0, apart=apart, sizes=sizes, sides=sides, flips=self.directions
        )
        output = output.select(count - 1, -1)
        if self.directions is not None:
            return output.flatten(-2), None
        memory = final[..., count * d : count * d + d] if self._has_memory(0) else None
        return output, GridState(final[..., :d], memory)

    def _has_memory(self, dimension: int) -> bool:
        return dimension in self.form.memory

    def _pair(self, dimension: int) -> int:
        """Features of h and m of a dimension together."""
        return (2 if self._has_memory(dimension) else 1) * self.hidden_size

    def _read(self, h: Tensor, m: Tensor) -> Tensor:
        """What is read of h [..., d] of depth and m of all dimensions: depth's are the last."""
        return h if self.readout == "h" else torch.cat([h, m[..., -self.hidden_size :]], -1)

    def _of_layers(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each layer."""
        if self.tied:
            return [(self.weight, self.bias)] * self.num_layers
        biases = [None] * self.num_layers if self.bias is None else self.bias.unbind()
        return list(zip(self.weight.unbind(), biases, strict=True))

    def _projected(self, entry: nn.Module, dimension: int, data: Tensor) -> tuple[Tensor, Tensor | None]:
        """Data [..., batch, features] as what enters along a dimension: h and m [..., batch, (directions), d]."""
        pair: Tensor = entry(data)
        if self.directions is not None:
            pair = torch.unflatten(pair, -1, (len(self.directions), -1))
        if not self._has_memory(dimension):
            return pair, None
        h, m = pair.chunk(2, -1)
        return h, m

    def _placed(self, dimension: int, h: Tensor, m: Tensor | None) -> Tensor:
        """A pair h and m of one dimension in the columns of a state of all."""
        d, count = self.hidden_size, len(self.form.memory)
        placed = F.pad(h, (dimension * d, (self.dimensions - 1 - dimension) * d))
        if m is None:
            return F.pad(placed, (0, count * d))
        place = self.form.memory.index(dimension)
        return torch.cat([placed, F.pad(m, (place * d, (count - 1 - place) * d))], -1)

    def _outside(self, like: Tensor) -> Tensor:
        """The state off the grid, [(directions), batch, features], for h [..., batch, (directions), d] of depth."""
        d, spatial = self.hidden_size, self.dimensions - 1
        batch = like.shape[spatial]
        runs = [] if self.directions is None else [len(self.directions)]
        width = (self.dimensions + len(self.form.memory)) * d
        if self.outside is None:
            return like.new_zeros(*runs, batch, width)
        h, m = torch.split(self.outside, [spatial * d, self.outside.shape[-1] - spatial * d], -1)
        values = torch.cat([F.pad(h, (0, d)), F.pad(m, (0, width - self.dimensions * d - m.shape[-1]))], -1)
        return values.unsqueeze(-2).expand(*runs, batch, width)

    def _sides(
        self,
        state: tuple[Tensor, Tensor | None] | None,
        sides: Mapping[int, Tensor] | None,
        shape: list[int],
        sizes: Tensor | None,
    ) -> list[tuple[Tensor, Tensor | None] | None]:
        """For each dimension but depth None or h and m that enter there, [the other n..., layers, batch, ...].

        Args:
            state: as of `forward`.
            sides: as of `forward`.
            shape: [n_1, ..., n_(N-1), batch].
            sizes: [batch, N - 1] or None.
        """
        *grid, _ = shape
        found: list[tuple[Tensor, Tensor | None] | None] = [None for _ in grid]
        if state is not None:
            found[0] = (state[0], state[1] if self._has_memory(0) else None)
        for i, data in (sides or {}).items():
            if str(i) not in self.entries or found[i] is not None:
                free = sorted(int(key) for key in self.entries if found[int(key)] is None)
                raise CellError(f"GridLSTM: sides has data for dimension {i!r}; accepted are those of {free}")
            entry = cast(nn.Linear, self.entries[str(i)])
            check_input("GridLSTM", data, len(grid) + 1, f"of side {i}", entry.in_features, self.weight)
            wanted = [*shape[:i], *shape[i + 1 :]]
            if not torch.compiler.is_exporting():
                if list(data.shape[:-1]) != wanted:
                    raise CellError(
                        f"GridLSTM: data of side {i} has shape {list(data.shape)}; accepted is {wanted} and features"
                    )
                others = [d for d in range(len(grid)) if d != i]
                if sizes is not None and others:
                    data = mask_grid(data, valid_positions(sizes[:, others], wanted[:-1]))
            pair = self._projected(entry, i, data)
            axis, layers = len(grid) - 1, self.num_layers

            def at_all_layers(values: Tensor, axis: int = axis, layers: int = layers) -> Tensor:
                return values.unsqueeze(axis).expand(*values.shape[:axis], layers, *values.shape[axis:])

            found[i] = (at_all_layers(pair[0]), None if pair[1] is None else at_all_layers(pair[1]))
        return found

    def _check_state(self, state: object, grid: list[int], batch: int) -> None:
        if state is None:
            return
        if not grid or self.directions is not None:
            why = "with several directions" if grid else "where depth is the only dimension"
            raise CellError(f"GridLSTM: a state is given; accepted is None {why}")
        names = ("h", "m") if self._has_memory(0) else ("h",)
        shape = [*grid[1:], self.num_layers, batch, self.hidden_size]
        check_grid_state(state, names, shape, (len(grid) - 1, len(grid) + 1))

    def extra_repr(self) -> str:
        """The constructor's main arguments."""
        tied = ", tied=True" if self.tied else ""
        return f"{self.input_size}, {self.hidden_size}, {self.num_layers}, dimensions={self.dimensions}{tied}"
