"""What a user's module does with its recurrent layers, seen in two runs of it on different inputs."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.cells import SequenceCell, StepCell
from cellport.errors import CellportError, ExportError
from cellport.manifest import BATCH, TIME

from .drawing import draw
from .flat import results
from .image_sizes import SIZES, ImageSizes
from .influence import Influence
from .signature import Leaf
from .watching import Layer, layers_of, run_cell, watching


@dataclass(frozen=True)
class Call:
    """One recurrent layer of the module.

    Attributes:
        path: name of the module.
        cell: what computes it.
        count: how often a forward calls it.
        free_lengths: whether it is called without lengths, always over the batch and time axes of the inputs.
        initial: the tensors of its initial state with batch size 1, if it is called once, over those axes, and its
            initial state is the same for every row and every input: zeros, or learned.
        why_inside: why `initial` is None.
        lengths_are: which argument it was given as lengths, if one.
    """

    path: str
    cell: SequenceCell
    count: int
    free_lengths: bool
    initial: tuple[Tensor, ...] | None
    why_inside: str
    lengths_are: int | None


@dataclass
class _Use:
    layer: Layer
    steps: int
    batch: int
    state: tuple[Tensor, ...] | None
    lengths: Tensor | None
    constant: bool


def probe(model: nn.Module, leaves: Sequence[Leaf], structure: Any, sizes: Mapping[str, int]) -> tuple[list[Call], Any]:
    """Run a module twice and see how its recurrent layers are called.

    Args:
        model: the module.
        leaves: its arguments.
        structure: how they are put together.
        sizes: a size for each axis name, all different.

    Returns:
        The recurrent layers in the order of their first call, and what forward returned in the first run.

    Raises:
        ExportError: the module does not run on these arguments, changes a tensor of its own, or returns no tensors.
    """
    layers = layers_of(model)
    runs: list[list[_Use]] = []
    given: list[list[Tensor]] = []
    result: Any = None
    for number in range(2):
        values = list(_arguments(leaves, sizes, number))
        uses: list[_Use] = []
        found = _run(model, values, structure, layers, uses, sizes)
        result = found if number == 0 else result
        runs.append(uses)
        given.append(values)
    calls = _calls(runs, given, (sizes.get(BATCH), sizes.get(TIME)))
    results(result)
    return calls, result


def _arguments(leaves: Sequence[Leaf], sizes: Mapping[str, int], number: int) -> Iterator[Tensor]:
    """The example arguments, or random ones like them, of the given sizes."""
    rng = np.random.default_rng(number)
    images = ImageSizes.among({leaf.name: leaf.axes for leaf in leaves})
    for leaf in leaves:
        value = leaf.sized(sizes, number)
        if number and leaf.drawn is None:
            array = value.numpy()
            bounds = None if leaf.rows is None else (0, leaf.rows - 1)
            value = torch.from_numpy(draw(rng, array.shape, str(array.dtype), bounds, leaf.example.numpy()))
        if leaf.axes == (BATCH,) and not value.is_floating_point() and value.dtype != torch.bool:
            value = value.clamp(max=sizes.get(TIME, 1))  # these may be lengths
        if images is not None and leaf.name == SIZES:
            value = torch.from_numpy(images.within(value.numpy(), sizes))
        yield value.clone()


def _run(
    model: nn.Module,
    values: list[Tensor],
    structure: Any,
    layers: Mapping[int, Layer],
    uses: list[_Use],
    sizes: Mapping[str, int],
) -> Any:
    influence = Influence(values)

    def handle(layer: Layer, input: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        output, final = run_cell(layer, input, state, lengths)
        if influence.reaches((input, state, lengths)):
            influence.mark((output, final))  # kernels of our own are no operators of torch's
        tensors = (state,) if isinstance(state, Tensor) else state
        batch, steps = input.shape[layer.batch_axis], input.shape[1 - layer.batch_axis]
        kept = None if tensors is None else tuple(tensor.clone() for tensor in tensors)
        constant = not influence.reaches(state)
        uses.append(_Use(layer, steps, batch, kept, None if lengths is None else lengths.clone(), constant))
        return output, final

    with torch.no_grad(), watching(layers, handle), influence:
        return run_unchanged(model, values, structure, sizes)


def run_unchanged(
    model: nn.Module, values: Sequence[Tensor], structure: Any, sizes: Mapping[str, int] | None = None
) -> Any:
    """Run a module that is to keep its own tensors as they are; on its example arguments, or on others of some sizes.

    Raises:
        ExportError: it does not run, or changes one of them.
    """
    before = _own_tensors(model)
    try:
        result = model(*pytree.tree_unflatten(list(values), structure))
    except CellportError:
        raise
    except Exception as error:  # whatever the user's forward raises
        said = f"{type(error).__name__}: {error}"
        if sizes:
            raise ExportError(
                f"dynamic_shapes names the axes {list(sizes)}, but the model does not run with the sizes "
                f"{list(sizes.values())}: {said}"
            ) from error
        raise ExportError(f"the model does not run on its example arguments: {said}") from error
    changed = [name for name, kept in _own_tensors(model).items() if before.get(name) != kept]
    if changed:
        raise ExportError(
            f"forward changes {changed[0]!r}, a tensor that the model keeps from call to call; "
            "take it as an argument and return its new value"
        )
    return result


_STEPS = (nn.RNNCellBase, StepCell)
_LAYERS = (*_STEPS, nn.RNNBase, SequenceCell)


def looped_step(model: nn.Module, values: Sequence[Tensor], structure: Any) -> str | None:
    """The first recurrent layer that a forward calls in a loop, with what to do about it."""
    counts: dict[str, int] = {}
    kinds = {path: type(each) for path, each in model.named_modules() if isinstance(each, _LAYERS)}

    def count(path: str) -> Any:
        def before(*_: Any) -> None:
            counts[path] = counts.get(path, 0) + 1

        return before

    handles = [model.get_submodule(path).register_forward_pre_hook(count(path)) for path in kinds]
    try:
        # The state among the values may be one row for all: a forward that refuses it says nothing of loops.
        with torch.no_grad(), contextlib.suppress(Exception):
            model(*pytree.tree_unflatten(list(values), structure))
    finally:
        for handle in handles:
            handle.remove()
    for path, number in counts.items():
        kind = kinds[path]
        if number > 2 and not issubclass(kind, _STEPS):
            return (
                f"{path} is called {number} times, as in a Python loop, which fixes the length of the loop; "
                "call it once with the whole sequence, or write the loop with cellport.cells.recurrence"
            )
        if number > 1 and issubclass(kind, _STEPS):
            whole = kind.__name__.removesuffix("Cell")
            library = "torch.nn" if issubclass(kind, nn.RNNCellBase) else "cellport.cells"
            return (
                f"{path} is a {library}.{kind.__name__} that is called in a Python loop of {number} steps, which fixes "
                f"the length of the loop; write it with cellport.cells.recurrence, or use {library}.{whole}"
            )
    return None


def _own_tensors(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and version of each tensor that a module holds, by its name."""
    found = {}
    for path, module in model.named_modules():
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            for leaf in pytree.tree_leaves(value) if isinstance(value, Tensor | tuple | list) else ():
                if isinstance(leaf, Tensor):
                    version = 0 if leaf.is_inference() else leaf._version  # torch counts no changes of such a tensor
                    found[f"{path}.{name}" if path else name] = (id(leaf), version)
    return found


