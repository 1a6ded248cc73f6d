"""Names and axes of a model's tensors: what the user gave, flattened, and what the model itself shows."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.errors import CellportError, ExportError
from cellport.manifest import BATCH, DTYPES, TIME, Axes

_DTYPES = DTYPES - {"string", "bfloat16"}


@dataclass(frozen=True)
class Leaf:
    """One tensor among a model's arguments or results.

    Attributes:
        name: its name in the graph.
        axes: the name of each dynamic axis, the size of each fixed one.
        example: a value of it.
        rows: for integers that select rows, such as those of an embedding, how many rows there are, if that is known.
        drawn: draws a value of given sizes from a seed, if the user does so.
        special: numbers that the model's code is written with, which proofs draw too.
    """

    name: str
    axes: Axes
    example: Tensor
    rows: int | None = None
    drawn: Callable[[Mapping[str, int], int], Tensor] | None = None
    special: frozenset[float] = frozenset()

    def sized(self, sizes: Mapping[str, int], seed: int = 0) -> Tensor:
        """Return the example with each named axis repeated or cut to the size that `sizes` gives it."""
        if self.drawn is not None:
            return self.drawn(sizes, seed)
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
        input_names: a name for each tensor, in order, or for each argument where some are nested, whose tensors then
            are ``<name>.<field>``; None takes the names of forward's parameters.
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
    names = _given_names("input_names", input_names, default_names, [path for path, _ in paths], "the arguments hold")
    shapes = _shape_of_each(dynamic_shapes, parameters, names, structure, len(args))
    leaves = []
    for name, (_, value), axes in zip(names, paths, shapes, strict=True):
        if not isinstance(value, Tensor):
            raise ExportError(f"argument {name!r} is {value!r:.200}; accepted: a tensor")
        if value.device.type != "cpu":
            raise ExportError(f"argument {name!r} is on the device {value.device}; accepted: a tensor in main memory")
        if str(value.dtype).removeprefix("torch.") not in _DTYPES:
            raise ExportError(f"argument {name!r} has dtype {value.dtype}; accepted: {', '.join(sorted(_DTYPES))}")
        leaves.append(Leaf(name, _axes(name, value, axes), value.detach()))
    return leaves, structure


def result_names(given: Sequence[str] | None, result: Any) -> list[str]:
    """A name for each tensor that a module returns.

    Args:
        given: a name for each tensor, or for each result where some are (named) tuples, lists or dicts of tensors,
            whose tensors then are ``<name>.<field>``; None numbers them: ``output``, or ``output_0``, ``output_1``.
        result: what forward returned.

    Raises:
        ExportError: the names do not match the tensors.
    """
    whole = result if isinstance(result, tuple | list) else (result,)
    paths = [path for path, leaf in pytree.tree_flatten_with_path(tuple(whole))[0] if leaf is not None]
    default = ["output"] if len(paths) == 1 else [f"output_{index}" for index in range(len(paths))]
    return _given_names("output_names", given, default, paths, "the model returns")


def _given_names(
    what: str, given: Sequence[str] | None, default: list[str], paths: list[tuple[Any, ...]], holder: str
) -> list[str]:
    """Names of flattened tensors; those of a group take its name and their path in it."""
    if given is None:
        return default
    if isinstance(given, str) or not all(isinstance(name, str) and name for name in given):
        raise ExportError(f"{what} is {given!r}; accepted: a list of names")
    names = list(given)
    if len(set(names)) != len(names):
        raise ExportError(f"{what} has {names}; each name may appear once")
    groups = list(dict.fromkeys(path[0] for path in paths))
    if len(names) == len(groups) != len(paths):
        return [".".join([names[groups.index(path[0])], *map(_key, path[1:])]) for path in paths]
    if len(names) != len(paths):
        raise ExportError(f"{what} has {len(names)} names {names}; {holder} {len(paths)} tensors")
    return names


def state_pairs(state: Mapping[Any, Any], inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """The output of each state by its input.

    Args:
        state: output name to input name; a name may stand for all tensors ``<name>.<field>`` of a nested argument or
            result, and a tuple of names for several.
        inputs: names of the arguments' tensors.
        outputs: names of the results' tensors.

    Raises:
        ExportError: a name is unknown, or the two sides do not have the same number of tensors.
    """
    pairs: dict[str, str] = {}
    for output, input in state.items():
        sides = [_expand("output", output, outputs), _expand("input", input, inputs)]
        if len(sides[0]) != len(sides[1]):
            raise ExportError(
                f"state pairs the outputs {sides[0]} with the inputs {sides[1]}; accepted: as many of each"
            )
        for name_out, name_in in zip(*sides, strict=True):
            if name_in in pairs or name_out in pairs.values():
                raise ExportError(f"state pairs {name_out!r} with {name_in!r}; each name may be in one pair only")
            pairs[name_in] = name_out
    return pairs


def _expand(what: str, given: Any, names: Sequence[str]) -> list[str]:
    if isinstance(given, tuple | list):
        return [name for each in given for name in _expand(what, each, names)]
    group = [name for name in names if isinstance(given, str) and name.startswith(f"{given}.")]
    if given in names:
        return [given]
    if not group:
        raise ExportError(f"state names the {what} {given!r}; the {what}s are {list(names)}")
    return group


def _key(key: Any) -> str:
    return str(next(getattr(key, field) for field in ("name", "key", "idx") if hasattr(key, field)))


def _parameter_names(model: nn.Module, count: int) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "input")
    return [*names, *(f"{rest}_{index}" for index in range(len(names), count))][:count]


def _path_name(parameters: list[str], path: tuple[Any, ...]) -> str:
    first, *rest = path
    return ".".join([parameters[first.idx], *map(_key, rest)])


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
    if not isinstance(dynamic_shapes, tuple | list):
        raise ExportError(
            f"dynamic_shapes is {dynamic_shapes!r}; accepted: a dict, or a tuple with an entry an argument"
        )
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
    if not isinstance(given, Mapping | tuple | list):
        raise ExportError(f"dynamic_shapes holds {given!r}; accepted: a dict from axis to name, or None")
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
    if not isinstance(given, tuple | list):
        raise ExportError(f"dynamic_shapes holds {given!r}; accepted: a dict from axis to name, or None")
    return {position: axis for position, axis in enumerate(given) if axis is not None}


def _axes(name: str, value: Tensor, named: Mapping[int, Any]) -> Axes:
    axes: list[int | str] = list(value.shape)
    for position, axis in named.items():
        if not isinstance(position, int) or not -value.dim() <= position < value.dim():
            raise ExportError(
                f"dynamic_shapes names axis {position!r} of {name!r}, which has shape {list(value.shape)}"
            )
        label = axis if isinstance(axis, str) else getattr(axis, "__name__", None)
        if not isinstance(label, str) or not label.isidentifier():
            raise ExportError(
                f"dynamic_shapes gives axis {position} of {name!r} as {axis!r}; "
                "accepted: a name such as 'batch', 'time'"
            )
        if label in axes:
            raise ExportError(f"dynamic_shapes calls two axes of {name!r} {label!r}; each axis has a name of its own")
        axes[position] = label
    return tuple(axes)


def result_axes(
    run: Any, leaves: Sequence[Leaf], outputs: Sequence[str], sizes: Mapping[str, int], growth: int = 1
) -> Iterator[tuple[str, Axes]]:
    """Find the axes of each result by running with each named axis larger.

    Args:
        run: maps arguments to a tuple of tensors.
        leaves: the arguments.
        outputs: a name for each result.
        sizes: a size for each named axis.
        growth: by how much; more than one for a model whose results have a position for several of the arguments.

    Yields:
        The name and axes of each result. An axis that follows a named one without being equal to it gets a name of
        its own.

    Raises:
        ExportError: the module does not run with another size of an axis.
    """
    base = _at(run, leaves, sizes)
    grown = {axis: _at(run, leaves, {**sizes, axis: sizes[axis] + growth}) for axis in sizes}
    for index, name in enumerate(outputs):
        axes: list[int | str] = list(base[index].shape)
        for axis, results in grown.items():
            for position, (before, after) in enumerate(zip(base[index].shape, results[index].shape, strict=True)):
                if before != after:
                    same = before == sizes[axis] and after == sizes[axis] + growth
                    axes[position] = axis if same else f"{name}_axis_{position}"
        for axis in sizes:
            if axis in axes and not _keeps_rank(run, leaves, {**sizes, axis: 1}, index, len(axes)):
                raise ExportError(
                    f"result {name!r} has {len(axes)} axes, but fewer where {axis!r} is 1; "
                    "name the axis that forward squeezes, as in squeeze(-1)"
                )
        yield name, tuple(axes)


def _keeps_rank(run: Any, leaves: Sequence[Leaf], sizes: Mapping[str, int], index: int, rank: int) -> bool:
    try:
        return bool(run(*(leaf.sized(sizes) for leaf in leaves))[index].dim() == rank)
    except Exception:  # a model may ask for more than one step
        return True


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
