"""Lookup tables: what depends on one token alone is computed once for every token of the vocabulary.

If a layer reads an embedding row, its input projections are functions of the token. Their values for the whole
vocabulary replace the embedding, and a gather replaces the matrix products (specification of the cells, section 4.7).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from .graphs import add_initializer, constant, graph_of, integer, is_constant, nodes, rank
from .rows import FLOATS, by_row

Mode = bool | Literal["auto"]

AUTO_LIMIT = 512 << 20
"""Bytes by which `"auto"` lets the tables of one embedding grow the model."""

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class FoldedTable:
    """One table that the pass made: its initializer's name, rows, values a row, dtype name and bytes."""

    name: str
    vocabulary: int
    width: int
    dtype: str
    bytes: int


@dataclass(frozen=True)
class _Candidate:
    gather: ir.Node
    computed: list[ir.Node]
    results: list[ir.Value]

    @property
    def table(self) -> ir.Value:
        table = self.gather.inputs[0]
        assert table is not None
        return table


class LookupTables(ir.passes.InPlacePass):
    """Replace what is computed from an embedding row alone by rows that are computed at export.

    Precondition: constants are folded; token ids are transposed, not embedded rows (`MoveTransposes`); dead nodes are
    removed, so that what reads an embedding is known.

    The pass follows each `Gather(embedding, ids)` through operations that treat every position alike (products with a
    constant matrix, elementwise operations with constants, layer normalisation) up to the first that does not. Each
    value that the rest of the graph needs becomes one table; one table a value measured faster than one wide table,
    whose parts have to be copied out of it. Tables are computed in float64 and rounded once. An embedding is left
    alone if no matrix product would be saved.

    Attributes:
        tables: the tables made by the last run.
        notes: what was folded or left, and why.
    """

    def __init__(self, mode: Mode = "auto", limit: int = AUTO_LIMIT) -> None:
        super().__init__()
        self._mode = mode
        self._limit = limit
        self.tables: list[FoldedTable] = []
        self.notes: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        self.tables, self.notes = [], []
        if self._mode is False:
            return ir.passes.PassResult(model, False)
        for gather in list(nodes(model, "Gather")):
            candidate = _candidate(model, gather)
            if candidate is not None and self._worth(candidate):
                self.tables += _fold(model, candidate)
        return ir.passes.PassResult(model, bool(self.tables))

    def _worth(self, candidate: _Candidate) -> bool:
        embedding = candidate.table
        array = constant(embedding)
        assert array is not None
        width = sum(_width(value) for value in candidate.results)
        added = array.shape[0] * width * array.itemsize
        freed = 0 if _others_read(candidate) else array.nbytes
        told = f"embedding {embedding.name!r} [{array.shape[0]}, {array.shape[1]}]"
        size = f"{len(candidate.results)} tables of {width} values a token, {added / 2**20:.1f} MiB"
        if self._mode == "auto" and added - freed > self._limit:
            self.notes.append(
                f"{told} left as it is: {size} would pass the limit of {self._limit / 2**20:.0f} MiB; "
                "lookup=True folds all the same"
            )
            return False
        self.notes.append(f"{told} and the projections behind it folded into {size}")
        return True


def _candidate(model: ir.Model, gather: ir.Node) -> _Candidate | None:
    table, ids = (*gather.inputs, None, None)[:2]
    if gather.graph is not model.graph or table is None or ids is None or is_constant(ids):
        return None
    if not is_constant(table) or rank(table) != 2 or integer(gather, "axis", 0) != 0 or table.dtype not in FLOATS:
        return None
    row = gather.outputs[0]
    derived: set[ir.Value] = {row}
    computed: list[ir.Node] = []
    started = False
    for node in model.graph:
        started |= node is gather
        if started and node is not gather and by_row(node, derived, rank(row)):
            derived.update(node.outputs)
            computed.append(node)
    _ask_ids(ids, derived)
    inside = set(computed)
    results = [
        value
        for node in computed
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]
    computed = _needed(computed, results)
    if not any(node.op_type == "MatMul" for node in computed) or any(_width(value) == 0 for value in results):
        return None
    return _Candidate(gather, computed, results)