def _calls(runs: list[list[_Use]], given: list[list[Tensor]], over: tuple[int | None, int | None]) -> list[Call]:
    first, second = runs
    paths = list(dict.fromkeys(use.layer.path for use in first if use.layer.path is not None))
    return [
        _call(
            [use for use in first if use.layer.path == path],
            [use for use in second if use.layer.path == path],
            given,
            over,
        )
        for path in paths
    ]


def _call(uses: list[_Use], again: list[_Use], given: list[list[Tensor]], over: tuple[int | None, int | None]) -> Call:
    layer = uses[0].layer
    assert layer.path is not None
    free = [use for use in uses if use.lengths is None]
    initial, why = _initial(layer, uses, again, over)
    return Call(
        path=layer.path,
        cell=layer.cell,
        count=len(uses),
        free_lengths=bool(free) and all((use.batch, use.steps) == over for use in free),
        initial=initial,
        why_inside=why,
        lengths_are=_lengths_argument(uses, again, given),
    )


def _initial(
    layer: Layer, uses: list[_Use], again: list[_Use], over: tuple[int | None, int | None]
) -> tuple[tuple[Tensor, ...] | None, str]:
    """The constant initial state with batch size 1, or why it is not lifted."""
    name, cell = layer.path or "the model", layer.cell
    if cell.bidirectional:
        return None, f"{name} runs in both directions"
    if len(uses) != 1 or len(again) != 1:
        return None, f"{name} is called {len(uses)} times"
    if (uses[0].batch, uses[0].steps) != over:
        return None, f"{name} does not run over the axes 'batch' and 'time' of the inputs"
    states, other = uses[0].state, again[0].state
    if states is None:
        like = next(cell.parameters())
        return tuple(torch.zeros(shape, dtype=like.dtype) for shape in cell.state_shapes(1)), ""
    assert other is not None
    same = all(torch.equal(a, b) and torch.equal(a, a[:, :1].expand_as(a)) for a, b in zip(states, other, strict=True))
    if not (same and uses[0].constant and again[0].constant):
        return None, f"the initial state of {name} depends on the inputs"
    return tuple(tensor[:, :1].clone() for tensor in states), ""


def _lengths_argument(uses: list[_Use], again: list[_Use], given: list[list[Tensor]]) -> int | None:
    """The position of the argument that a layer is given as lengths, unchanged."""
    pairs = [(a.lengths, b.lengths) for a, b in zip(uses, again, strict=False)]
    for index, (one, two) in enumerate(zip(*given, strict=True)):
        if one.is_floating_point():
            continue
        for a, b in pairs:
            if a is None or b is None or a.shape != one.shape:
                continue
            if torch.equal(a.to(one.dtype), one) and torch.equal(b.to(two.dtype), two):
                return index
    return None
