"""The rules of a module's loops: where each argument of each call comes from, at any number of steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cellport.manifest import TIME

from .affine import Number

__all__ = [
    "Along",
    "Call",
    "Carried",
    "Filled",
    "Final",
    "InPrecision",
    "Joined",
    "Loop",
    "Outer",
    "Picked",
    "Place",
    "Program",
    "Rows",
    "Scan",
    "Span",
    "Steps",
]


@dataclass(frozen=True)
class InPrecision:
    """A number or an element type that follows the precision of the module."""

    values: tuple[tuple[torch.dtype, Any], ...]


@dataclass(frozen=True)
class Outer:
    """A tensor that a call outside of loops returned."""

    call: int
    leaf: int


@dataclass(frozen=True)
class Place:
    """A tensor that a call of the same iteration returned."""

    call: int
    leaf: int


@dataclass(frozen=True)
class Carried:
    """A part of the state."""

    slot: int


@dataclass(frozen=True)
class Scan:
    """What a scanned input holds at this step; `axis` is where it gets its axis back, with size 1."""

    slot: int
    axis: int | None


@dataclass(frozen=True)
class Picked:
    """One place of `size` along an axis of a tensor; `keep` keeps the axis."""

    source: Any
    axis: int
    index: Number
    size: Number
    keep: bool


@dataclass(frozen=True)
class Rows:
    """What a loop computed in all of its steps, along axis 0."""

    loop: int
    slot: int


@dataclass(frozen=True)
class Steps:
    """The numbers `factor` · step + `start` of all steps."""

    factor: int
    start: Number
    count: Number


@dataclass(frozen=True)
class Final:
    """A part of a loop's state after its last step."""

    loop: int
    slot: int


@dataclass(frozen=True)
class Filled:
    """A tensor into which a loop wrote a row a step."""

    rows: Rows
    before: Any
    axis: int
    start: Number
    count: Number
    size: Number
    backwards: bool


@dataclass(frozen=True)
class Along:
    """`count` of `size` places along an axis of a tensor, from `start` on, or from there backwards."""

    source: Any
    axis: int
    start: Number
    count: Number
    size: Number
    backwards: bool


@dataclass(frozen=True)
class Span:
    """Places of an axis as the tensors of a list."""

    along: Along
    keep: bool


@dataclass(frozen=True)
class Joined:
    """A list of tensors, of which spans are as long as the loop."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """A call with rules for its arguments."""

    target: Callable[..., Any] | Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass
class Loop:
    """One loop.

    Attributes:
        count: how many steps it has.
        body: its calls; None for one that writes a row into a tensor.
        initial: the state before the first step.
        shapes: its shape, where the first one has another, which it is expanded from.
        new: the state after each step.
        scans: what it takes step by step.
        outputs: what of each step is used after it.
        filled: the calls that write a row into a tensor, and what that tensor is afterwards.
    """

    count: Number
    body: list[Call | None] = field(default_factory=list)
    initial: list[Any] = field(default_factory=list)
    shapes: list[tuple[Number, ...] | None] = field(default_factory=list)
    new: list[Any] = field(default_factory=list)
    scans: list[Along] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    filled: dict[int, Filled] = field(default_factory=dict)

    @property
    def lead(self) -> int:
        """How many steps fewer than the axis of time it has; as many in front are run without effect.

        The tracer tells a size of 0 or 1 from any other: time may be 1, and a size of time - 1 then is 0.
        """
        return max(0, -(self.count.minus(Number((((TIME,), 1),))).constant or 0))


@dataclass(frozen=True)
class Program:
    """A module's calls and loops in order.

    Attributes:
        parts: the calls outside of loops, and the loops.
        results: what forward returns.
        structure: how the results are put together.
        sizes: for each axis name the position of an argument and its axis.
        held: tensors of the module that are no parameters and no buffers.
    """

    parts: Sequence[Call | Loop]
    results: Sequence[Any]
    structure: Any
    sizes: Mapping[str, tuple[int, int]]
    held: Mapping[str, Tensor]

    def __deepcopy__(self, memo: Any) -> "Program":
        """Itself: nothing in it changes."""
        return self

    @property
    def loops(self) -> list[Loop]:
        """The loops."""
        return [part for part in self.parts if isinstance(part, Loop)]
