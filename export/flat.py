"""A user's module as a flat function of tensors, with the states and lengths of its cells taken from its arguments."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.errors import ExportError

from .packing import Padded
from .watching import Layer, layers_of, run_cell, watching


@dataclass(frozen=True)
class Lift:
    """Which cells have their state and lengths taken from the graph's inputs.

    Attributes:
        states: paths of the cells whose state is lifted.
        lengths: paths of the cells that are given the added lengths, where their caller gives them none.
    """

    states: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slots:
    """Where the flat module's arguments go.

    Attributes:
        user: position of each leaf of the user's arguments, in the order of the leaves.
        lengths: position of the added lengths, if there are any.
        states: positions of the state tensors of each lifted cell, by its path.
    """

    user: tuple[int, ...]
    lengths: int | None = None
    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Flat(nn.Module):
    """The user's module as a function of tensors to a tuple of tensors.

    Its recurrent layers run in the form that exports.

    Args:
        model: the user's module.
        structure: how the leaves of its arguments are put together.
        slots: where the arguments go.
        order: the order in which the module's own results are returned; the lifted states follow them.
        lift: which cells take their state and lengths from the arguments.
    """

    def __init__(self, model: nn.Module, structure: Any, slots: Slots, order: Sequence[int], lift: Lift) -> None:
        super().__init__()
        self.model = model
        self.lift = lift
        self.structure = structure
        self._slots = slots
        self._order = order
        self._layers = layers_of(model)

    def of(self, model: nn.Module) -> "Flat":
        """The same function of a copy of the user's module."""
        return self if model is self.model else Flat(model, self.structure, self._slots, self._order, self.lift)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the user's module."""
        slots, lift = self._slots, self.lift
        collected: dict[str, tuple[Tensor, ...]] = {}

        def handle(layer: Layer, input: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
            path = layer.path if layer.path is not None else "?"  # of no part of the module: never lifted
            if path in slots.states:
                state = layer.cell.pack_state([tensors[index] for index in slots.states[path]])
            if lengths is None and slots.lengths is not None and path in lift.lengths:
                lengths = tensors[slots.lengths]
            output, final = run_cell(layer, input, state, lengths)
            if path in slots.states:
                collected[path] = (final,) if isinstance(final, Tensor) else tuple(final)
            return output, final

        with watching(self._layers, handle):
            result = self.model(*pytree.tree_unflatten([tensors[index] for index in slots.user], self.structure))
        leaves = results(result)
        states = [tensor for path in lift.states for tensor in collected[path]]
        return (*(leaves[index] for index in self._order), *states)


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module in another precision.

    Raises:
        ExportError: the module cannot be copied.
    """
    try:
        return copy.deepcopy(model).to(dtype)
    except Exception as error:  # whatever the module's tensors and attributes raise
        raise ExportError(
            f"the model cannot be copied, which its proof in float64 needs: {type(error).__name__}: {error}"
        ) from error


def results(result: Any) -> list[Tensor]:
    """The tensors that a forward returned, flattened.

    Raises:
        ExportError: it returned something that is no tensor.
    """
    leaves = pytree.tree_leaves(result, is_leaf=lambda each: isinstance(each, Padded))
    leaves = [leaf for leaf in leaves if leaf is not None]
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Padded):
            raise ExportError(f"result {index} of the model is a packed sequence; return pad_packed_sequence's tensors")
        if not isinstance(leaf, Tensor):
            raise ExportError(f"result {index} of the model is {leaf!r:.200}; accepted: a tensor")
    if not leaves:
        raise ExportError("the model returns no tensor")
    return leaves