def _ask_ids(ids: ir.Value, derived: set[ir.Value]) -> None:
    """Read leading sizes, which all these values share, from the ids: a table for the sake of a size is a waste."""
    axes = rank(ids)
    for node in [user for value in derived for user, _ in value.uses()]:
        if node.op_type == "Shape" and node.domain == "" and axes is not None:
            start, end = integer(node, "start", 0), integer(node, "end", axes + 1)
            if 0 <= start < end <= axes:
                node.replace_input_with(0, ids)


def _needed(computed: list[ir.Node], results: list[ir.Value]) -> list[ir.Node]:
    wanted: set[ir.Value | None] = set(results)
    kept = []
    for node in reversed(computed):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


def _width(value: ir.Value) -> int:
    if value.shape is None or not isinstance(value.shape[-1], int):
        return 0
    return value.shape[-1]


def _others_read(candidate: _Candidate) -> bool:
    """Whether something else goes on reading the embedding."""
    gather = candidate.gather
    if any(user is not gather for user, _ in candidate.table.uses()):
        return True
    return any(user not in candidate.computed for user, _ in gather.outputs[0].uses())


def _fold(model: ir.Model, candidate: _Candidate) -> list[FoldedTable]:
    ids = candidate.gather.inputs[1]
    embedding = constant(candidate.table)
    assert ids is not None
    assert embedding is not None
    base = (candidate.table.name or "embedding").removesuffix(".weight")
    tables = []
    for index, (value, rows) in enumerate(zip(candidate.results, _rows(candidate, embedding), strict=True)):
        table = add_initializer(model, f"{base}.table_{index}", rows)
        lookup = ir.node("Gather", [table, ids], {"axis": 0})
        new = lookup.outputs[0]
        new.shape, new.type = value.shape, value.type
        graph_of(candidate.gather).insert_before(candidate.gather, lookup)
        ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
        tables.append(FoldedTable(table.name or "", len(rows), rows.shape[1], str(rows.dtype), rows.nbytes))
    return tables


def _rows(candidate: _Candidate, embedding: "np.ndarray[Any, Any]") -> list["np.ndarray[Any, Any]"]:
    """The value of each result for every row of the embedding, computed in float64."""
    double = onnx.TensorProto.DOUBLE
    names: dict[ir.Value, str] = {candidate.gather.outputs[0]: "row"}
    initializers, made = [], []
    for node in candidate.computed:
        for value in node.inputs:
            if value is not None and value not in names:
                names[value] = f"c{len(names)}"
                array = constant(value)
                assert array is not None
                initializers.append(onnx.numpy_helper.from_array(_double(array), names[value]))
        for value in node.outputs:
            names[value] = f"v{len(names)}"
        proto = ir.serde.serialize_node(node)
        proto.input[:] = ["" if value is None else names[value] for value in node.inputs]
        proto.output[:] = [names[value] for value in node.outputs]
        if node.op_type == "Cast":
            next(each for each in proto.attribute if each.name == "to").i = double
        made.append(proto)
    # An axis of a layer normalisation and the shape of a constant count from the front: the rank stays what it is.
    leading = [1] * ((rank(candidate.gather.outputs[0]) or 2) - 2)
    graph = onnx.helper.make_graph(
        made,
        "rows",
        [onnx.helper.make_tensor_value_info("row", double, [*leading, None, embedding.shape[1]])],
        [onnx.helper.make_tensor_value_info(names[value], double, None) for value in candidate.results],
        initializers,
    )
    opset = graph_of(candidate.gather).opset_imports[""]
    evaluate = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]))
    columns: list[np.ndarray[Any, Any]] = []
    for start in range(0, len(embedding), _ROWS_AT_ONCE):
        part = _double(embedding[start : start + _ROWS_AT_ONCE])
        results = evaluate.run(None, {"row": part.reshape(*leading, *part.shape)})
        for index, (value, rows) in enumerate(zip(candidate.results, results, strict=True)):
            assert value.dtype is not None
            if start == 0:
                columns.append(np.empty((len(embedding), _width(value)), value.dtype.numpy()))
            columns[index][start : start + len(part)] = rows.reshape(-1, _width(value))
    return columns


def _double(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return array.astype(np.float64) if array.dtype.kind == "f" else array
