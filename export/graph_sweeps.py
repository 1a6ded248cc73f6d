"""ONNX forms of the Graph LSTM's schedule and sweep, `cellport::graph_schedule` and `cellport::graph_sweep`.

A sweep is a Loop over groups of steps, each of which cuts its own nodes and neighbours from outside: `Slice` takes as
many as there are. It carries h, Un^f h and m of the nodes so far, behind a row of zeros, which is what missing
neighbours read; a step appends to them. A sum over neighbours is an Einsum over the first axis, because onnxruntime's
ReduceSum takes longer. ScatterND would add at once what is in lists without padding, but loses updates of one row where
it runs in several threads (onnxruntime 1.32). See docs/decisions/0014-levels.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch.onnx._internal.exporter._torchlib.ops.hop import call_op

from cellport.cells.graph_visits import GROUP_SLOTS

__all__ = ["graph_schedule", "graph_sweep"]

REFUSES = "graph_and_levels_do_not_fit"
"""What nodes are called that fail where a graph, its levels and what has one row a node do not fit."""

_FEW = 4
"""Neighbours that each node's list has room for; the others of those that have more are added apart."""

_END = np.iinfo(np.int64).max


class _Graph:
    """Nodes, written one after the other into what is translated."""

    def __call__(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output, or outputs."""
        found = self._add(op_type, [self._value(each) for each in inputs], outputs, attributes)
        return found[0] if outputs == 1 else found

    def _value(self, given: Any) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        return call_op("Constant", value=ir.tensor(np.asarray(given)))[0]

    def _add(
        self, op_type: str, inputs: list[ir.Value | None], outputs: int, attributes: dict[str, Any]
    ) -> Sequence[ir.Value]:
        return call_op(op_type, *inputs, _num_outputs=outputs, **attributes)

    def size(self, value: ir.Value, axis: int) -> Any:
        """Of one axis, [1]."""
        return self("Shape", value, start=axis, end=axis + 1)

    def column(self, value: ir.Value) -> Any:
        """[n] as [n, 1]."""
        return self("Unsqueeze", value, [1])

    def integers(self, value: ir.Value) -> Any:
        """Any type as int64."""
        return self("Cast", value, to=ir.DataType.INT64.value)

    def first(self, value: ir.Value, row: Any) -> Any:
        """A value with something in front of it."""
        return self("Concat", row, value, axis=0)


class _Body(_Graph):
    """The nodes of a body. They have names of their own, since those of the graph around it are refused at loading."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[ir.Node] = []

    def input(self, name: str, dtype: ir.DataType, *shape: int | None) -> ir.Value:
        """A value that comes from outside."""
        return ir.Value(name=f"{self.name}_{name}", type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def _add(
        self, op_type: str, inputs: list[ir.Value | None], outputs: int, attributes: dict[str, Any]
    ) -> Sequence[ir.Value]:
        self.nodes.append(ir.node(op_type, inputs, attributes, num_outputs=outputs))
        for index, value in enumerate(self.nodes[-1].outputs):
            value.name = f"{self.name}_{len(self.nodes)}_{index}"
        return self.nodes[-1].outputs

    def graph(self, inputs: list[ir.Value], outputs: list[ir.Value], like: list[ir.Value]) -> ir.Graph:
        """The body; outputs are of the type and shape of others."""
        for output, other in zip(outputs, like, strict=True):
            output.type, output.shape = other.type, other.shape
        return ir.Graph(inputs, outputs, nodes=self.nodes, name=self.name)


def graph_schedule(neighbours: ir.Value, levels: ir.Value, rows: Sequence[ir.Value]) -> tuple[Any, ...]:
    """`cellport::graph_schedule` in ONNX. What does not fit is an error of the runtime, at a node called `REFUSES`."""
    g = _Graph()
    nodes, width = g.size(neighbours, 0), g.size(levels, 1)  # [1] each
    members, read = (g("Reshape", each, [-1]) for each in (levels, neighbours))
    taken = g("GreaterOrEqual", levels, 0)
    slots = g("Squeeze", g("NonZero", g("Reshape", taken, [-1])), [0])
    count = g("Size", slots)
    empty = g("Expand", 0, g("Add", nodes, 1))
    numbers = g("Range", 1, g("Add", count, 1), 1)
    numbered = _named(g("ScatterElements", empty, g("Gather", members, slots), numbers, axis=0))
    places = g("Slice", numbered, [0], [-1])
    slots = g("Add", slots, _refused(g, members, read, places, count, nodes, rows))
    order = g("Gather", members, slots)
    near = _taken(g, numbered, g("Gather", neighbours, order))
    place = g("Sub", places, 1)

    step = g("Div", slots, g("Max", width, [1]))
    counts = g("ReduceSum", g.integers(taken), [1], keepdims=0)
    starts = g("CumSum", counts, 0, exclusive=1)
    before = g("Gather", starts, step)
    early, late = _early_and_late(g, near, before)
    earlier, later = (g("ReduceSum", g.integers(each), [1], keepdims=0) for each in (early, late))

    # The last place that a step reads, plus one: within the group it is in, or before it.
    last = g("ReduceMax", _lists(g, near, early, earlier), [0], keepdims=0)
    last = g("ScatterElements", g("Expand", 0, g("Shape", starts)), step, last, axis=0, reduction="max")
    # A group of more nodes than there may be begins anew too, as if it read its first one.
    limit = g("Div", GROUP_SLOTS, g("ReduceMax", g.first(earlier, [1]), keepdims=0))
    last = g("Max", last, g("Sub", g("Add", starts, counts), g("Max", limit, width)))
    body = _Body(f"{levels.name}_groups")
    group, read, start = (body.input(name, ir.DataType.INT64) for name in ("group", "read", "start"))
    anew = body("Greater", read, group)
    likes = [group, ir.Value(name="anew", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))]
    graph = body.graph([group, read, start], [body("Where", anew, start, group), anew], likes)
    _, begins = g("Scan", 0, last, starts, outputs=2, body=graph, num_scan_inputs=2)
    begins = g.first(g("Slice", begins, [1], [_END]), [True])
    return order, place, near, before, step, earlier, later, starts, begins


def graph_sweep(
    gates: ir.Value,
    forget: ir.Value,
    kept: ir.Value | None,
    old: Sequence[ir.Value],
    share: ir.Value,
    schedule: Sequence[ir.Value],
    weight_gates: ir.Value,
    weight_forget: ir.Value,
    newest: bool,
    tanh_last: bool,
    halved: bool,
) -> tuple[Any, Any]:
    """`cellport::graph_sweep` in ONNX."""
    near, before, step, earlier, later, starts, begins = schedule
    g, body = _Graph(), _Body(f"{forget.name}_sweep")
    assert forget.dtype is not None
    assert weight_forget.shape is not None
    size, dtype = weight_forget.shape.numpy()[0], forget.dtype
    none = g._value(np.zeros((1, size), dtype.numpy()))
    early, late = _early_and_late(g, near, before)
    tables = [g.first(each, none) for each in old]
    if old:
        h, m = _late_sums(g, tables, forget, near, late, later)
        gates = g("Gemm", g("Mul", h, share), weight_gates, gates, transB=1)
        m = g("Mul", m, share)
        kept = g("Add", g("Mul", m, np.asarray(0.5, dtype.numpy())) if halved else m, kept)

    lists = _lists(g, near, early, earlier)
    first = g("Compress", starts, begins, axis=0)
    stop = g("Concat", g("Slice", first, [1], [_END]), g.size(near, 0), axis=0)
    group = g("Gather", g("Sub", g("CumSum", g.integers(begins), 0), 1), step)
    most = g("ScatterElements", g("Expand", 1, g("Shape", first)), group, earlier, axis=0, reduction="max")
    from_node, to_node = g.column(first), g.column(stop)
    from_list = g("Pad", from_node, [0, 1, 0, 0])
    to_list = g("Concat", g.column(most), to_node, axis=1)

    number, going = body.input("number", ir.DataType.INT64), body.input("going", ir.DataType.BOOL)
    states = [body.input(name, dtype, None, size) for name in ("h", "gate", "m")[:: 1 if newest else 2]]
    start, end = body("Gather", from_node, number), body("Gather", to_node, number)
    read = body("Slice", lists, body("Gather", from_list, number), body("Gather", to_list, number))
    part, own = body("Slice", share, start, end), body("Slice", forget, start, end)
    h, m = body("Gather", states[0], read), body("Gather", states[-1], read)
    if newest:
        own = body("Add", body("Gather", states[1], read), own)
    elif old:
        own = body("Add", body("Gather", tables[1], read), own)
    both = body("Concat", h, body("Mul", body("Sigmoid", own), m), axis=2)
    mean_h, mean = body("Split", body("Mul", _sum(body, both), part), axis=1, num_outputs=2, outputs=2)
    if halved:
        mean = body("Mul", mean, np.asarray(0.5, dtype.numpy()))
    a = body("Gemm", mean_h, weight_gates, body("Slice", gates, start, end), transB=1)
    u, o, c = body("Split", a, axis=1, num_outputs=3, outputs=3)
    m = body("Add", mean, body("Mul", body("Sigmoid", u), body("Tanh", c)))
    if kept is not None:
        m = body("Add", m, body("Slice", kept, start, end))
    o = body("Sigmoid", o)
    h = body("Tanh", body("Mul", o, m)) if tanh_last else body("Mul", o, body("Tanh", m))
    new = [h, body("Gemm", h, weight_forget, transB=1), m] if newest else [h, m]
    grown = [body("Concat", state, rows, axis=0) for state, rows in zip(states, new, strict=True)]
    graph = body.graph([number, going, *states], [body("Identity", going), *grown], [going, *states])
    found = g("Loop", g("Size", first), True, *[none] * len(states), outputs=len(states), body=graph)
    h, m = (g("Slice", each, [1], [_END]) for each in (found[0], found[-1]))
    return h, m


def _refused(g: _Graph, members: Any, read: Any, places: Any, count: Any, nodes: Any, rows: Sequence[ir.Value]) -> Any:
    """0, or an error of the runtime: an index is out of range, a node is not in one slot, or rows are not its nodes.

    The runtime would read negative indices from the end, the row behind the nodes, and the first of too many rows, in
    silence. What has one row a node comes after this: were there more or fewer, the runtime would write over what is
    beside it, or say so.
    """
    indices = g("Concat", [-1], members, read, axis=0)
    low, high = (g("Reduce" + which, indices, keepdims=0) for which in ("Min", "Max"))
    least = g("ReduceMin", g.first(places, [1]), keepdims=0)
    outside = g("Or", g("Less", low, -1), g("GreaterOrEqual", high, nodes))
    counts = g("Concat", g("Unsqueeze", count, [0]), *(g.size(each, 0) for each in rows), axis=0)
    same = g("ReduceMin", g.integers(g("Equal", counts, nodes)), keepdims=0)
    uneven = g("Or", g("Less", least, 1), g("Less", same, 1))
    return _named(g("Gather", [0], g.integers(g("Or", outside, uneven))))


def _named(value: Any) -> Any:
    """A value whose node fails where something does not fit."""
    value.producer().name = REFUSES
    return value


def _early_and_late(g: _Graph, near: Any, before: Any) -> tuple[Any, Any]:
    """Which neighbours are in a step before, and which are not; [nodes, degree] each."""
    late = g("Greater", near, g.column(before))
    return g("Xor", g("Cast", near, to=ir.DataType.BOOL.value), late), late


def _lists(g: _Graph, near: Any, chosen: Any, counts: Any) -> Any:
    """Chosen neighbours of each node, those of a node in one column, [most of a node, nodes]; 0 behind the last one."""
    most = g("ReduceMax", g.first(counts, [1]), keepdims=0)
    return _columns(g, _rows(g, near, chosen, counts), counts, g("Range", 0, most, 1))


def _rows(g: _Graph, near: Any, chosen: Any, counts: Any) -> tuple[Any, Any]:
    """Chosen neighbours of all nodes one behind the other, then a 0; where each node's begin."""
    listed = g("Compress", g("Reshape", near, [-1]), g("Reshape", chosen, [-1]), axis=0)
    return g("Concat", listed, [0], axis=0), g("CumSum", counts, 0, exclusive=1)


def _columns(g: _Graph, rows: tuple[Any, Any], counts: Any, numbers: Any) -> Any:
    """The neighbours of each node that have some numbers in its list, [numbers, nodes]."""
    listed, begin = rows
    numbers = g.column(numbers)
    place = g("Where", g("Less", numbers, counts), g("Add", numbers, begin), -1)
    return _taken(g, listed, place)


def _late_sums(
    g: _Graph, tables: Sequence[Any], forget: Any, near: Any, late: Any, counts: Any
) -> tuple[ir.Value, ir.Value]:
    """The sums of h and of gated memories over neighbours that keep what they had, [nodes, H] each."""

    def sums(read: Any, own: Any) -> list[Any]:
        h, gate, m = (g("Gather", table, read) for table in tables)
        return [_sum(g, each) for each in (h, g("Mul", g("Sigmoid", g("Add", gate, own)), m))]

    listed, begin = _rows(g, near, late, counts)
    most = sums(_columns(g, (listed, begin), counts, np.arange(_FEW)), forget)
    many = g("Squeeze", g("NonZero", g("Greater", counts, _FEW)), [0])
    their = g("Gather", counts, many)
    numbers = g("Range", _FEW, g("ReduceMax", g.first(their, [_FEW + 1]), keepdims=0), 1)
    rest = sums(_columns(g, (listed, g("Gather", begin, many)), their, numbers), g("Gather", forget, many))
    # Each node is there once, so that no two threads add to one row.
    h, m = (g("ScatterND", few, g.column(many), more, reduction="add") for few, more in zip(most, rest, strict=True))
    return h, m


def _sum(g: _Graph, values: Any) -> Any:
    """[neighbours, nodes, H] over the neighbours."""
    return g("Einsum", values, equation="dnh->nh")


def _taken(g: _Graph, values: Any, places: Any) -> Any:
    """Values [n] at places of any shape. A Gather takes seven times as long."""
    flat = g("GatherElements", values, g("Reshape", places, [-1]), axis=0)
    return g("Reshape", flat, g("Shape", places), allowzero=1)
