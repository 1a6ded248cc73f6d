"""A user's module as a flat function of named tensors, with the states and lengths of its cells lifted to inputs."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.errors import ExportError
from cellport.manifest import BATCH, TIME, Axes

from .flat import Flat, Lift, Slots, in_precision, results
from .image_sizes import coarseness
from .probing import Call
from .runs import Arrays, Contract
from .signature import Leaf, axis_names, result_axes

LENGTHS = "lengths"
_NEIGHBOURS = 4


@dataclass(frozen=True)
class State:
    """One state pair of the captured module.

    Attributes:
        input: name of the input.
        output: name of the output.
        axes: axes of both.
        initial: the initial value with batch size 1.
    """

    input: str
    output: str
    axes: Axes
    initial: Tensor


@dataclass
class Captured:
    """A module ready to be traced: flat, with names and axes for every tensor.

    Attributes:
        module: the flat module.
        copies: the user's module in other precisions.
        inputs: inputs that are not states, in order; added lengths last.
        states: the state pairs, in order.
        outputs: name and axes of each output that is not a state.
        lengths: name of the input that holds the valid steps, if there is one.
        added_lengths: whether cellport added that input.
        sizes: a size for each axis name that an example run uses.
        arguments: names of the user's own arguments in the order of forward.
        results: names of the user's own results in the order of forward.
        notes: what was decided on the way and why, for the report.
        horizon: over how many steps it is proved; 0 before that is found.
    """

    module: Flat
    copies: "Copies"
    inputs: list[Leaf]
    states: list[State]
    outputs: list[tuple[str, Axes]]
    lengths: str | None
    added_lengths: bool
    sizes: dict[str, int]
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    horizon: int = 0

    def leaves(self) -> list[Leaf]:
        """Every input in the order of the flat module's arguments."""
        return [*self.inputs, *(Leaf(each.input, each.axes, each.initial) for each in self.states)]

    def unlike_sizes(self) -> dict[str, int]:
        """A size for each axis name that is no other axis's and none of the module's own sizes."""
        return unlike_sizes(self.module, self.leaves())

    def contract(self) -> Contract:
        """What a chunked run has to know."""
        return Contract(
            inputs={leaf.name: leaf.axes for leaf in self.inputs},
            outputs=dict(self.outputs),
            states={state.input: (state.output, state.axes) for state in self.states},
            lengths=self.lengths,
        )

    def example(self, sizes: Mapping[str, int]) -> list[Tensor]:
        """Arguments for the flat module with axes of the given sizes; lengths cover the whole time axis."""
        values = []
        for leaf in self.leaves():
            value = leaf.sized(sizes)
            if leaf.name == self.lengths:
                value = torch.full_like(value, sizes.get(TIME, 1))
            values.append(value.contiguous())
        return values

    def neighbours(self) -> "list[TorchRunner]":
        """The module in its own precision with each weight moved by at most one unit in the last place, four times."""
        return [TorchRunner(self, self.copies.dtype, self.copies.neighbour(seed)) for seed in range(_NEIGHBOURS)]

    def runner(self, dtype: torch.dtype) -> "TorchRunner":
        """A copy of the module in the given precision as a function of named arrays."""
        return TorchRunner(self, dtype)


