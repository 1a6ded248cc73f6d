"""Graphs as arrays, in NumPy: neighbour lists, visiting orders, disjoint unions, and the schedule of levels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import CellError

__all__ = ["GraphUnion", "levels_of", "neighbours_of", "unite_graphs", "visiting_order"]

Integers = NDArray[np.int64]

_OVERHEAD = 16
"""What a step costs before its first slot, in slots. See docs/decisions/0014-levels.md."""


class GraphUnion(NamedTuple):
    """Several graphs as one.

    Attributes:
        neighbours: [nodes, degree] of all graphs, the nodes of the first one first.
        order: [nodes], all nodes of the first graph before those of the second; None where there is none.
        starts: [graphs + 1], where the nodes of each graph begin, and where the last one ends.
    """

    neighbours: Integers
    order: Integers | None
    starts: Integers


def neighbours_of(edges: ArrayLike, nodes: int, *, directed: bool = False) -> Integers:
    """Neighbour lists from edges.

    Args:
        edges: integer [edges, 2]. Undirected: pairs of nodes, each edge once or twice. Directed: (reader, source), a
            node and one whose state it reads, such as (parent, child); a node's sources keep their order.
        nodes: how many there are.
        directed: which of both.

    Returns:
        [nodes, degree] with -1 behind each node's last neighbour; degree is at least 1.

    Raises:
        CellError: an edge is out of range, or joins a node to itself.
    """
    pairs = _integers("edges", edges, 2).reshape(-1, 2)
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < nodes):
        bad = int(np.flatnonzero((pairs < 0).any(1) | (pairs >= nodes).any(1))[0])
        raise CellError(f"edge {bad} is {pairs[bad].tolist()}; accepted are nodes 0 to {nodes - 1}")
    if not directed:
        pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    _refuse_loops(pairs[:, 0], pairs[:, 1])
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    counts = np.bincount(pairs[:, 0], minlength=nodes)
    found = np.full((nodes, max(1, int(counts.max(initial=0)))), -1, np.int64)
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    found[pairs[:, 0], place] = pairs[:, 1]
    return found


def visiting_order(confidence: ArrayLike, background: int | None = None) -> Integers:
    """The order of Liang et al. 2016: by descending confidence of the best label, ties by the node's number.

    Args:
        confidence: [nodes], or [nodes, labels], whose best label counts.
        background: a label whose nodes come after all others, if there is one.

    Returns:
        [nodes], the node that is visited first, second and so on.

    Raises:
        CellError: a confidence is not a number, or `background` is no label.
    """
    values = np.asarray(confidence, np.float64)
    if values.ndim not in (1, 2) or np.isnan(values).any():
        raise CellError(f"confidence has shape {list(values.shape)}; accepted are numbers [nodes] or [nodes, labels]")
    if background is None:
        return np.argsort(-(values if values.ndim == 1 else values.max(1)), kind="stable").astype(np.int64)
    if values.ndim != 2 or not 0 <= background < values.shape[1]:
        raise CellError(f"background is {background!r}; accepted is a label of confidence, {list(values.shape)}")
    return np.lexsort((-values.max(1), values.argmax(1) == background)).astype(np.int64)


def unite_graphs(neighbours: Sequence[ArrayLike], orders: Sequence[ArrayLike] | None = None) -> GraphUnion:
    """The disjoint union of graphs, which a graph network takes for a batch of them.

    Args:
        neighbours: [nodes, degree] of each.
        orders: [nodes] of each, or None where an order follows from the graph.

    Raises:
        CellError: there are not as many orders as graphs.
    """
    lists = [_neighbours(each) for each in neighbours]
    starts = np.cumsum([0, *(len(each) for each in lists)])
    degree = max((each.shape[1] for each in lists), default=1)
    united = np.full((int(starts[-1]), degree), -1, np.int64)
    for each, start in zip(lists, starts, strict=False):
        united[start : start + len(each), : each.shape[1]] = np.where(each < 0, -1, each + start)
    if orders is None:
        return GraphUnion(united, None, starts)
    if len(orders) != len(lists):
        raise CellError(f"there are {len(orders)} orders and {len(lists)} graphs; accepted is one order a graph")
    parts = [_order(order, len(each)) + start for order, each, start in zip(orders, lists, starts, strict=False)]
    return GraphUnion(united, np.concatenate([np.zeros(0, np.int64), *parts]), starts)


def levels_of(
    neighbours: ArrayLike, order: ArrayLike | None = None, *, symmetric: bool = False, width: int | None = None
) -> Integers:
    """The schedule that computes all nodes of a level at once, and gives what one node after the other gives.

    With an order, a node sees the new state of the neighbours that come before it and the old state of the others. Its
    level is one above the highest of the former, and no lower than that of any earlier node that reads its old state.
    Without an order a node comes after all of its neighbours, as in a tree whose children are the neighbours: then
    levels are heights.

    A level of many more nodes than the others would make every step that wide. Such levels are cut: their nodes do not
    need each other's new states.

    Args:
        neighbours: integer [nodes, degree], the nodes whose state each node reads; -1 for none.
        order: [nodes], the node that is visited first, second and so on; None if each comes after its neighbours.
        symmetric: refuse a node that is not a neighbour of its neighbour.
        width: nodes a step at most; None for the width that costs least.

    Returns:
        [steps, width], the nodes of each step; -1 for empty slots. A graph without nodes has one empty step, which the
        runtime's loops need.

    Raises:
        CellError: an index is out of range, `order` is no permutation of the nodes, the graph has a cycle and no order,
            a node is its own neighbour, or a neighbourhood is not symmetric and should be.
    """
    lists = _neighbours(neighbours)
    nodes = len(lists)
    reader, slot = np.nonzero(lists >= 0)
    source = lists[reader, slot]
    _refuse_loops(reader, source)
    if symmetric:
        _refuse_one_way(reader, source, nodes)
    if width is not None and width < 1:
        raise CellError(f"width is {width}; accepted is at least 1")
    if order is None:
        level = _longest(source, reader, np.ones(len(source), np.int64), nodes)
        first = np.argsort(level, kind="stable")
    else:
        rank = np.empty(nodes, np.int64)
        rank[_order(order, nodes)] = np.arange(nodes)
        new = rank[source] < rank[reader]
        level = _longest(np.where(new, source, reader), np.where(new, reader, source), new.astype(np.int64), nodes)
        first = np.lexsort((rank, level))  # where a level is cut, no node is before one that reads its old state
    counts = np.bincount(level, minlength=1)
    width = width or _best_width(counts)
    place = np.arange(nodes) - np.repeat(np.cumsum(counts) - counts, counts)
    steps = -(-counts // width)
    row = np.repeat(np.cumsum(steps) - steps, counts) + place // width
    schedule = np.full((max(1, int(steps.sum())), width), -1, np.int64)
    schedule[row, place % width] = first
    return schedule


def _best_width(counts: Integers) -> int:
    """The width of the least steps * (overhead + width), among the sizes of levels and their halves, thirds, ..."""
    largest = int(counts.max(initial=1))
    widths = np.unique(-(-largest // np.arange(1, min(largest, 256) + 1)))
    steps = (-(-counts[:, None] // widths)).sum(0)
    return int(widths[np.argmin(steps * (_OVERHEAD + widths))]) if largest else 1


def _longest(before: Integers, after: Integers, weight: Integers, nodes: int) -> Integers:
    """The longest way to each node along edges of weight 0 or 1; a frontier of nodes at a time."""
    by = np.argsort(before, kind="stable")
    after, weight = after[by], weight[by]
    start = np.concatenate([[0], np.cumsum(np.bincount(before, minlength=nodes))])
    waiting = np.bincount(after, minlength=nodes)
    level = np.zeros(nodes, np.int64)
    frontier = np.flatnonzero(waiting == 0)
    done = 0
    while frontier.size:
        done += frontier.size
        counts = start[frontier + 1] - start[frontier]
        edges = np.arange(counts.sum()) + np.repeat(start[frontier] - np.cumsum(counts) + counts, counts)
        to = after[edges]
        np.maximum.at(level, to, np.repeat(level[frontier], counts) + weight[edges])
        np.subtract.at(waiting, to, 1)
        frontier = np.unique(to[waiting[to] == 0])
    if done < nodes:
        raise CellError(f"the graph has the cycle {_cycle(before[by], after, waiting)}; accepted is one without cycles")
    return level


def _cycle(before: Integers, after: Integers, waiting: Integers) -> str:
    """A cycle among the nodes that still wait, each node reading the next, which waits too."""
    reads = {int(a): int(b) for b, a in zip(before, after, strict=True) if waiting[a] > 0 and waiting[b] > 0}
    way = [next(iter(reads))]
    while reads[way[-1]] not in way:
        way.append(reads[way[-1]])
    way = way[way.index(reads[way[-1]]) :]
    least = way.index(min(way))
    way = [*way[least:], *way[: least + 1]]
    shown: list[int | str] = [*way] if len(way) <= 12 else [*way[:10], "...", way[-1]]
    return " -> ".join(map(str, shown))


def _refuse_loops(reader: Integers, source: Integers) -> None:
    loops = np.flatnonzero(reader == source)
    if loops.size:
        raise CellError(f"node {int(reader[loops[0]])} is its own neighbour; accepted are other nodes")


def _refuse_one_way(reader: Integers, source: Integers, nodes: int) -> None:
    lone = np.setdiff1d(reader * nodes + source, source * nodes + reader)
    if lone.size:
        a, b = divmod(int(lone[0]), nodes)
        raise CellError(f"node {a} has the neighbour {b}, but node {b} does not have {a}; accepted is both or none")


def _neighbours(neighbours: ArrayLike) -> Integers:
    lists = _integers("neighbours", neighbours, 2)
    bad = (lists < -1) | (lists >= len(lists))
    if bad.any():
        node = int(np.flatnonzero(bad.any(1))[0])
        raise CellError(
            f"node {node} has the neighbours {lists[node].tolist()}; accepted is 0 to {len(lists) - 1}, or -1 for none"
        )
    return lists


def _order(order: ArrayLike, nodes: int) -> Integers:
    given = _integers("order", order, 1)
    if len(given) != nodes:
        raise CellError(f"order has {len(given)} nodes; accepted is each of the {nodes} nodes once")
    visits = np.bincount(given[(given >= 0) & (given < nodes)], minlength=nodes)
    if (visits != 1).any():
        node = int(np.flatnonzero(visits != 1)[0])
        raise CellError(f"order has node {node} {int(visits[node])} times; accepted is each of the {nodes} nodes once")
    return given


def _integers(what: str, values: Any, rank: int) -> Integers:
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or (array.ndim != rank and array.size):
        raise CellError(f"{what} are {array.dtype} {list(array.shape)}; accepted are integers of {rank} axes")
    return array.astype(np.int64)
