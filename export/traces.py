"""The calls of torch that a forward made, with what each took from which other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Input", "Layer", "NotALoop", "Op", "Pick", "Ref", "Trace", "Weight", "leaves_of"]


class NotALoop(Exception):  # noqa: N818
    """Why a forward cannot be read as loops."""


@dataclass(frozen=True)
class Input:
    """A tensor of the arguments."""

    position: int


@dataclass(frozen=True)
class Weight:
    """A tensor of the module, by its name; `owned` if it is a parameter or a buffer."""

    name: str
    owned: bool


@dataclass(frozen=True)
class Ref:
    """A tensor that a call returned."""

    op: int
    leaf: int


@dataclass(frozen=True)
class Pick:
    """One place of `size` along an axis of a tensor; `keep` keeps the axis, with size 1."""

    source: Any
    axis: int
    index: int
    size: int
    keep: bool


@dataclass(frozen=True)
class Layer:
    """A recurrent layer of the module, called as a whole."""

    path: str


@dataclass(frozen=True)
class Op:
    """One call; `args` and `kwargs` hold the expressions above in the place of tensors."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass
class Trace:
    """What a forward did at one size of every axis.

    Attributes:
        sizes: the size of each axis.
        dtype: the precision of the module.
        ops: its calls.
        results: what it returned.
        structure: how the results are put together.
        shapes: the shape of every tensor.
        held: tensors of the module that are no parameters and no buffers.
        tainted: the calls that depend on the values of the arguments.
    """

    sizes: Mapping[str, int]
    dtype: torch.dtype
    ops: list[Op] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    structure: Any = None
    shapes: dict[Any, tuple[int, ...]] = field(default_factory=dict)
    held: dict[str, Tensor] = field(default_factory=dict)
    tainted: set[int] = field(default_factory=set)


def leaves_of(value: Any) -> Iterator[Any]:
    """What arguments hold, without the tuples, lists and dicts around it."""
    if isinstance(value, tuple | list):
        for each in value:
            yield from leaves_of(each)
    elif isinstance(value, dict):
        yield from leaves_of(list(value.values()))
    else:
        yield value
