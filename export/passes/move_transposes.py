"""Transpose token ids instead of the rows that they select, and cancel what is transposed twice."""

import onnx_ir as ir

from .graphs import graph_of, integer, integers, is_constant, nodes, rank


class MoveTransposes(ir.passes.InPlacePass):
    """Take Transposes to where they cost least.

    A batch-first model transposes its embedded tokens, [batch, time, features], for every cell and back. Transposing
    the ids costs a fraction, and leaves the embedding next to the projection that a lookup table folds.

    - `Transpose(Gather(table, ids))` that leaves the row axes last becomes `Gather(table, Transpose(ids))`.
    - `Transpose(Transpose(x))` becomes one Transpose, or nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        for node in list(nodes(model, "Transpose")):
            source = node.inputs[0]
            producer = source.producer() if source is not None else None
            if producer is None or producer.domain != "":
                continue
            if producer.op_type == "Transpose":
                modified |= _merge(node, producer)
            elif producer.op_type == "Gather":
                modified |= _above_gather(node, producer)
        return ir.passes.PassResult(model, modified)


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
