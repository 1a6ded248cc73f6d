"""Which tensors of an eager run depend on the values of some others, seen from the operators that make them.

Two runs that agree prove nothing of a third: a state that is `where(task == 1, a, b)` looks constant while no example
has the task 1. What no operator made from an argument's values does not depend on them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_OF_SHAPE_ONLY = frozenset(
    [
        _aten.empty_like.default,
        _aten.full_like.default,
        _aten.ones_like.default,
        _aten.zeros_like.default,
        _aten.new_empty.default,
        _aten.new_empty_strided.default,
        _aten.new_full.default,
        _aten.new_ones.default,
        _aten.new_zeros.default,
    ]
)
_TO_PYTHON = frozenset([_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default])


class Influence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow the values of `sources` through every operator that runs in this mode.

    A value that leaves for Python, such as one that a branch asks for, may decide anything: whatever is made after it
    counts as dependent.
    """

    def __init__(self, sources: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._everything = False
        self._kept: dict[int, Tensor] = {}  # by storage; a storage that is freed could come back as another's
        self.mark(sources)

    def mark(self, values: Any) -> None:
        """Count every tensor in `values` as dependent."""
        for leaf in _tensors(values):
            self._kept.setdefault(_storage(leaf), leaf)

    def reaches(self, values: Any) -> bool:
        """Whether a tensor in `values` depends on the sources."""
        return any(_storage(leaf) in self._kept for leaf in _tensors(values))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and note what depends on what."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _OF_SHAPE_ONLY and not self._everything:
            return result
        if self._everything or self.reaches((args, kwargs)):
            self._everything |= func in _TO_PYTHON
            self.mark(result)
            self.mark(_written(func, args, kwargs))
        return result


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operator writes to."""
    written = []
    for index, each in enumerate(func._schema.arguments):
        if each.alias_info is not None and each.alias_info.is_write:
            written.append(args[index] if index < len(args) else kwargs.get(each.name))
    return written


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
