"""A sweep of the Graph LSTM for a file: a step holds as many nodes and neighbours as it has, and no padding.

`level_recurrence` gives every step as many slots as the widest has and every slot as many neighbours as any node has,
and reads all of them in the loop. A file can cut each step's own part from what is there. Therefore nodes are numbered
in the order in which they are visited: a step is a range of rows. Of a node's neighbours only those that were visited
in a step before, its earlier ones, are read in the loop; the sums over the others, which keep what they had, are
computed for all nodes at once. Steps that do not read each other are visited together, as many as memory allows.

Both operators appear in exported programs only, which turn them into ONNX; here they say what is computed. They have no
derivative: a `torch.export` program of a GraphLSTM cannot be trained, only the module itself can. In a
schedule and in a sweep, the number of a neighbour is its place in the order plus one, and 0 is none.
"""

import torch
from torch import Tensor

__all__ = ["GROUP_SLOTS", "graph_schedule", "graph_sweep"]

GROUP_SLOTS = 1 << 15
"""How many neighbours steps that are visited together have room for, where each of their nodes has as many earlier ones
as any node of the graph: it bounds the memory that a group takes. A group may always hold as many nodes as a step."""


@torch.library.custom_op("cellport::graph_schedule", mutates_args=())
def graph_schedule(
    neighbours: Tensor, levels: Tensor, rows: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Number the nodes of a graph in the order of their steps.

    Args:
        neighbours: int64 [nodes, degree]; -1 for none.
        levels: int64 [steps, width], each node in one slot; -1 for an empty slot.
        rows: what has to have one row a node, [nodes, ...] each. A file takes tensors whose axes do not agree.

    Returns:
        All of int64 but the last:

        order [nodes], the node at each place; place [nodes], of each node; then, in the new order,
        near [nodes, degree], the neighbours; before [nodes], how many nodes are in the steps before a node's own;
        step [nodes]; earlier and later [nodes], how many neighbours a node has that are in a step before its own, and
        how many others; starts [steps], the place of each step's first node; begins, bool [steps], whether a step
        reads a node of those that it would be visited with, or would make them too many (`GROUP_SLOTS`), so that it
        begins anew.
    """
    if any(len(each) != len(neighbours) for each in rows):
        raise ValueError(f"{[len(each) for each in rows]} rows; accepted is one for each of {len(neighbours)} nodes")
    width = levels.shape[1]
    slots = (levels.flatten() >= 0).nonzero().squeeze(1)
    order = levels.flatten()[slots]
    nodes = len(order)
    place = torch.empty_like(order).scatter(0, order, torch.arange(nodes, device=order.device))
    near = torch.cat([place + 1, place.new_zeros(1)])[neighbours[order]]
    step = slots // max(width, 1)
    counts = (levels >= 0).sum(1)
    starts = counts.cumsum(0) - counts
    before = starts[step]
    early = (near > 0) & (near <= before.unsqueeze(1))
    last = torch.zeros_like(starts)
    if near.numel():
        last = last.scatter_reduce(0, step, (near * early).amax(1), "amax")
    limit = max(width, GROUP_SLOTS // max(1, *early.sum(1).tolist()))
    last = torch.maximum(last, starts + counts - limit)
    begins = torch.zeros_like(starts, dtype=torch.bool)
    group = 0
    for t, (read, start) in enumerate(zip(last.tolist(), starts.tolist(), strict=True)):
        begins[t] = t == 0 or read > group
        group = start if begins[t] else group
    later = (near > 0).sum(1) - early.sum(1)
    return order, place, near, before, step, early.sum(1), later, starts, begins


@graph_schedule.register_fake
def _(neighbours: Tensor, levels: Tensor, _rows: list[Tensor]) -> tuple[Tensor, ...]:
    nodes, steps = neighbours.shape[0], levels.shape[0]
    order, place, before, step, earlier, later = (neighbours.new_empty(nodes) for _ in range(6))
    starts, begins = levels.new_empty(steps), levels.new_empty(steps, dtype=torch.bool)
    return order, place, torch.empty_like(neighbours), before, step, earlier, later, starts, begins


@torch.library.custom_op("cellport::graph_sweep", mutates_args=())
def graph_sweep(
    gates: Tensor,
    forget: Tensor,
    kept: Tensor | None,
    old: list[Tensor],
    share: Tensor,
    schedule: list[Tensor],
    weight_gates: Tensor,
    weight_forget: Tensor,
    newest: bool,
    tanh_last: bool,
    halved: bool,
) -> tuple[Tensor, Tensor]:
    """One layer of a Graph LSTM over nodes in the order of `graph_schedule`.

    Args:
        gates: [nodes, 3H], what u, o and c are of the node itself.
        forget: [nodes, H], what its forget gates are of the node itself.
        kept: [nodes, H], what a node keeps of its own memory, or None for nothing.
        old: h, Un^f h and m of each node before the sweep, [nodes, H] each; empty where all are zeros.
        share: [nodes, 1], what each neighbour counts.
        schedule: near, before, step, earlier, later, starts and begins of `graph_schedule`.
        weight_gates: Un [3H, H] of u, o and c.
        weight_forget: Un^f [H, H].
        newest: whether the gate of a neighbour sees its newest h, and not its old one.
        tanh_last: whether h is tanh(o * m), and not o * tanh(m).
        halved: whether the mean memory of the neighbours counts by half.

    Returns:
        h and m, [nodes, H] each.
    """
    near, before, _, _, _, starts, begins = schedule
    nodes, size = forget.shape
    none = forget.new_zeros(1, size)
    tables = [torch.cat([none, each]) for each in old] or [none.expand(nodes + 1, -1)] * 3
    new_h, new_gate, new_m = ([none] for _ in range(3))
    first = starts[begins].tolist()
    for start, stop in zip(first, [*first[1:], nodes], strict=True):
        here = near[start:stop]
        early = here <= before[start:stop].unsqueeze(1)
        h, gate, m = (
            torch.where(early.unsqueeze(2), torch.cat(rows)[here * early], table[here])
            for rows, table in zip((new_h, new_gate, new_m), tables, strict=True)
        )
        part = share[start:stop]
        a = gates[start:stop] + (h.sum(1) * part) @ weight_gates.t()
        mean = (torch.sigmoid(forget[start:stop].unsqueeze(1) + gate) * m).sum(1) * part
        u, o, c = a.chunk(3, -1)
        m = (0.5 * mean if halved else mean) + torch.sigmoid(u) * torch.tanh(c)
        m = m if kept is None else m + kept[start:stop]
        o = torch.sigmoid(o)
        h = torch.tanh(o * m) if tanh_last else o * torch.tanh(m)
        new_h.append(h)
        new_gate.append(h @ weight_forget.t() if newest else tables[1][start + 1 : stop + 1])
        new_m.append(m)
    return torch.cat(new_h)[1:].clone(), torch.cat(new_m)[1:].clone()


graph_sweep.register_fake(lambda *args: (torch.empty_like(args[1]), torch.empty_like(args[1])))
