"""What every cell has in common: a sequence cell over time, and a cell of one step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .checks import CellError, check_flag, check_input, check_lengths, check_probability, check_size, check_state
from .lengths import mask_steps, valid_steps, whole_axis

__all__ = ["SequenceCell", "StepCell"]


class SequenceCell(nn.Module, ABC):
    """A recurrent network over a sequence: stacked layers, one or two directions.

    A call is `cell(input, state=None, lengths=None) -> (output, state)`. Each state tensor has the batch as axis 1.

    Attributes:
        state_names: the names of the state's tensors, in order; a cell with one name takes and gives a plain
            tensor, a cell with several a named tuple.
        input_size: features of the input.
        hidden_size: features of the state per direction.
        num_layers: stacked layers.
        bidirectional: whether each layer also runs from the last step to the first.
        batch_first: whether input and output are [batch, time, features]; states never are.
    """

    state_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for what, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            check_size(name, what, value)
        for what, value in (("batch_first", batch_first), ("bidirectional", bidirectional)):
            check_flag(name, what, value)
        check_probability(name, "dropout", dropout)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional

    @property
    def num_directions(self) -> int:
        """2 if the cell is bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @abstractmethod
    def state_shapes(self, batch_size: int) -> tuple[tuple[int, int, int], ...]:
        """The shape of each state tensor for a batch of the given size, in the order of `state_names`."""

    @abstractmethod
    def pack_state(self, tensors: Sequence[Tensor]) -> Any:
        """The state in the form that a call takes and gives, from its tensors in the order of `state_names`."""

    @abstractmethod
    def run(
        self, input: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers on checked tensors.

        Args:
            input: [time, batch, input_size].
            state: the tensors of `state_shapes`.
            lengths: int64 [batch], 0 to the size of the time axis; None means the whole axis.

        Returns:
            The output [time, batch, features] and the final state's tensors.
        """

    def initial_state(self, batch_size: int) -> Any:
        """Zeros in the form of the state, with the dtype and device of the cell's parameters."""
        like = next(self.parameters())
        return self.pack_state([like.new_zeros(shape) for shape in self.state_shapes(batch_size)])

    def forward(self, input: Tensor, state: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Run the cell over a batch of sequences.

        Args:
            input: [time, batch, input_size], or [batch, time, input_size] with `batch_first`.
            state: the initial state, zeros if None: a tensor, or a tuple of tensors where `state_names` has several.
            lengths: integer [batch], the valid steps of each sequence, 0 to the size of the time axis; a negative
                one means the whole axis. What the padding holds is never read, and the output there is 0.

        Returns:
            The output, laid out like the input with the last layer's features (forward; backward), and the state
            after each sequence's last valid step. A sequence of length 0 keeps its initial state.

        Raises:
            CellError: if a shape, a dtype or a length is not accepted.
        """
        name = type(self).__name__
        axes = "[batch, time, features]" if self.batch_first else "[time, batch, features]"
        check_input(name, input, 3, axes, self.input_size, next(self.parameters(), None))
        if self.batch_first:
            input = input.transpose(0, 1)
        steps, batch = input.shape[0], input.shape[1]
        if lengths is not None:
            lengths = whole_axis(check_lengths(lengths, steps, batch), steps)
            if not torch.compiler.is_exporting():
                # A projection's weight has the gradient x^T g: NaN in x would reach it although g is 0 there.
                input = mask_steps(input, valid_steps(lengths, steps))
        tensors = self.unpack_state(input, state)
        if torch.compiler.is_exporting() or (steps and batch):
            output, tensors = self.run(input, tensors, lengths)
        else:
            output = input.new_zeros((steps, batch, self.output_size))
        return (output.transpose(0, 1) if self.batch_first else output), self.pack_state(tensors)

    @property
    def output_size(self) -> int:
        """Features of the output, both directions together."""
        return self.num_directions * self.hidden_size

    def unpack_state(self, input: Tensor, state: Any) -> tuple[Tensor, ...]:
        """The state's tensors, checked; zeros for an input [time, batch, features] if `state` is None."""
        shapes = self.state_shapes(input.shape[1])
        if state is None:
            return tuple(input.new_zeros(shape) for shape in shapes)
        tensors = (state,) if len(shapes) == 1 else state
        if not isinstance(tensors, tuple | list) or len(tensors) != len(shapes):
            what = f"{len(state)} tensors" if isinstance(state, tuple | list) else f"a {type(state).__name__}"
            raise CellError(
                f"{type(self).__name__}: state is {what}; accepted is a tuple ({', '.join(self.state_names)})"
            )
        for state_name, tensor, shape in zip(self.state_names, tensors, shapes, strict=True):
            check_state(type(self).__name__, state_name, tensor, shape)
        return tuple(tensors)

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = [str(self.input_size), str(self.hidden_size)]
        defaults = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        shown += [f"{key}={getattr(self, key)}" for key, default in defaults.items() if getattr(self, key) != default]
        return ", ".join(shown)


class StepCell(nn.Module, ABC):
    """One step of a recurrent network: `cell(input, state=None) -> (output, state)`.

    It has one layer and one direction. Input is [batch, input_size], each state tensor [batch, features].
    """

    state_names: ClassVar[tuple[str, ...]]

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        for what, value in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_size(type(self).__name__, what, value)
        self.input_size = input_size
        self.hidden_size = hidden_size

    @abstractmethod
    def pack_state(self, tensors: Sequence[Tensor]) -> Any:
        """The state in the form that a call takes and gives, from its tensors in the order of `state_names`."""

    @abstractmethod
    def step(self, input: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step on checked tensors: `(input, state) -> (output, state)`."""

    def initial_state(self, batch_size: int) -> Any:
        """Zeros in the form of the state, with the dtype and device of the cell's parameters."""
        like = next(self.parameters())
        return self.pack_state([like.new_zeros((batch_size, self.hidden_size)) for _ in self.state_names])

    def forward(self, input: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run one step.

        Args:
            input: [batch, input_size].
            state: [batch, hidden_size] each, zeros if None.

        Returns:
            The output [batch, hidden_size] and the new state.

        Raises:
            CellError: if a shape is not accepted.
        """
        name = type(self).__name__
        check_input(name, input, 2, "[batch, features]", self.input_size, next(self.parameters(), None))
        shape = (input.shape[0], self.hidden_size)
        if state is None:
            return self.step(input, self.pack_state([input.new_zeros(shape) for _ in self.state_names]))
        tensors = (state,) if len(self.state_names) == 1 else state
        if not isinstance(tensors, tuple | list) or len(tensors) != len(self.state_names):
            raise CellError(f"{name}: state is a {type(state).__name__}; accepted is ({', '.join(self.state_names)})")
        for state_name, tensor in zip(self.state_names, tensors, strict=True):
            check_state(name, state_name, tensor, shape)
        return self.step(input, self.pack_state(tensors))

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        return f"{self.input_size}, {self.hidden_size}"
