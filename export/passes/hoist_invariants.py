"""Compute what does not depend on the step before the loop instead of in it."""

import onnx_ir as ir

from .graphs import integer, integers, nodes, scan_body, scan_states


class HoistInvariants(ir.passes.InPlacePass):
    """Move nodes out of the bodies of Scan nodes whose inputs all come from outside.

    torch traces a step with what it closes over, and its translation brings some of that into the operators' form at
    every step, such as an index into one axis. Nodes with graphs of their own and random ones stay. The size of an
    axis is that of the initial state, or of the sequence.

    Postcondition: every other node of a Scan's body needs an input of the body or a node that stays; none is the size
    of one axis of an input of the body.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        for scan in reversed(list(nodes(model, "Scan"))):  # what leaves an inner loop may leave the outer one too
            body, outside = scan_body(scan), scan.graph
            assert outside is not None
            for node in list(body):
                _measure_outside(node, scan)
                if _stays(node, body):
                    continue
                body.remove(node)
                outside.insert_before(scan, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _measure_outside(node: ir.Node, scan: ir.Node) -> None:
    """Let a Shape of one axis, counted from the front, read what the Scan reads."""
    axis = integer(node, "start", 0)
    if node.op_type != "Shape" or node.domain != "" or axis < 0 or integer(node, "end", -1) != axis + 1:
        return
    for index, value in enumerate(scan_body(scan).inputs):
        if value is not node.inputs[0]:
            continue
        if index >= scan_states(scan):
            if any(integers(scan, "scan_input_axes")):
                return
            node.attributes["start"] = ir.AttrInt64("start", axis + 1)
            node.attributes["end"] = ir.AttrInt64("end", axis + 2)
        node.replace_input_with(0, scan.inputs[index])
        return


def _stays(node: ir.Node, body: ir.Graph) -> bool:
    if node.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")):
        return True
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return True
    if any(output in body.outputs for output in node.outputs):
        return True
    return any(value is not None and _inside(value, body) for value in node.inputs)


def _inside(value: ir.Value, body: ir.Graph) -> bool:
    producer = value.producer()
    return value in body.inputs or (producer is not None and producer.graph is body)
