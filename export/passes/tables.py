"""The tables of a graph: constant matrices whose rows are gathered by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .graphs import constant, integer, is_constant, nodes, rank
from .rows import FLOATS

__all__ = ["Table", "TableChange", "set_constant", "tables_of"]


@dataclass(frozen=True)
class TableChange:
    """What became of one table.

    Attributes:
        name: of its initializer, which it keeps.
        vocabulary: tokens that it has rows for.
        rows: rows that are stored.
        width: values a row.
        dtype: name of the element type that is stored.
        rows_before: rows that were stored before.
        bytes: its size, with scales and without the map from tokens to rows, which several tables share.
        bytes_before: its size before.
    """

    name: str
    vocabulary: int
    rows: int
    width: int
    dtype: str
    rows_before: int
    bytes: int
    bytes_before: int


@dataclass(frozen=True)
class Table:
    """A constant matrix [rows, width] and the nodes that gather its rows.

    Attributes:
        value: the initializer.
        gathers: its Gather nodes, at least one.
        shared: whether anything else reads it, so that its values have to stay.
    """

    value: ir.Value
    gathers: Sequence[ir.Node]
    shared: bool

    @property
    def name(self) -> str:
        """The initializer's name."""
        return self.value.name or "table"

    @property
    def array(self) -> "np.ndarray[Any, Any]":
        """The rows."""
        array = constant(self.value)
        assert array is not None
        return array


def tables_of(model: ir.Model) -> list[Table]:
    """The tables that a graph and its bodies gather rows from, in the order of their first gather."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes(model, "Gather"):
        value = node.inputs[0]
        if value is None or not is_constant(value) or is_constant(node.inputs[1]):
            continue
        if rank(value) == 2 and value.dtype in FLOATS and integer(node, "axis", 0) in (0, -2):
            found.setdefault(value, []).append(node)
    return [
        Table(value, gathers, value.is_graph_output() or any(user not in gathers for user, _ in value.uses()))
        for value, gathers in found.items()
        if value.is_initializer()
    ]


def set_constant(value: ir.Value, array: "np.ndarray[Any, Any]") -> None:
    """Give an initializer another array, of any shape and element type, under its name."""
    tensor = ir.tensor(array, name=value.name)
    value.const_value = tensor
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
