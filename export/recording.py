"""Every call of torch that a forward makes, in order, with what each takes from which other.

A Python loop over time shows here as it ran: the same calls once a step. Nothing is dropped or merged, so that the
loop's iterations are alike to the last one. Changes in place are written as the new values that they are.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .signature import Leaf
from .traces import Input, Layer, NotALoop, Op, Pick, Ref, Trace, Weight, leaves_of
from .watching import layers_of

__all__ = ["factory", "made_of", "record", "set_item"]


def set_item(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """What `tensor` is after ``tensor[index] = value``."""
    changed = tensor.clone()
    changed[index] = value
    return changed


def _copied(tensor: Tensor, value: Tensor, *_: Any) -> Tensor:
    """What `tensor` is after ``tensor.copy_(value)``."""
    return value.to(tensor.dtype).expand(tensor.shape)


def factory(shape: Sequence[Any], value: Any, dtype: torch.dtype) -> Tensor:
    """A tensor of one value."""
    if isinstance(value, Tensor):
        return value.to(dtype).expand(tuple(shape))
    return torch.full(tuple(shape), value, dtype=dtype)


def made_of(data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """A tensor of numbers, of which some may be tensors themselves."""
    if isinstance(data, Tensor):
        return data.to(dtype) if dtype is not None else data
    if isinstance(data, list | tuple) and any(isinstance(each, Tensor | list | tuple) for each in data):
        return torch.stack([made_of(each, dtype) for each in data])
    return torch.tensor(data, dtype=dtype)


_FILLED = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "zero_": 0, "ones": 1, "ones_like": 1, "new_ones": 1}
"""What makes a tensor of one value, and the value."""
_FILLED_WITH = {"full": 1, "full_like": 1, "new_full": 2, "fill_": 1}
"""What makes a tensor of a given value, and the place of that argument."""
_VALUES = frozenset(
    [
        *("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__"),
        *("equal", "allclose", "is_nonzero", "__contains__", "nonzero", "masked_select"),
    ]
)
_PIECES = frozenset(["unbind", "split", "chunk", "tensor_split", "split_with_sizes", "unsafe_split", "unsafe_chunk"])


def record(model: nn.Module, leaves: Sequence[Leaf], structure: Any, sizes: Mapping[str, int], dtype: Any) -> Trace:
    """Run a module and write down what it calls.

    Args:
        model: the module in evaluation mode.
        leaves: its arguments.
        structure: how they are put together.
        sizes: a size for each axis name.
        dtype: its precision.

    Raises:
        NotALoop: it asks for the values of its tensors, or does something that is not seen.
    """
    values = []
    for leaf in leaves:
        value = leaf.sized(sizes).clone()
        values.append(value.to(dtype) if value.is_floating_point() else value)
    count: dict[str, int] = {}
    with torch.no_grad(), _replaced_layers(model, lambda path, run: _counted(count, path, run)):
        model(*pytree.tree_unflatten([value.clone() for value in values], structure))
    recorder = _Recorder(model, values, Trace(sizes, dtype))
    once = {path for path, number in count.items() if number == 1}
    given = pytree.tree_unflatten(list(recorder.given()), structure)
    with torch.no_grad(), _replaced_layers(model, recorder.layer, once), recorder:
        result = model(*given)
    return recorder.finish(result)


def _counted(count: dict[str, int], path: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        count[path] = count.get(path, 0) + 1
        return run(*args, **kwargs)

    return counted


@contextmanager
def _replaced_layers(
    model: nn.Module,
    replace: Callable[[str, Callable[..., Any]], Callable[..., Any]],
    only: set[str] | None = None,
) -> Iterator[None]:
    """Run something else for the forward of recurrent layers within a module."""
    modules = [model.get_submodule(layer.path) for layer in layers_of(model).values() if layer.path]
    paths = [layer.path for layer in layers_of(model).values() if layer.path]
    taken = [(path, module) for path, module in zip(paths, modules, strict=True) if only is None or path in only]
    for path, module in taken:
        module.__dict__["forward"] = replace(path, module.forward)
    try:
        yield
    finally:
        for _, module in taken:
            del module.__dict__["forward"]


class _Recorder(TorchFunctionMode):
    """Notes every call of torch by Python code."""

    def __init__(self, model: nn.Module, values: Sequence[Tensor], trace: Trace) -> None:
        super().__init__()
        self._trace = trace
        self._known: dict[int, Any] = {}
        self._alive: list[Tensor] = []
        self._paused = False
        self._values = values
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                for number, each in enumerate(pytree.tree_leaves(value) if _holds(value) else ()):
                    if isinstance(each, Tensor):
                        held = f"{path}.{name}.{number}"
                        trace.held[held] = each
                        self._bind(each, Weight(held, owned=False))
        for name, weight in (*model.named_buffers(), *model.named_parameters()):
            self._bind(weight, Weight(name, owned=True))

    def given(self) -> Iterator[Tensor]:
        """The arguments, known as such."""
        for position, value in enumerate(self._values):
            own = value.clone()
            self._bind(own, Input(position))
            yield own

    def finish(self, result: Any) -> Trace:
        """The trace, with what forward returned."""
        found, self._trace.structure = pytree.tree_flatten(result)
        self._trace.results = [self._expression(each) for each in found]
        return self._trace

    def layer(self, path: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """A recurrent layer's forward as one call."""

        def called(*args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return run(*args, **kwargs)
            if any(isinstance(each, PackedSequence) for each in (*args, *kwargs.values())):
                raise NotALoop(f"{path} runs over a packed sequence")
            self._paused = True
            try:
                result = run(*args, **kwargs)
            finally:
                self._paused = False
            self._add(Layer(path), self._expression(args), self._expression(kwargs), result)
            return result

        return called

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call and note it."""
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = [tensor._version for tensor in tensors]
        given = [self._known.get(id(tensor)) for tensor in tensors]
        result = func(*args, **kwargs)
        changed = [each for each, version in zip(tensors, before, strict=True) if each._version != version]
        name = getattr(func, "__name__", str(func))
        if name in _VALUES and any(self._depends(each) for each in given):
            raise NotALoop(f"forward asks for the values of a tensor ({name})")
        found = [each for each in pytree.tree_leaves(result) if isinstance(each, Tensor)]
        if changed:
            self._note_change(func, name, args, kwargs, changed[0])
        elif found and not all(any(each is tensor for tensor in tensors) for each in found):
            self._note(func, name, args, kwargs, result)
        return result

    def _note(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if name in (*_FILLED, *_FILLED_WITH) and isinstance(result, Tensor):
            self._fill(name, args, kwargs, result)
        elif name == "tensor":
            self._add(made_of, self._expression(args), {**self._expression(kwargs), "dtype": result.dtype}, result)
        elif name in _PIECES and self._pieces(args, kwargs, result):
            pass
        elif name == "__getitem__" and (index := _basic(args[0], args[1])) is not None:
            self._index(args[0], index, result)
        elif name == "select" and isinstance(args[0], Tensor):
            given = [*args[1:], *kwargs.values()]
            before = [slice(None)] * (int(given[0]) % args[0].dim())
            self._index(args[0], [*before, int(given[1])], result)
        else:
            self._add(func, self._expression(args), self._expression(kwargs), result)

    def _note_change(self, func: Any, name: str, args: Any, kwargs: Any, changed: Tensor) -> None:
        """A change in place, as the new value of what it changes."""
        plain = name.removesuffix("_")
        if name in (*_FILLED, *_FILLED_WITH):
            self._fill(name, args, kwargs, changed)
        elif name == "__setitem__":
            index = _basic(args[0], args[1])
            where = args[1] if index is None else tuple(_from_front(index, changed.shape))
            self._add(set_item, self._expression((args[0], where, args[2])), {}, changed)
        elif name == "copy_":
            self._add(_copied, self._expression(args), {}, changed)
        elif kwargs.get("inplace"):
            self._add(func, self._expression(args), self._expression({**kwargs, "inplace": False}), changed)
        elif plain != name and not name.startswith("__") and callable(getattr(Tensor, plain, None)):
            self._add(getattr(Tensor, plain), self._expression(args), self._expression(kwargs), changed)
        else:
            raise NotALoop(f"forward changes a tensor in place with {name}")

    def _fill(self, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        given = kwargs.get("fill_value", kwargs.get("value", args[-1]))
        place = _FILLED_WITH.get(name, len(args))
        value = _FILLED[name] if name in _FILLED else args[place] if place < len(args) else given
        self._add(factory, ([*result.shape], self._expression(value), result.dtype), {}, result)

    def _pieces(self, args: Any, kwargs: Any, result: Any) -> bool:
        """Whether the pieces that a tensor was cut into are single places of an axis."""
        source = args[0]
        gone = result[0].dim() < source.dim()
        for axis in range(source.dim()):
            rest: list[int] = [size for place, size in enumerate(source.shape) if place != axis]
            kept = [*source.shape[:axis], 1, *source.shape[axis + 1 :]]
            asked = kwargs.get("dim", args[-1] if len(args) > (1 if gone else 2) else 0)
            shapes = [list(each.shape) for each in result]
            if asked % source.dim() == axis and shapes == [rest if gone else kept] * source.shape[axis]:
                for place, each in enumerate(result):
                    self._bind(each, Pick(self._expression(source), axis, place, len(result), not gone))
                return True
        return False

    def _index(self, source: Tensor, index: list[Any], result: Tensor) -> None:
        """A basic index: first the places that it picks, then the rest of it."""
        value = self._expression(source)
        axis = 0
        rest: list[slice | None] = []
        picked = []
        for each in index:
            if each is None:
                rest.append(None)
                continue
            size = source.shape[axis]
            span = range(size)[each] if isinstance(each, slice) else None
            if isinstance(each, int):
                picked.append((axis, each % size, size, False))
            elif span is not None and len(span) == 1 and each != slice(None) and each.step in (None, 1):
                picked.append((axis, span[0], size, True))
                rest.append(slice(None))
            else:
                rest.append(each)
            axis += 1
        for axis, place, size, keep in reversed(picked):
            value = Pick(value, axis, place, size, keep)
        if all(each == slice(None) for each in rest if each is not None) and None not in rest:
            self._bind(result, value)
        else:
            self._add(operator.getitem, (value, tuple(rest)), {}, result)

    def _add(self, target: Any, args: Any, kwargs: Any, result: Any) -> None:
        number = len(self._trace.ops)
        self._trace.ops.append(Op(target, args, kwargs))
        leaves = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Input | Ref | Pick)]
        if any(self._depends(leaf) for leaf in leaves):
            self._trace.tainted.add(number)
        for leaf, each in enumerate(pytree.tree_leaves(result)):
            if isinstance(each, Tensor):
                self._bind(each, Ref(number, leaf))

    def _bind(self, tensor: Tensor, value: Any) -> None:
        self._known[id(tensor)] = value
        self._alive.append(tensor)  # an identity that is freed could come back as another's
        self._trace.shapes[value] = tuple(tensor.shape)

    def _depends(self, value: Any) -> bool:
        if isinstance(value, Pick):
            return self._depends(value.source)
        return isinstance(value, Input) or (isinstance(value, Ref) and value.op in self._trace.tainted)

    def _expression(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            found = self._known.get(id(value))
            if found is None:
                raise NotALoop("forward uses a tensor that comes from none of torch's functions")
            return found
        if isinstance(value, torch.Size):
            return list(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return tuple(self._expression(each) for each in value)
        if isinstance(value, tuple | list):
            return type(value)(self._expression(each) for each in value)
        if isinstance(value, dict):
            return {name: self._expression(each) for name, each in value.items()}
        if isinstance(value, slice):
            return slice(self._expression(value.start), self._expression(value.stop), self._expression(value.step))
        return value


def _holds(value: Any) -> bool:
    return isinstance(value, Tensor | tuple | list)


def _basic(source: Tensor, index: Any) -> list[Any] | None:
    """An index of integers, slices and new axes, without an ellipsis; None for any other."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(each, bool) or not isinstance(each, int | slice | type(None) | type(...)) for each in parts):
        return None
    if any(isinstance(each, slice) and _has_tensor(each) for each in parts):
        return None
    missing = source.dim() - sum(isinstance(each, int | slice) for each in parts)
    if ... in parts:
        place = parts.index(...)
        return [*parts[:place], *[slice(None)] * missing, *parts[place + 1 :]]
    return [*parts, *[slice(None)] * missing]


def _from_front(index: Sequence[Any], shape: Sequence[int]) -> Iterator[Any]:
    """An index whose places count from the front."""
    axis = 0
    for each in index:
        yield each % shape[axis] if isinstance(each, int) else each
        axis += each is not None


def _has_tensor(part: slice) -> bool:
    return any(isinstance(each, Tensor) for each in (part.start, part.stop, part.step))
