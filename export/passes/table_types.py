"""Tables of smaller elements: float16, or int8 with a scale for each row or block of columns."""

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from cellport.errors import ExportError

from .graphs import add_initializer, graph_of, rank
from .tables import Table, TableChange, set_constant, tables_of

__all__ = ["TableTypes", "quantised_rows"]

Array = np.ndarray[Any, Any]

SMALL = 1024
"""Values below which a table keeps its type: the nodes that widen its rows would weigh more than it."""


class TableTypes(ir.passes.InPlacePass):
    """Store tables as float16 or int8, and widen each row as it is read.

    Precondition: constants are folded; lookup tables are made.

    float16: ``Gather``, ``Cast``. The error of a value v is at most 2⁻¹¹ · |v|, or 2⁻²⁵ below 2⁻¹⁴.

    int8: ``Gather``, ``Cast``, ``Mul`` by the gathered scale of the row; with `block`, a ``Reshape`` behind them.
    Symmetric, rounded to the nearest: the scale is the largest absolute value of the row (or block) / 127, and the
    error of a value is at most half of the scale.

    Postcondition: the widened rows have the type that the table had, so that nothing behind them changes. A table that
    something other than a Gather reads stays, and so does one with values that its new type cannot hold.

    Args:
        kind: the element type of the tables.
        block: columns that share a scale; None for whole rows. Only for int8.
        minimum: values below which a table stays as it is.

    Attributes:
        changes: the tables that the last run changed.
        notes: what was changed or left, and why.

    Raises:
        ExportError: `kind` or `block` is not accepted.
    """

    def __init__(self, kind: Literal["float16", "int8"], block: int | None = None, minimum: int = SMALL) -> None:
        super().__init__()
        if kind not in ("float16", "int8"):
            raise ExportError(f"the type of tables is {kind!r}; accepted: 'float16', 'int8'")
        if block is not None and (kind != "int8" or block < 1):
            raise ExportError(f"block is {block} for {kind} tables; accepted: at least 1, and for int8 tables only")
        self._kind = kind
        self._block = block
        self._minimum = minimum
        self.changes: list[TableChange] = []
        self.notes: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        self.changes, self.notes = [], []
        for table in tables_of(model):
            reason = self._kept(table)
            if reason is None:
                self._change(model, table)
            elif reason:
                self.notes.append(f"table {table.name!r} left as {table.array.dtype}: {reason}")
        if self.changes:
            common.NameFixPass()(model)
        return ir.passes.PassResult(model, bool(self.changes))

    def _kept(self, table: Table) -> str | None:
        """Why a table stays as it is: None if it does not, "" if that is not worth saying."""
        array = table.array
        if array.size < self._minimum:
            return ""
        if table.shared:
            return "something else reads its values"
        largest = float(np.abs(array).max())
        if not np.isfinite(largest):
            return "not all of its values are finite"
        limit = float(np.finfo(np.float16).max)
        if self._kind == "float16" and largest > limit:
            return f"its largest absolute value is {largest:g}, and float16 holds up to {limit:g}"
        if any(rank(gather.outputs[0]) is None for gather in table.gathers):
            return "the number of axes of its ids is not known"
        return None

    def _change(self, model: ir.Model, table: Table) -> None:
        array = table.array
        told = f"table {table.name!r} [{array.shape[0]}, {array.shape[1]}]"
        if self._kind == "float16":
            set_constant(table.value, array.astype(np.float16))
            size = array.size * 2
            for gather in table.gathers:
                _widen(model, gather, array.dtype)
        else:
            block = self._block
            if block is not None and array.shape[1] % block:
                self.notes.append(f"{told} has a scale for each row: blocks of {block} do not divide its width")
                block = None
            stored, scales = quantised_rows(array, block)
            set_constant(table.value, stored)
            scale = add_initializer(model, f"{table.name}.scale", scales)
            size = stored.nbytes + scales.nbytes
            for gather in table.gathers:
                _widen(model, gather, array.dtype, scale)
        self.changes.append(
            TableChange(
                name=table.name,
                vocabulary=array.shape[0],
                rows=array.shape[0],
                width=array.shape[1],
                dtype=self._kind,
                rows_before=array.shape[0],
                bytes=size,
                bytes_before=array.nbytes,
            )
        )
        self.notes.append(f"{told} stored as {self._kind}: {size / 2**20:.2f} MiB, before {array.nbytes / 2**20:.2f}")


def quantised_rows(array: Array, block: int | None = None) -> tuple[Array, Array]:
    """Integers and scales of a table, whose product is nearest to it.

    Args:
        array: [rows, width].
        block: columns that share a scale; None for whole rows.

    Returns:
        int8 [rows, width] and scales [rows, 1]; with blocks, [rows, blocks, block] and [rows, blocks, 1].
    """
    rows, width = array.shape
    parts = array.astype(np.float64)
    if block is not None:
        parts = parts.reshape(rows, width // block, block)
    scales = (np.abs(parts).max(-1, keepdims=True) / 127).astype(array.dtype)
    scales[scales == 0] = 1
    stored = np.clip(np.rint(parts / scales.astype(np.float64)), -127, 127)
    return stored.astype(np.int8), scales


def _widen(model: ir.Model, gather: ir.Node, dtype: "np.dtype[Any]", scale: ir.Value | None = None) -> None:
    """Bring gathered rows back to the type and shape that they had, times their scales if there are any."""
    rows, (table, ids) = gather.outputs[0], gather.inputs
    assert table is not None
    assert table.shape is not None
    assert table.dtype is not None
    to = ir.DataType.from_numpy(dtype)
    leading = list(rows.shape or ())[:-1]
    stored, before = [*leading, *table.shape[1:]], rows.shape
    made = [ir.node("Cast", [rows], {"to": int(to)})]
    if scale is not None:
        assert scale.shape is not None
        scales = ir.node("Gather", [scale, ids], {"axis": 0})
        _typed(scales.outputs[0], [*leading, *scale.shape[1:]], to)
        made += [scales, ir.node("Mul", [made[0].outputs[0], scales.outputs[0]])]
        if len(table.shape) == 3:
            _typed(made[-1].outputs[0], stored, to)
            width = table.shape[1] * table.shape[2]
            shape = add_initializer(model, f"row_of_{width}", np.array([0] * len(leading) + [width]))  # 0 keeps an axis
            made.append(ir.node("Reshape", [made[-1].outputs[0], shape]))
    _typed(made[0].outputs[0], stored, to)
    result = made[-1].outputs[0]
    result.shape, result.type = before, ir.TensorType(to)
    graph_of(gather).insert_after(gather, made)
    result.name, rows.name = rows.name, f"{rows.name}_stored"
    ir.convenience.replace_all_uses_with(rows, result, replace_graph_outputs=True)
    made[0].replace_input_with(0, rows)
    _typed(rows, stored, table.dtype)


def _typed(value: ir.Value, shape: list[Any], dtype: ir.DataType) -> None:
    value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
