"""Tables without the rows that are never read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from cellport.errors import ExportError

from .graphs import add_initializer, graph_of
from .tables import Table, TableChange, set_constant, tables_of

__all__ = ["PruneTables", "read_counts"]

Array = np.ndarray[Any, Any]

_KEEPS_IDS = frozenset(["Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])


class PruneTables(ir.passes.InPlacePass):
    """Store one row for all tokens that do not occur.

    Precondition: constants are folded; lookup tables are made; tables have a float type (before `TableTypes`).

    Postcondition: ``Gather(rows, ids)`` maps each token to its row, once for all tables that read the same ids, and the
    tables hold a row for each token that occurs, bit for bit as before, and as their last row the mean of the others.

    Args:
        counts: how often each token occurs, integers [vocabulary], by the name of the graph input that holds the ids.

    Attributes:
        changes: the tables that the last run changed.
        map_bytes: size of the maps from tokens to rows.
        notes: what was pruned or left, and why.

    Raises:
        ExportError: an input is not there, gathers no table, or its counts do not fit the rows of its tables.
    """

    def __init__(self, counts: Mapping[str, Array]) -> None:
        super().__init__()
        self._counts = {name: _checked(f"the counts of input {name!r}", np.asarray(c)) for name, c in counts.items()}
        self.changes: list[TableChange] = []
        self.map_bytes = 0
        self.notes: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        self.changes, self.map_bytes, self.notes = [], 0, []
        tables = tables_of(model)
        for name, counts in self._counts.items():
            if not any(value.name == name for value in model.graph.inputs):
                names = ", ".join(repr(value.name) for value in model.graph.inputs)
                raise ExportError(f"counts are given for input {name!r}; the model's inputs are {names}")
            fed = [table for table in tables if any(_source(gather) == name for gather in table.gathers)]
            if not fed:
                raise ExportError(f"counts are given for input {name!r}, but no table is read by its values")
            for table in fed:
                if len(table.array) != len(counts):
                    raise ExportError(
                        f"the counts of input {name!r} are for {len(counts)} tokens; table {table.name!r} has "
                        f"{len(table.array)} rows"
                    )
            self._prune(model, name, fed, counts > 0)
        if self.changes:
            common.NameFixPass()(model)
        return ir.passes.PassResult(model, bool(self.changes))

    def _prune(self, model: ir.Model, name: str, fed: list[Table], occurs: Array) -> None:
        missing = int((~occurs).sum())
        if missing < 2:
            self.notes.append(f"no rows to take out for input {name!r}: {missing} of {len(occurs)} tokens do not occur")
            return
        pruned = []
        for table in fed:
            if table.shared or any(_source(gather) != name for gather in table.gathers):
                self.notes.append(f"table {table.name!r} keeps all its rows: something else reads it")
            else:
                pruned.append(table)
                self._shrink(table, occurs)
        if not pruned:
            return
        rows = np.where(occurs, np.cumsum(occurs) - 1, int(occurs.sum())).astype(np.int32)
        initializer = add_initializer(model, f"{name}.rows", rows)
        self.map_bytes += rows.nbytes
        self.notes.append(f"{missing} of the {len(occurs)} tokens of input {name!r} do not occur and share a row")
        maps: dict[tuple[ir.Value, ir.Graph], ir.Value] = {}
        for gather in (each for table in pruned for each in table.gathers):
            ids, graph = gather.inputs[1], graph_of(gather)
            assert ids is not None
            if (ids, graph) not in maps:
                node = ir.node("Gather", [initializer, ids], {"axis": 0}, name=f"{name}_rows")
                node.outputs[0].shape, node.outputs[0].type = ids.shape, ir.TensorType(ir.DataType.INT32)
                _insert_early(graph, gather, node)
                maps[ids, graph] = node.outputs[0]
            gather.replace_input_with(1, maps[ids, graph])

    def _shrink(self, table: Table, occurs: Array) -> None:
        before = table.array
        mean = before[~occurs].mean(0, dtype=np.float64, keepdims=True).astype(before.dtype)
        after = np.concatenate([before[occurs], mean])
        set_constant(table.value, after)
        self.changes.append(
            TableChange(
                name=table.name,
                vocabulary=len(before),
                rows=len(after),
                width=before.shape[1],
                dtype=str(before.dtype),
                rows_before=len(before),
                bytes=after.nbytes,
                bytes_before=before.nbytes,
            )
        )


def read_counts(path: Path, vocabulary: int) -> Array:
    """Read how often each token occurs.

    Args:
        path: a ``.npy`` file with integers [vocabulary], or a text file with one ``id count`` a line, where ids that
            are not in it do not occur, or one ``count`` a line, in the order of ids.
        vocabulary: the number of tokens.

    Returns:
        int64 [vocabulary].

    Raises:
        ExportError: the file cannot be read as that; the message names the line.
    """
    try:
        if path.suffix == ".npy":
            counts = np.load(path, allow_pickle=False)
        else:
            counts = _parsed(path.read_text(encoding="utf-8").splitlines(), vocabulary)
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read counts from {str(path)!r}: {error}") from error
    counts = _checked(f"{str(path)!r}", counts)
    if len(counts) != vocabulary:
        raise ExportError(f"{str(path)!r} has counts for {len(counts)} tokens; accepted: {vocabulary}")
    return counts


def _parsed(lines: list[str], vocabulary: int) -> Array:
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    wide = len(rows[0][1]) if rows else 1
    given: dict[int, int] = {}
    for number, words in rows:
        if len(words) != wide or wide > 2:
            raise ValueError(f"line {number} has {len(words)} words; accepted: 'id count' or 'count', as in all lines")
        try:
            values = [int(word) for word in words]
        except ValueError:
            raise ValueError(f"line {number} is {' '.join(words)!r}; accepted: integers") from None
        token = values[0] if wide == 2 else len(given)
        if not 0 <= token < vocabulary:
            raise ValueError(f"line {number} counts token {token}; accepted: 0 to {vocabulary - 1}")
        if token in given:
            raise ValueError(f"line {number} counts token {token} for the second time")
        given[token] = values[-1]
    if wide == 1:
        return np.array(list(given.values()), np.int64)
    counts = np.zeros(vocabulary, np.int64)
    counts[list(given)] = list(given.values())
    return counts


def _checked(what: str, counts: Array) -> Array:
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ExportError(
            f"{what} have shape {list(counts.shape)} and dtype {counts.dtype}; accepted: integers, 1 axis"
        )
    if (counts < 0).any():
        raise ExportError(f"{what} are {counts.min()} for token {counts.argmin()}; accepted: at least 0")
    return counts.astype(np.int64)


def _source(gather: ir.Node) -> str | None:
    """The graph input whose values, unchanged, are a gather's ids."""
    value = gather.inputs[1]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in _KEEPS_IDS or producer.domain != "":
            return None
        value = producer.inputs[0]
    return value.name if value is not None and value.is_graph_input() else None


def _insert_early(graph: ir.Graph, gather: ir.Node, node: ir.Node) -> None:
    """Put a node in front of all that reads the ids of a gather."""
    ids = gather.inputs[1]
    assert ids is not None
    producer = ids.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(next(iter(graph)), node)
