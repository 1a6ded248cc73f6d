"""A user's module as a flat function of tensors, with the states and lengths of its cells taken from its arguments."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.cells import SequenceCell
from cellport.errors import CellportError, ExportError

from .signature import Leaf


@dataclass(frozen=True)
class Lift:
    """Which cells have their state and lengths taken from the graph's inputs.

    Attributes:
        states: paths of the cells whose state is lifted.
        lengths: paths of the cells that are given the added lengths.
    """

    states: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()


@dataclass
class Call:
    """What a probing run saw of one recurrent cell.

    Attributes:
        path: name of the module.
        cell: the module.
        count: how often it was called.
        default_state: whether the caller left the state out.
        default_lengths: whether the caller left the lengths out.
        lengths_are: which argument leaf it was given as lengths, if one.
    """

    path: str
    cell: SequenceCell
    count: int = 0
    default_state: bool = False
    default_lengths: bool = False
    lengths_are: int | None = None


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
        self._structure = structure
        self._slots = slots
        self._order = order
        self.lift = lift

    def in_precision(self, dtype: torch.dtype) -> "Flat":
        """The same function in another precision, on a copy of the user's module."""
        model = copy.deepcopy(self.model).to(dtype)
        return Flat(model, self._structure, self._slots, self._order, self.lift)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the user's module."""
        slots = self._slots
        collected: dict[str, tuple[Tensor, ...]] = {}
        with contextlib.ExitStack() as stack:
            for path in dict.fromkeys((*self.lift.states, *self.lift.lengths)):
                cell = cell_at(self.model, path)
                state = (
                    cell.pack_state([tensors[index] for index in slots.states[path]]) if path in slots.states else None
                )
                given = tensors[slots.lengths] if slots.lengths is not None and path in self.lift.lengths else None
                stack.enter_context(_injected(path, cell, state, given, collected))
            result = self.model(*pytree.tree_unflatten([tensors[index] for index in slots.user], self._structure))
        leaves = [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]
        states = [tensor for path in self.lift.states for tensor in collected[path]]
        return (*(leaves[index] for index in self._order), *states)


def cell_at(model: nn.Module, path: str) -> SequenceCell:
    """The cell of a module at a path."""
    cell = model.get_submodule(path)
    assert isinstance(cell, SequenceCell)
    return cell


@contextlib.contextmanager
def _injected(
    path: str, cell: SequenceCell, state: Any, lengths: Tensor | None, collected: dict[str, tuple[Tensor, ...]]
) -> Iterator[None]:
    """Give a cell its state and lengths at its next call, and collect its final state."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = _bind(args, kwargs)
        if state is not None:
            bound["state"] = state
        if lengths is not None:
            bound["lengths"] = lengths
        return (), bound

    def after(_: nn.Module, __: tuple[Any, ...], result: tuple[Tensor, Any]) -> None:
        final = result[1]
        collected[path] = (final,) if isinstance(final, Tensor) else tuple(final)

    handles = [cell.register_forward_pre_hook(before, with_kwargs=True), cell.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"state": None, "lengths": None, **dict(zip(("input", "state", "lengths"), args, strict=False)), **kwargs}


def probe(model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> tuple[list[Call], list[Tensor]]:
    """Run the module once and see how its cells are called.

    Returns:
        The recurrent cells in the order of their first call, and the module's results.

    Raises:
        ExportError: the module does not run on these arguments.
    """
    calls: dict[str, Call] = {}
    values = [leaf.example for leaf in leaves]

    def watch(path: str, cell: SequenceCell) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = _bind(args, kwargs)
            call = calls.setdefault(path, Call(path, cell))
            call.count += 1
            call.default_state = bound["state"] is None
            call.default_lengths = bound["lengths"] is None
            call.lengths_are = next((i for i, value in enumerate(values) if value is bound["lengths"]), None)

        return cell.register_forward_pre_hook(before, with_kwargs=True)

    handles = [watch(path, cell) for path, cell in model.named_modules() if isinstance(cell, SequenceCell)]
    try:
        with torch.no_grad():
            result = model(*pytree.tree_unflatten(values, structure))
    except CellportError:
        raise
    except Exception as error:  # whatever the user's forward raises
        raise ExportError(
            f"the model does not run on its example arguments: {type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values()), [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]
