"""Which integers a module accepts, seen in an eager run of it; `ranges` reads the same from the finished graph."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_INTEGERS = frozenset([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
_KEEPS_VALUES = frozenset([torch.ops.aten.clone.default, torch.ops.aten._to_copy.default])


def selected_rows(run: Callable[..., Any], arguments: Mapping[str, Tensor]) -> dict[str, int]:
    """Find how many rows there are to select from for each integer argument that selects some.

    Args:
        run: the module.
        arguments: its arguments by name, in order.

    Returns:
        For each argument that reaches the indices of an embedding or of an indexing unchanged, the size of the smallest
        axis that it selects from.
    """
    values = {name: value.clone() for name, value in arguments.items()}  # two arguments may be one tensor
    watch = _Watch(values)
    with torch.no_grad(), watch:
        run(*values.values())
    return watch.rows


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow arguments through views and copies to where they select.

    Attributes:
        rows: what was found.
    """

    def __init__(self, arguments: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: dict[str, int] = {}
        self._names = {_storage(value): name for name, value in arguments.items() if value.dtype in _INTEGERS}
        self._kept: list[Tensor] = []  # a storage that is freed could come back as another's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and note what it selects."""
        result = func(*args, **(kwargs or {}))
        if func in _KEEPS_VALUES:
            name = self._names.get(_storage(args[0]))
            if name is not None and not result.is_floating_point():
                self._names[_storage(result)] = name
                self._kept.append(result)
        elif func is torch.ops.aten.embedding.default:
            self._note(args[1], args[0].shape[0])
        elif func is torch.ops.aten.index_select.default:
            self._note(args[2], args[0].shape[args[1]])
        elif func is torch.ops.aten.index.Tensor:
            for axis, index in enumerate(args[1]):
                if isinstance(index, Tensor):
                    self._note(index, args[0].shape[axis])
        return result

    def _note(self, indices: Tensor, rows: int) -> None:
        name = self._names.get(_storage(indices))
        if name is not None:
            self.rows[name] = min(rows, self.rows.get(name, rows))


def _storage(value: Any) -> int:
    tensor = next((leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)), None)
    return 0 if tensor is None else tensor.untyped_storage().data_ptr()
