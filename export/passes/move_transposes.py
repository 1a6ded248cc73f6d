"""Transpose token ids instead of the rows that they select, and cancel what is transposed twice."""

import onnx_ir as ir

from .graphs import graph_of, integer, integers, is_constant, nodes, rank
from .rows import by_row


class MoveTransposes(ir.passes.InPlacePass):
    """Take Transposes to where they cost least.

    A batch-first model transposes its embedded tokens, [batch, time, features], for every cell and back. Transposing
    the ids costs a fraction, and leaves the embedding next to the projection that a lookup table folds.

    - `Transpose(Gather(table, ids))` that leaves the row axes last becomes `Gather(table, Transpose(ids))`.
    - A Transpose that leaves the last axis in place moves in front of an operator that treats every row alike, such as
      a layer normalisation, so that it can go on to the gather.
    - `Transpose(Transpose(x))` becomes one Transpose, or nothing.
    - A Transpose that leaves every axis in place becomes an Identity. The runtime copies for it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        while self._once(model):
            modified = True
        return ir.passes.PassResult(model, modified)

    def _once(self, model: ir.Model) -> bool:
        modified = False
        for node in list(nodes(model, "Transpose")):
            source = node.inputs[0]
            order = integers(node, "perm")
            if order and order == sorted(order):
                _to_identity(node)
                modified = True
                continue
            producer = source.producer() if source is not None else None
            if producer is None or producer.domain != "":
                continue
            if producer.op_type == "Transpose":
                modified |= _merge(node, producer)
            elif producer.op_type == "Gather":
                modified |= _above_gather(node, producer)
            else:
                modified |= _above_rows(node, producer)
        return modified


def _to_identity(node: ir.Node) -> None:
    same = ir.node("Identity", [node.inputs[0]], name=node.name)
    ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], [same], node.outputs, same.outputs)


def _merge(node: ir.Node, before: ir.Node) -> bool:
    first, second = integers(before, "perm"), integers(node, "perm")
    if not first or not second:
        return False
    together = [first[axis] for axis in second]
    source = before.inputs[0]
    assert source is not None
    if together == sorted(together):
        if node.outputs[0].is_graph_output():
            return False
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        graph_of(node).remove(node, safe=True)
        return True
    node.replace_input_with(0, source)
    node.attributes["perm"] = ir.AttrInt64s("perm", together)
    return True


def _above_rows(node: ir.Node, before: ir.Node) -> bool:
    """Move a Transpose in front of an operator that treats rows alike, if nothing else reads that operator."""
    permutation, turned = integers(node, "perm"), node.outputs[0]
    changing = [value for value in before.inputs if value is not None and not is_constant(value)]
    if len(changing) != 1 or len(before.outputs[0].uses()) != 1 or before.outputs[0].is_graph_output():
        return False
    source, axes = changing[0], rank(changing[0])
    if axes is None or rank(before.outputs[0]) != axes or len(permutation) != axes or permutation[-1] != axes - 1:
        return False
    if turned.is_graph_output() or not from_gather(before):
        return False
    first = ir.node("Transpose", [source], {"perm": permutation})
    first.outputs[0].type = source.type
    if source.shape is not None:
        first.outputs[0].shape = ir.Shape([source.shape[axis] for axis in permutation])
    graph_of(before).insert_before(before, first)
    for index, value in enumerate(before.inputs):
        if value is source:
            before.replace_input_with(index, first.outputs[0])
    ir.convenience.replace_all_uses_with(turned, before.outputs[0])
    before.outputs[0].shape = turned.shape
    graph_of(node).remove(node, safe=True)
    return True


def from_gather(node: ir.Node | None) -> bool:
    """Whether a node is a gather of constant rows, or only operators that treat rows alike stand between it and one."""
    return source_gather(node) is not None


def source_gather(node: ir.Node | None) -> ir.Node | None:
    """The gather of constant rows that a node is, or that only operators that treat rows alike stand in front of."""
    while node is not None and node.domain == "":
        if node.op_type == "Gather":
            return node if is_constant(node.inputs[0]) else None
        changing = [value for value in node.inputs if value is not None and not is_constant(value)]
        if len(changing) != 1 or not by_row(node, {changing[0]}, rank(changing[0])):
            return None
        node = changing[0].producer()
    return None


def _above_gather(node: ir.Node, gather: ir.Node) -> bool:
    table, ids = gather.inputs
    permutation = integers(node, "perm")
    if table is None or ids is None or not is_constant(table) or integer(gather, "axis", 0) != 0 or not permutation:
        return False
    id_rank, table_rank = rank(ids), rank(table)
    if id_rank is None or table_rank is None or node.outputs[0].is_graph_output():
        return False
    if permutation[id_rank:] != list(range(id_rank, id_rank + table_rank - 1)):
        return False
    turned = ir.node("Transpose", [ids], {"perm": permutation[:id_rank]})
    turned.outputs[0].type = ids.type
    if ids.shape is not None:
        turned.outputs[0].shape = ir.Shape([ids.shape[axis] for axis in permutation[:id_rank]])
    rows = ir.node("Gather", [table, turned.outputs[0]], {"axis": 0})
    rows.outputs[0].type, rows.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    rows.outputs[0].name = node.outputs[0].name
    graph = graph_of(node)
    graph.insert_before(node, [turned, rows])
    ir.convenience.replace_all_uses_with(node.outputs[0], rows.outputs[0])
    graph.remove(node, safe=True)
    return True
