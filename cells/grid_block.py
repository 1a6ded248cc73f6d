"""One position of a Grid LSTM: N transforms of a shared context, in one product or, with priorities, in two."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "GATED", "OUTPUT_FORMS", "Activation", "GridForm", "GridProducts", "OutputForm", "Stage"]

Activation = Literal["identity", "tanh", "relu", "sigmoid"]
OutputForm = Literal["o*tanh(m)", "tanh(o*m)"]
GATED: OutputForm = "o*tanh(m)"
OUTPUT_FORMS: tuple[OutputForm, ...] = (GATED, "tanh(o*m)")
ACTIVATIONS = {"identity": lambda a: a, "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class Stage:
    """The transforms that see the same context.

    Attributes:
        memory: the dimensions with a memory, in order.
        plain: those without.
    """

    memory: tuple[int, ...]
    plain: tuple[int, ...]

    @property
    def dimensions(self) -> tuple[int, ...]:
        """All of them, in the order in which `transform` gives their h."""
        return self.memory + self.plain


class GridForm:
    """Which transforms a block of a Grid LSTM has (Kalchbrenner, Danihelka, Graves 2015, arXiv 1507.01526, section 3).

    Its weight is [rows, N * d], for dimension after dimension the rows u, f, o, c [4d], or V [d] where it has no
    memory; its columns are h_1 to h_N. h is [..., N * d], m [..., M * d] of the M dimensions with a memory, in order.

    Args:
        dimensions: N.
        hidden_size: d.
        priority: the dimensions whose context has the new h of the others (section 3.2).
        plain: the dimensions without memory, h' = activation(V H) (section 3.3).
        activation: of the dimensions without memory.
        output: how the output gate acts.
    """

    def __init__(
        self,
        dimensions: int,
        hidden_size: int,
        priority: Collection[int] = (),
        plain: Collection[int] = (),
        activation: Activation = "identity",
        output: OutputForm = GATED,
    ) -> None:
        every = range(dimensions)
        self.dimensions, self.hidden_size = dimensions, hidden_size
        self.activation, self.output = activation, output
        self.memory = tuple(i for i in every if i not in plain)
        first = [i for i in every if i not in priority]
        groups = [first, [i for i in every if i in priority]]
        self.stages = tuple(
            Stage(tuple(i for i in group if i not in plain), tuple(i for i in group if i in plain))
            for group in groups
            if group
        )
        self._starts = [0]
        for i in every:
            self._starts.append(self._starts[-1] + (4 if i in self.memory else 1) * hidden_size)

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return self._starts[-1]

    def rows_of(self, dimension: int, gate: str = "") -> slice:
        """The rows of one dimension, or those of its gate u, f, o or c."""
        start, end = self._starts[dimension : dimension + 2]
        if gate:
            start += "ufoc".index(gate) * self.hidden_size
            end = start + self.hidden_size
        return slice(start, end)

    def columns_of(self, dimension: int) -> slice:
        """Where h of a dimension is in h."""
        return slice(dimension * self.hidden_size, (dimension + 1) * self.hidden_size)

    def rows_of_stage(self, stage: Stage) -> list[slice]:
        """The rows of a stage's transforms in the order in which they are used: all u, all f, all o, all c, all V."""
        gates = [self.rows_of(i, gate) for gate in "ufoc" for i in stage.memory]
        return gates + [self.rows_of(i) for i in stage.plain]

    def transform(self, a: Tensor, m: Tensor, stage: Stage, once: bool = False) -> tuple[Tensor, Tensor]:
        """Equations of section 2: u, f, o = s(a), c = tanh(a); m' = f * m + u * c; h' = o * tanh(m').

        Args:
            a: the stage's rows times the context, [..., rows], in the order of `rows_of_stage`.
            m: of the stage's dimensions with a memory, [..., k * d].
            stage: which.
            once: whether the gates are split once, each for a sigmoid of its own: fewer copies, more functions.

        Returns:
            The new h of the stage's dimensions, [..., count * d], and their new m.
        """
        width, plain = len(stage.memory) * self.hidden_size, len(stage.plain) * self.hidden_size
        activate = ACTIVATIONS[self.activation]
        if not width:
            return activate(a), m
        own = [plain] if plain else []
        if once:
            u, f, o, candidate, *rest = torch.split(a, [*[width] * 4, *own], -1)
            u, f, o = torch.sigmoid(u), torch.sigmoid(f), torch.sigmoid(o)
        else:
            both, candidate, *rest = torch.split(a, [3 * width, width, *own], -1)
            u, f, o = torch.split(torch.sigmoid(both), width, -1)
        m = f * m + u * torch.tanh(candidate)
        h = o * torch.tanh(m) if self.output == GATED else torch.tanh(o * m)
        return (torch.cat([h, activate(rest[0])], -1) if plain else h), m


