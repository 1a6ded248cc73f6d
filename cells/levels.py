"""One step function, run over the levels of a graph: all nodes of a level at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from .checks import INTEGER_DTYPES, CellError
from .recurrence import unroll

__all__ = ["level_recurrence"]

State = TypeVar("State")
Input = TypeVar("Input")
Output = TypeVar("Output")

_SPARE = 2
"""Rows behind those of the nodes: one of zeros that empty slots read, and one that they write to."""


@torch.library.custom_op("cellport::surplus", mutates_args=())
def surplus(values: Tensor, others: Tensor) -> Tensor:
    """How many rows values have more than others, int64 [1].

    It appears in exported programs only, which take both for one size and read it from either of them.
    """
    return torch.tensor([len(values) - len(others)], device=values.device)


surplus.register_fake(lambda values, _: values.new_empty(1, dtype=torch.int64))


def level_recurrence(
    step: Callable[[State, Input], tuple[State, Output]],
    state: State,
    inputs: Input,
    neighbours: Tensor,
    levels: Tensor,
) -> tuple[Output, State]:
    """Run a step function over a graph, all nodes of a level at once.

    The state holds every node. A step reads that of the neighbours of its level's nodes (what they were given in this
    sweep if their level was before, else what they had), and writes that of its nodes. In eager mode the levels are a
    Python loop; under `torch.export` they are one `scan`, and the numbers of nodes, of levels, of nodes a level and of
    neighbours stay dynamic.

    `state`, `inputs` and the step's output are each a tensor or a (named) tuple, list or dict of tensors. The weights
    are what `step` closes over.

    Args:
        step: `(near, input) -> (state, output)` for all slots of a level. `near` is the state of each slot's
            neighbours, [width, degree, ...], zeros where there is none; `input` is [width, ...], zeros in empty slots,
            and the results are [width, ...]. It must not change its arguments in place. What it gives for an empty
            slot is dropped.
        state: what each node has before the sweep, [nodes, ...] each.
        inputs: [nodes, ...] each.
        neighbours: integer [nodes, degree], whose state each node reads; -1 for none. Which are behind which others
            does not matter to this function: the step sees them in this order.
        levels: integer [levels, width], the nodes of each level, from the first to the last; -1 for an empty slot.
            `levels_of` makes them. A node that is in no level keeps its state, and its output is 0.

    Returns:
        The outputs [nodes, ...], in the structure that `step` returns, and the state of every node after the sweep.

    Raises:
        CellError: if the shapes do not agree, an index is out of range, or a node is in two slots. An exported file
            cannot raise it: there an index out of range is an error of the runtime, which names the index.
    """
    leaves, structure = pytree.tree_flatten(inputs)
    old, state_structure = pytree.tree_flatten(state)
    nodes = _check_nodes([*old, *leaves])
    check_indices("neighbours", neighbours, "[nodes, degree]", nodes)
    check_indices("levels", levels, "[levels, width]", nodes)
    _check_slots(neighbours, levels, nodes)
    # An empty slot reads the row of zeros; what it gives goes to the last row, which nothing reads.
    slots = levels.to(torch.int64)
    read = _in_range(slots, nodes, nodes)
    write = _in_range(slots, nodes, nodes + 1)
    near = _padded(_in_range(neighbours.to(torch.int64), nodes, nodes), fill=nodes)[read]
    scanned = [_gather(_padded(leaf), read) for leaf in leaves]

    def level(held: list[Tensor], scanned: list[Tensor]) -> tuple[list[Tensor], Output]:
        into, around, *input = scanned
        seen = [_gather(leaf, around) for leaf in held]
        new, output = step(pytree.tree_unflatten(seen, state_structure), pytree.tree_unflatten(input, structure))
        kept = _check_state(new, held, state_structure)
        return [leaf.index_put((into,), rows) for leaf, rows in zip(held, kept, strict=True)], output

    outputs, last = unroll(level, [_padded(leaf) for leaf in old], [write, near, *scanned])
    outputs = pytree.tree_map(lambda output: _to_nodes(output, write, nodes), outputs)
    return outputs, pytree.tree_unflatten([leaf[:nodes] for leaf in last], state_structure)


def check_schedule(
    cell: str, what: str, neighbours: Tensor, levels: Tensor, features: Tensor, *, ordered: bool = False
) -> Tensor:
    """Refuse neighbours and levels that are not those of a whole graph.

    An exported file cannot raise these errors. There the levels become indices out of range, which its runtime refuses.

    Args:
        cell: who asks.
        what: the name of `neighbours`.
        neighbours: [nodes, degree].
        levels: [levels, width].
        features: [nodes, ...].
        ordered: whether each neighbour must be in a level before.

    Returns:
        The levels, as int64.

    Raises:
        CellError: an index is out of range, a node is in no level or in several, a level comes too early, or there is
            not one row of neighbours a node. Under export only element types and ranks are compared.
    """
    nodes = features.shape[0]
    check_indices(f"{cell}: {what}", neighbours, "[nodes, degree]", nodes)
    check_indices(f"{cell}: levels", levels, "[levels, width]", nodes)
    if torch.compiler.is_exporting():
        return _spoil_unless_whole(neighbours.to(torch.int64), levels.to(torch.int64), features, ordered)
    if neighbours.shape[0] != nodes:
        raise CellError(f"{cell}: {what} are {list(neighbours.shape)}; accepted is [{nodes}, degree], one row a node")
    row, slot = torch.nonzero(levels >= 0, as_tuple=True)
    members = levels[row, slot].to(torch.int64)
    visits = torch.bincount(members, minlength=nodes)
    if (visits != 1).any():
        node = int((visits != 1).nonzero()[0])
        raise CellError(f"{cell}: levels have node {node} {int(visits[node])} times; accepted is each node once")
    if ordered and nodes:
        level = torch.empty_like(members).index_put((members,), row)
        near = neighbours.to(torch.int64)
        late = (near >= 0) & (level[near.clamp(min=0)] >= level.unsqueeze(1))
        if late.any():
            node, place = late.nonzero()[0].tolist()
            raise CellError(
                f"{cell}: node {node} is in level {int(level[node])} and its {what} include {int(near[node, place])}, "
                f"in level {int(level[near[node, place]])}; accepted are levels in which these come before it, as of "
                "levels_of"
            )
    return levels.to(torch.int64)


def _spoil_unless_whole(neighbours: Tensor, levels: Tensor, features: Tensor, ordered: bool) -> Tensor:
    """The levels if each row is a node, each node is in one level and, where `ordered`, after its neighbours.

    Else they are out of range.
    """
    nodes = features.shape[0]
    slots = _in_range(levels, nodes, nodes).clamp(max=nodes).flatten()
    visits = torch.zeros_like(slots[:1]).expand(nodes + 1).scatter_add(0, slots, torch.ones_like(slots))
    wrong = (visits[:nodes] != 1).sum() + surplus(features, neighbours).abs()
    if ordered:
        row = torch.arange(levels.shape[0], device=levels.device).unsqueeze(1).expand(levels.shape).flatten()
        level = torch.zeros_like(slots[:1]).expand(nodes + 1).scatter(0, slots, row)[:nodes]
        near = _in_range(neighbours, nodes, nodes).clamp(max=nodes)
        # What is no node is before all levels.
        before = torch.cat([level, level.new_full((1,), -1)])[near]
        wrong = wrong + (before >= level.unsqueeze(1)).sum()
    return torch.where(wrong > 0, nodes + _SPARE, levels)


def check_indices(what: str, indices: Any, axes: str, nodes: int) -> None:
    """Refuse indices of nodes that are no integers, have other axes, or (outside export) are out of range."""
    if not isinstance(indices, Tensor) or indices.dtype not in INTEGER_DTYPES or indices.dim() != 2:
        got = f"{indices.dtype} {list(indices.shape)}" if isinstance(indices, Tensor) else type(indices).__name__
        raise CellError(f"{what} are {got}; accepted are integers {axes}")
    if not torch.compiler.is_exporting() and indices.numel():
        for value in (int(indices.min()), int(indices.max())):
            if not -1 <= value < nodes:
                raise CellError(f"{what} hold {value}; accepted is 0 to {nodes - 1}, a node, or -1 for none")


def _gather(state: Tensor, rows: Tensor) -> Tensor:
    return F.embedding(rows, state) if state.dim() == 2 else state[rows]


def _padded(values: Tensor, fill: int = 0) -> Tensor:
    """Values [nodes, ...] with the spare rows behind them."""
    return torch.cat([values, values.new_full((_SPARE, *values.shape[1:]), fill)])


def _in_range(indices: Tensor, nodes: int, empty: int) -> Tensor:
    """Indices with -1 replaced by the row for empty slots, and those out of range by one that no tensor has."""
    inside = (indices >= -1) & (indices < nodes)
    return torch.where(inside, torch.where(indices < 0, empty, indices), nodes + _SPARE)


def _to_nodes(outputs: Tensor, write: Tensor, nodes: int) -> Tensor:
    """Outputs [levels, width, ...] as [nodes, ...]."""
    rows = outputs.flatten(0, 1)
    return rows.new_zeros((nodes + _SPARE, *rows.shape[1:])).index_put((write.flatten(),), rows)[:nodes]


def _check_nodes(leaves: list[Any]) -> int:
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            raise CellError("state and inputs of the levels hold something else than tensors [nodes, ...]")
        if not torch.compiler.is_exporting() and leaf.shape[0] != leaves[0].shape[0]:
            found = sorted({each.shape[0] for each in leaves})
            raise CellError(f"state and inputs have {found} nodes; accepted are tensors that agree on axis 0")
    if not leaves:
        raise CellError("state and inputs hold no tensor; accepted is at least one tensor [nodes, ...]")
    count: int = leaves[0].shape[0]
    return count


def _check_slots(neighbours: Tensor, levels: Tensor, nodes: int) -> None:
    if torch.compiler.is_exporting():
        return
    if neighbours.shape[0] != nodes:
        raise CellError(f"neighbours are {list(neighbours.shape)}; accepted is [nodes, degree] of {nodes} nodes")
    visits = torch.bincount(levels[levels >= 0].to(torch.int64), minlength=1)
    if int(visits.max()) > 1:
        raise CellError(f"levels hold node {int(visits.argmax())} {int(visits.max())} times; accepted is once")


def _check_state(new: Any, held: list[Tensor], structure: Any) -> list[Tensor]:
    leaves, got = pytree.tree_flatten(new)
    if got != structure:
        raise CellError(f"the step's new state is {got}; accepted is what the state is, {structure}")
    for was, now in zip(held, leaves, strict=True):
        if was.shape[1:] != now.shape[1:] or was.dtype != now.dtype:
            raise CellError(
                f"the step's new state has {now.dtype} {list(map(str, now.shape))}; accepted is {was.dtype} with "
                f"{list(map(str, was.shape[1:]))} behind the axis of nodes"
            )
    return leaves