class Copies:
    """A module in several precisions, each copied once.

    Attributes:
        dtype: the precision of the module itself: that of its first floating-point parameter or buffer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._made: dict[torch.dtype, nn.Module] = {}
        self.dtype = next((each.dtype for each in _tensors(model) if each.is_floating_point()), torch.float32)

    def get(self, dtype: torch.dtype) -> nn.Module:
        """The module in a precision; itself where it has no other.

        Raises:
            ExportError: the module cannot be copied.
        """
        if all(each.dtype == dtype for each in _tensors(self._model) if each.is_floating_point()):
            return self._model
        if dtype not in self._made:
            self._made[dtype] = in_precision(self._model, dtype)
        return self._made[dtype]

    def neighbour(self, seed: int) -> nn.Module:
        """A copy of the module with each weight one unit in the last place lower, higher, or as it is."""
        model = in_precision(self._model, self.dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in _tensors(model):
                if tensor.is_floating_point():
                    towards = torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor.dtype)
                    moved = torch.nextafter(tensor, torch.where(towards < 0, -torch.inf, torch.inf).to(tensor.dtype))
                    tensor.copy_(torch.where(towards == 0, tensor, moved))
        return model

    def clear(self) -> None:
        """Free the copies."""
        self._made.clear()


class TorchRunner:
    """A captured module, in eager PyTorch and a precision of choice, as a function of named arrays.

    States that are not given start at their initial value, lengths that are not given cover the whole time axis.
    """

    def __init__(self, captured: Captured, dtype: torch.dtype, model: nn.Module | None = None) -> None:
        self._captured = captured
        self._dtype = dtype
        self._module = captured.module.of(captured.copies.get(dtype) if model is None else model)

    def plain(self, feeds: Arrays) -> Arrays:
        """Run the user's module itself, its recurrent layers as they are, on the arguments of its own."""
        captured, module = self._captured, self._module
        names = captured.arguments
        with torch.no_grad(), _default_dtype(self._dtype), warnings.catch_warnings():
            values = [self._tensor(feeds[name]) for name in names]
            warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
            found = results(module.model(*pytree.tree_unflatten(values, module.structure)))
        return {name: value.detach().numpy() for name, value in zip(captured.results, found, strict=True)}

    def __call__(self, feeds: Arrays) -> Arrays:
        """Run the module; a float input is converted to the runner's precision."""
        captured = self._captured
        batch = captured.contract().batch(feeds)
        arguments = []
        for leaf in captured.inputs:
            if leaf.name in feeds:
                arguments.append(self._tensor(feeds[leaf.name]))
            elif leaf.name == captured.lengths:
                arguments.append(torch.full((batch,), -1))
            else:
                raise ExportError(f"input {leaf.name!r} is missing")
        for state in captured.states:
            if state.input in feeds:
                arguments.append(self._tensor(feeds[state.input]))
            else:
                shape = [
                    batch if axis == BATCH else size for axis, size in zip(state.axes, state.initial.shape, strict=True)
                ]
                arguments.append(self._convert(state.initial).expand(*shape).clone())
        with torch.no_grad(), _default_dtype(self._dtype):
            found = self._module(*arguments)
        names = [name for name, _ in captured.outputs] + [state.output for state in captured.states]
        return {name: value.detach().numpy() for name, value in zip(names, found, strict=True)}

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return self._convert(torch.from_numpy(np.array(array)))  # a copy, which a forward may change in place

    def _convert(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What forward makes without naming a dtype has the precision of the run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def unlike_sizes(model: nn.Module, leaves: Sequence[Leaf]) -> dict[str, int]:
    """A size for each axis name that is no other axis's and none of the module's own sizes.

    The tracer takes two axes of one size for the same axis in places, and then fixes a dynamic one. Small numbers and
    products of small ones are likely sizes of something inside, such as the number of gates. Images have two windows
    along each axis at least.
    """
    taken = {size for tensor in _tensors(model) for size in tensor.shape}
    taken |= {axis for leaf in leaves for axis in leaf.axes if isinstance(axis, int)}
    sizes: dict[str, int] = {}
    least = max(11, coarseness(model) + 1) | 1
    for axis in axis_names(leaves):
        sizes[axis] = next(size for size in itertools.count(least, 2) if _is_prime(size) and size not in taken)
        taken.add(sizes[axis])
    return sizes


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def capture(
    copies: Copies,
    leaves: Sequence[Leaf],
    structure: Any,
    output_names: Sequence[str],
    states: Mapping[str, str],
    calls: Sequence[Call],
    lift: Lift,
) -> Captured:
    """Make the flat module and name its tensors.

    Args:
        copies: the user's module in evaluation mode.
        leaves: its flattened arguments.
        structure: how they are put together.
        output_names: names of its results, flattened.
        states: output name by input name of the states that the user's forward takes and returns.
        calls: what a probing run saw.
        lift: what to take from the cells.

    Raises:
        ExportError: a name is unknown or repeated, or the two sides of a state pair differ in shape.
    """
    model = copies.get(copies.dtype)
    user, names = list(leaves), list(output_names)
    sizes = {axis: max(2, _example_size(user, axis)) for axis in axis_names(user)}
    if any(leaf.drawn is not None for leaf in user):
        sizes = unlike_sizes(model, user)  # what an example fills to the brim may not hold one more
    lengths = _user_lengths(user, calls)
    plain = Flat(model, structure, Slots(tuple(range(len(user)))), range(len(names)), Lift())
    with torch.no_grad():
        result = dict(result_axes(plain, _whole(user, lengths), names, sizes, coarseness(model)))
    user_states = _user_states(user, result, states)
    state_outputs = [state.output for state in user_states]
    order = [index for index, name in enumerate(names) if name not in state_outputs]
    order += [names.index(name) for name in state_outputs]
    inputs = [leaf for leaf in user if leaf.name not in states]
    if lift.lengths:
        lengths = _free_name(LENGTHS, [leaf.name for leaf in user])
        inputs.append(Leaf(lengths, (BATCH,), torch.full((sizes.get(BATCH, 1),), -1)))
    by_path = {call.path: call for call in calls}
    lifted = {path: _lifted_states(by_path[path]) for path in lift.states}
    every = [*user_states, *(state for group in lifted.values() for state in group)]
    arguments = [leaf.name for leaf in inputs] + [state.input for state in every]
    _check_names("input", arguments)
    given_out = names + [state.output for group in lifted.values() for state in group]
    _check_names("output", given_out)
    both = [name for name in given_out if name in arguments]
    if both:
        raise ExportError(f"name {both[0]!r} is an input and an output; accepted: a name of its own for each")
    slots = Slots(
        user=tuple(arguments.index(leaf.name) for leaf in user),
        lengths=len(inputs) - 1 if lift.lengths else None,
        states={path: tuple(arguments.index(state.input) for state in group) for path, group in lifted.items()},
    )
    return Captured(
        module=Flat(model, structure, slots, order, lift),
        copies=copies,
        inputs=inputs,
        states=every,
        outputs=[(name, axes) for name, axes in result.items() if name not in state_outputs],
        lengths=lengths,
        added_lengths=bool(lift.lengths),
        sizes=sizes,
        arguments=tuple(leaf.name for leaf in user),
        results=tuple(names),
    )


def _user_lengths(leaves: Sequence[Leaf], calls: Sequence[Call]) -> str | None:
    """The argument that holds lengths: the one that a cell was given as such, or else the one of that name."""
    given = [leaves[call.lengths_are] for call in calls if call.lengths_are is not None]
    named = [leaf for leaf in leaves if leaf.name == LENGTHS and leaf.axes == (BATCH,)]
    found = next((leaf for leaf in (*given, *named) if leaf.example.dtype == torch.int64), None)
    return None if found is None else found.name


def _check_names(what: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ExportError(f"{what} name {repeated[0]!r} is used twice; lifted states take the path of their cell")


def _example_size(leaves: Sequence[Leaf], axis: str) -> int:
    return next(leaf.example.shape[leaf.axes.index(axis)] for leaf in leaves if axis in leaf.axes)


def _whole(leaves: Sequence[Leaf], lengths: str | None) -> list[Leaf]:
    """The leaves, with lengths that any time axis can hold."""
    return [
        Leaf(leaf.name, leaf.axes, torch.ones_like(leaf.example)) if leaf.name == lengths else leaf for leaf in leaves
    ]


def _user_states(leaves: Sequence[Leaf], results: Mapping[str, Axes], states: Mapping[str, str]) -> list[State]:
    by_name = {leaf.name: leaf for leaf in leaves}
    found = []
    for input, output in states.items():
        if input not in by_name:
            raise ExportError(f"state names the input {input!r}; the inputs are {list(by_name)}")
        if output not in results:
            raise ExportError(f"state names the output {output!r}; the outputs are {list(results)}")
        leaf = by_name[input]
        if BATCH not in leaf.axes:
            raise ExportError(f"state input {input!r} has axes {list(leaf.axes)}; dynamic_shapes must name its 'batch'")
        if leaf.axes != results[output]:
            raise ExportError(
                f"state input {input!r} has axes {list(leaf.axes)} and its output {output!r} {list(results[output])}; "
                "both must be the same"
            )
        shape = [1 if isinstance(axis, str) else axis for axis in leaf.axes]
        found.append(State(input, output, leaf.axes, torch.zeros(shape, dtype=leaf.example.dtype)))
    return found


def _lifted_states(call: Call) -> list[State]:
    if call.initial is None:
        raise ExportError(f"the state of {call.path or 'the model'!r} cannot be an input: {call.why_inside}")
    found = []
    for name, initial in zip(call.cell.state_names, call.initial, strict=True):
        full = f"{call.path}.{name}" if call.path else name
        axes = (initial.shape[0], BATCH, *initial.shape[2:])
        found.append(State(full, f"{full}_out", axes, initial))
    return found


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