class GridProducts:
    """A block with weights: `block(h, m) -> (h, m)` for any number of positions at once.

    Args:
        form: its transforms.
        weight: [..., rows, N * d]; axes before the last two stand for those of the positions, such as [layers, ...] for
            h [..., layers, batch, N * d].
        bias: [..., rows] or None.
        stages: the stages to prepare, if not those of the form.
        factor: whether the bias is a column of the weight, for a factor of its own (see `parts`).
    """

    def __init__(
        self,
        form: GridForm,
        weight: Tensor,
        bias: Tensor | None,
        stages: tuple[Stage, ...] | None = None,
        factor: bool = False,
    ) -> None:
        self.form = form
        if factor and bias is not None:
            weight, bias = torch.cat([weight, bias.unsqueeze(-1)], -1), None
        rows = [form.rows_of_stage(stage) for stage in stages or form.stages]
        self.weights = [_rows(weight, each, -2) for each in rows]
        self.biases = [None if bias is None else _rows(bias, each, -1) for each in rows]
        if torch.compiler.is_exporting() and len(rows) > 1:
            # The tracer of torch's scan refuses two views of one tensor.
            self.weights = [each.clone() for each in self.weights]
            self.biases = [None if each is None else each.clone() for each in self.biases]
        if weight.dim() > 2:
            self.weights = [each.transpose(-1, -2) for each in self.weights]
            self.biases = [None if each is None else each.unsqueeze(-2) for each in self.biases]

    def __call__(self, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The block: h [..., N * d] and m [..., M * d], both before and after."""
        form = self.form
        if len(form.stages) == 1 and not form.stages[0].plain:
            return form.transform(self.product(h, 0), m, form.stages[0])
        return self.of_parts(self._split(h), self._split(m) if form.memory else (), h)

    def of_parts(
        self,
        h: Sequence[Tensor],
        m: Sequence[Tensor],
        together: Tensor | None = None,
        factor: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """The block with a tensor [..., d] for each dimension before, h of all N and m of those with a memory.

        Args:
            h: before.
            m: before.
            together: all of h side by side, where they are at hand.
            factor: what the bias is multiplied by, [..., 1], if it is a column of the weight; 0 for positions where
                zeros are to stay zeros.

        Returns:
            h [..., N * d] and m [..., M * d] after; without memories the latter is [..., 0].
        """
        form = self.form
        seen_m = dict(zip(form.memory, m, strict=True))
        new_h: list[tuple[tuple[int, ...], Tensor]] = []
        new_m: list[tuple[tuple[int, ...], Tensor]] = []
        for number, stage in enumerate(form.stages):
            # What the first stage made takes the place of what came in; a stage does not see its own.
            made = dict(self._pieces(new_h))
            context = [made.get(i, seen) for i, seen in enumerate(h)]
            seen = together if together is not None and not number else _joined([*context, *factor])
            part = _joined([seen_m[i] for i in stage.memory]) if stage.memory else seen
            made_h, made_m = form.transform(self.product(seen, number), part, stage, once=together is None)
            new_h.append((stage.dimensions, made_h))
            if stage.memory:
                new_m.append((stage.memory, made_m))
        return self._in_order(new_h), self._in_order(new_m) if new_m else h[0][..., :0]

    def _pieces(self, made: list[tuple[tuple[int, ...], Tensor]]) -> list[tuple[int, Tensor]]:
        return [pair for dimensions, values in made for pair in zip(dimensions, self._split(values), strict=True)]

    def _in_order(self, made: list[tuple[tuple[int, ...], Tensor]]) -> Tensor:
        """What stages made of their dimensions, side by side in the order of the dimensions."""
        if len(made) == 1 and made[0][0] == tuple(sorted(made[0][0])):
            return made[0][1]
        return _joined([values for _, values in sorted(self._pieces(made), key=lambda pair: pair[0])])

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        """The parts of single dimensions."""
        if values.shape[-1] == self.form.hidden_size:
            return (values,)
        return torch.split(values, self.form.hidden_size, -1)

    def product(self, context: Tensor, number: int) -> Tensor:
        """The rows of stage `number`, in the order in which `transform` takes them, times the context."""
        weight, bias = self.weights[number], self.biases[number]
        if weight.dim() == 2:
            return F.linear(context, weight, bias)
        product = context @ weight
        return product if bias is None else product + bias


def _rows(tensor: Tensor, rows: list[slice], axis: int) -> Tensor:
    """Slices of one axis, joined; neighbours in one piece."""
    merged = [rows[0]]
    for each in rows[1:]:
        if each.start == merged[-1].stop:
            merged[-1] = slice(merged[-1].start, each.stop)
        else:
            merged.append(each)
    return _joined([tensor.narrow(axis, each.start, each.stop - each.start) for each in merged], axis)


def _joined(pieces: list[Tensor], axis: int = -1) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)
