"""Why the embeddings of a graph have no lookup tables, in words."""

import ast

import onnx_ir as ir

from .passes.graphs import integer, is_constant, nodes, rank
from .passes.rows import FLOATS, by_row

__all__ = ["why_unfolded"]

_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
"""Where torch's exporter notes of a node which modules it is of, from the outermost to the operator itself."""


def why_unfolded(model: ir.Model) -> str:
    """Say of each embedding which module reads it, and why that makes no lookup table.

    Args:
        model: a graph without lookup tables, all passes done. Weights have the names of the user's state_dict, under
            the exporter's prefix ``model`` in what torch notes of nodes.

    Returns:
        One clause for each embedding, behind a colon; empty if none is read by anything.
    """
    found = []
    for gather in nodes(model, "Gather"):
        table, ids = gather.inputs[:2]
        if table is None or not is_constant(table) or is_constant(ids) or gather.graph is not model.graph:
            continue
        reader = _reader(model, gather) if rank(table) == 2 and table.dtype in FLOATS else None
        if reader is not None:
            name = (table.name or "embedding").removesuffix(".weight")
            found.append(f"embedding {name!r} feeds {_module(reader)}, {_why(reader)}")
    return ": " + "; ".join(found) if found else ""


def _reader(model: ir.Model, gather: ir.Node) -> ir.Node | None:
    """The first node that needs more than one row at a time, or computes in a way that tables do not follow."""
    if integer(gather, "axis", 0) != 0:
        return None
    row = gather.outputs[0]
    derived: set[ir.Value] = {row}
    for node in model.graph:
        if by_row(node, derived, rank(row)):
            derived.update(node.outputs)
        elif node.op_type != "Shape" and any(value in derived for value in node.inputs):
            return node
    return None


def _module(node: ir.Node) -> str:
    try:
        scopes, classes = (ast.literal_eval(node.metadata_props[key]) for key in (_SCOPES, _CLASSES))
        path, kind = scopes[-2].removeprefix("model").removeprefix("."), classes[-2].rpartition(".")[2]
    except (KeyError, IndexError, SyntaxError, ValueError):  # of a node that a pass made, or another torch
        return f"an operator {node.op_type}"
    return f"module {path!r} ({kind})" if path else f"forward of {kind}"


def _why(node: ir.Node) -> str:
    if node.op_type == "Gemm":
        return (
            "which projects rows [nodes, features] or others of two axes, by a Gemm; tables follow the MatMul of rows "
            "of three or more, such as [batch, time, features]"
        )
    if node.op_type == "Gather":
        return "which takes the rows in another order, such as that of visits to nodes, before it projects them"
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return f"whose operator {node.op_type} projects the rows itself; lowering='scan' lets a table do so"
    return f"whose operator {node.op_type} reads the rows as they are"
