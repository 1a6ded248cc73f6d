"""Names and axes of a model's tensors: what the user gave, flattened, and what the model itself shows."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.errors import CellportError, ExportError
from cellport.manifest import BATCH, TIME, Axes


@dataclass(frozen=True)
class Leaf:
    """One tensor among a model's arguments or results.

    Attributes:
        name: its name in the graph.
        axes: the name of each dynamic axis, the size of each fixed one.
        example: a value of it.
        rows: for integers that select rows, such as those of an embedding, how many rows there are, if that is known.
    """

    name: str
    axes: Axes
    example: Tensor
    rows: int | None = None

    def sized(self, sizes: Mapping[str, int]) -> Tensor:
        """Return the example with each named axis repeated or cut to the size that `sizes` gives it."""
        value = self.example
        for position, axis in enumerate(self.axes):
            if isinstance(axis, str) and axis in sizes:
                index = torch.arange(sizes[axis], device=value.device) % max(value.shape[position], 1)
                value = value.index_select(position, index)
        return value


def argument_leaves(
    model: nn.Module, args: tuple[Any, ...], input_names: Sequence[str] | None, dynamic_shapes: Any
) -> tuple[list[Leaf], Any]:
    """Flatten the example arguments.

    Args:
        model: the module whose forward takes them.
        args: positional arguments: tensors, and (named) tuples, lists and dicts of tensors.
        input_names: a name for each tensor, in order; None takes the names of forward's parameters.
        dynamic_shapes: as of `torch.export.export`: for each argument, by position, by parameter name or by input
            name, a mapping from axis to name (a string or a `torch.export.Dim`), nested as the argument is.

    Returns:
        The leaves, and the structure that puts them together again.

    Raises:
        ExportError: an argument is no tensor, names do not match the tensors, or an axis is unknown.
    """
    paths, structure = pytree.tree_flatten_with_path(args)
    parameters = _parameter_names(model, len(args))
    default_names = [_path_name(parameters, path) for path, _ in paths]
    names = list(input_names) if input_names is not None else default_names
    if len(names) != len(paths):
        raise ExportError(f"input_names has {len(names)} names {names}; the arguments hold {len(paths)} tensors")
    if len(set(names)) != len(names):
        raise ExportError(f"input_names has {names}; each name may appear once")
    shapes = _shape_of_each(dynamic_shapes, parameters, names, structure, len(args))
    leaves = []
    for name, (_, value), axes in zip(names, paths, shapes, strict=True):
        if not isinstance(value, Tensor):
            raise ExportError(f"argument {name!r} is {value!r}; accepted: a tensor")
        leaves.append(Leaf(name, _axes(name, value, axes), value.detach()))
    return leaves, structure


def _parameter_names(model: nn.Module, count: int) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "input")
    return [*names, *(f"{rest}_{index}" for index in range(len(names), count))][:count]


def _path_name(parameters: list[str], path: tuple[Any, ...]) -> str:
    first, *rest = path
    parts = [parameters[first.idx]]
    for key in rest:
        parts.append(str(next(getattr(key, field) for field in ("name", "key", "idx") if hasattr(key, field))))
    return ".".join(parts)


def _shape_of_each(
    dynamic_shapes: Any, parameters: list[str], names: list[str], structure: Any, count: int
) -> list[Mapping[int, Any]]:
    if dynamic_shapes is None:
        raise ExportError(
            "dynamic_shapes is None; name the axes that may change, batch and time by these names, such as "
            f"{{{names[0]!r}: {{0: 'batch', 1: 'time'}}}}"
        )
    if isinstance(dynamic_shapes, Mapping):
        unknown = set(dynamic_shapes) - set(parameters) - set(names)
        if unknown:
            raise ExportError(f"dynamic_shapes names {sorted(unknown)}; accepted: {sorted({*parameters, *names})}")
        if set(dynamic_shapes) <= set(names):
            return [_mapping(dynamic_shapes.get(name)) for name in names]
        dynamic_shapes = tuple(dynamic_shapes.get(name) for name in parameters)
    if len(dynamic_shapes) != count:
        raise ExportError(f"dynamic_shapes has {len(dynamic_shapes)} entries; there are {count} arguments")
    children = structure.children() if callable(getattr(structure, "children", None)) else structure.children_specs
    shapes: list[Mapping[int, Any]] = []
    for child, given in zip(children, dynamic_shapes, strict=True):
        shapes.extend(_broadcast(given, child.num_leaves))
    return shapes


def _broadcast(given: Any, leaves: int) -> list[Mapping[int, Any]]:
    """The axes of each tensor of one argument."""
    if given is None or (isinstance(given, Mapping) and all(isinstance(key, int) for key in given)):
        return [_mapping(given)] * leaves
    values = list(given.values()) if isinstance(given, Mapping) else list(given)
    if len(values) == leaves and leaves == 1 and not isinstance(values[0], Mapping | tuple | list | None):
        return [_mapping(given)]
    flat = [each for value in values for each in _broadcast(value, 1)]
    if len(flat) != leaves:
        raise ExportError(f"dynamic_shapes has {given!r} for an argument of {leaves} tensors")
    return flat


def _mapping(given: Any) -> Mapping[int, Any]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return given
    return {position: axis for position, axis in enumerate(given) if axis is not None}


def _axes(name: str, value: Tensor, named: Mapping[int, Any]) -> Axes:
    axes: list[int | str] = list(value.shape)
    for position, axis in named.items():
        if not -value.dim() <= position < value.dim():
            raise ExportError(f"dynamic_shapes names axis {position} of {name!r}, which has shape {list(value.shape)}")
        label = axis if isinstance(axis, str) else getattr(axis, "__name__", None)
        if not isinstance(label, str) or not label.isidentifier():
            raise ExportError(
                f"dynamic_shapes gives axis {position} of {name!r} as {axis!r}; "
                "accepted: a name such as 'batch', 'time'"
            )
        axes[position] = label
    return tuple(axes)


def result_axes(
    run: Any, leaves: Sequence[Leaf], outputs: Sequence[str], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Axes]]:
    """Find the axes of each result by running with each named axis one larger.

    Args:
        run: maps arguments to a tuple of tensors.
        leaves: the arguments.
        outputs: a name for each result.
        sizes: a size for each named axis.

    Yields:
        The name and axes of each result. An axis that follows a named one without being equal to it gets a name of
        its own.

    Raises:
        ExportError: the module does not run with another size of an axis.
    """
    base = _at(run, leaves, sizes)
    grown = {axis: _at(run, leaves, {**sizes, axis: sizes[axis] + 1}) for axis in sizes}
    for index, name in enumerate(outputs):
        axes: list[int | str] = list(base[index].shape)
        for axis, results in grown.items():
            for position, (before, after) in enumerate(zip(base[index].shape, results[index].shape, strict=True)):
                if before != after:
                    same = before == sizes[axis] and after == sizes[axis] + 1
                    axes[position] = axis if same else f"{name}_axis_{position}"
        yield name, tuple(axes)


def _at(run: Any, leaves: Sequence[Leaf], sizes: Mapping[str, int]) -> Any:
    try:
        return run(*(leaf.sized(sizes) for leaf in leaves))
    except CellportError:
        raise
    except Exception as error:  # whatever the user's forward raises
        raise ExportError(
            f"dynamic_shapes names the axes {list(sizes)}, but the model does not run with the sizes "
            f"{list(sizes.values())}: {type(error).__name__}: {error}"
        ) from error


def axis_names(leaves: Sequence[Leaf]) -> list[str]:
    """All axis names, batch and time first."""
    found = {axis for leaf in leaves for axis in leaf.axes if isinstance(axis, str)}
    return [axis for axis in (BATCH, TIME) if axis in found] + sorted(found - {BATCH, TIME})
