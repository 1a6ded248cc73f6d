"""The state of a loop that became a recurrence as an argument and a result, so that a sequence can be run in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cellport.manifest import BATCH

from .rolled import Rerolled
from .rules import Call, Filled, Final, Joined, Loop, Outer, Picked, Place, Rows
from .signature import Leaf
from .traces import Input, Weight, leaves_of

__all__ = ["Streamed", "streamed"]

_NAMES = {"lstm_cell": ("h", "c"), "gru_cell": ("h",), "rnn_tanh_cell": ("h",), "rnn_relu_cell": ("h",)}


@dataclass(frozen=True)
class Streamed:
    """A module with the states of its loop as further arguments and results.

    Attributes:
        model: the module.
        leaves: its arguments, the states last.
        structure: how they are put together.
        states: the name of the output of each state by that of its input.
    """

    model: Rerolled
    leaves: list[Leaf]
    structure: Any
    states: dict[str, str]


def streamed(rolled: Rerolled, leaves: Sequence[Leaf], structure: Any) -> Streamed | str:
    """Take the states of a module's loop from its arguments.

    Args:
        rolled: the module.
        leaves: its arguments.
        structure: how they are put together.

    Returns:
        The module with its states as further arguments and results; or why they stay inside.
    """
    program = rolled.program
    if len(program.loops) != 1:
        return f"forward runs {len(program.loops)} loops"
    number, loop = next((number, part) for number, part in enumerate(program.parts) if isinstance(part, Loop))
    if loop.lead or not loop.new:
        return "the loop begins with the second step" if loop.lead else "the loop has no state"
    tainted = _tainted(program.parts[:number])
    if any(_depends(each, tainted) for each in loop.initial):
        return "the initial state of the loop depends on the inputs"
    found = [_initial(rolled, leaves, structure, number, batch) for batch in (2, 3)]
    names, made = _names(loop, [leaf.name for leaf in leaves]), []
    for slot, (two, three) in enumerate(zip(*found, strict=True)):
        axes = [axis for axis, sizes in enumerate(zip(two.shape, three.shape, strict=True)) if sizes == (2, 3)]
        if two.any() or len(axes) != 1:
            return f"the loop does not start at zeros of every row, but at {names[slot]!r} of others"
        shape = [BATCH if axis == axes[0] else size for axis, size in enumerate(two.shape)]
        made.append(Leaf(names[slot], tuple(shape), torch.zeros_like(two)))
    changed = replace(loop)
    changed.initial = [Input(len(leaves) + slot) for slot in range(len(made))]
    changed.shapes = [None] * len(made)
    parts = [changed if part is loop else part for part in program.parts]
    results = [*program.results, *(Final(number, slot) for slot in range(len(made)))]
    example = pytree.tree_unflatten([0] * len(program.results), program.structure)
    whole = example if isinstance(example, tuple) else (example,)
    after = pytree.tree_structure((*whole, *range(len(made))))
    model = Rerolled(rolled, replace(program, parts=parts, results=results, structure=after))
    before = pytree.tree_unflatten([0] * len(leaves), structure)
    together = pytree.tree_structure((*before, *range(len(made))))
    return Streamed(model, [*leaves, *made], together, {leaf.name: f"{leaf.name}_out" for leaf in made})


def _tainted(parts: Sequence[Call | Loop]) -> set[int]:
    """The calls that depend on values of the arguments."""
    found: set[int] = set()
    for number, part in enumerate(parts):
        if isinstance(part, Call) and any(_depends(leaf, found) for leaf in leaves_of((part.args, dict(part.kwargs)))):
            found.add(number)
    return found


def _depends(value: Any, tainted: set[int]) -> bool:
    if isinstance(value, Outer):
        return value.call in tainted
    if isinstance(value, Input | Final | Rows | Filled | Joined):
        return True
    return isinstance(value, Picked) and _depends(value.source, tainted)


def _initial(rolled: Rerolled, leaves: Sequence[Leaf], structure: Any, number: int, batch: int) -> list[torch.Tensor]:
    sizes = {axis: 1 for leaf in leaves for axis in leaf.axes if isinstance(axis, str)} | {BATCH: batch}
    values = [leaf.sized(sizes) for leaf in leaves]
    with torch.no_grad():
        return rolled.initial(number, pytree.tree_unflatten(values, structure))


def _names(loop: Loop, taken: Sequence[str]) -> list[str]:
    names: list[str] = []
    for slot, new in enumerate(loop.new):
        name = f"loop.state_{slot}"
        if isinstance(new, Place) and (call := loop.body[new.call]) is not None:
            target = getattr(call.target, "__name__", "")
            paths = {leaf.name.rpartition(".")[0] for leaf in leaves_of(call.args) if isinstance(leaf, Weight)}
            if target in _NAMES and len(paths) == 1:
                name = f"{paths.pop()}.{_NAMES[target][new.leaf]}"
        while name in (*taken, *names):
            name += "_"
        names.append(name)
    return names
