"""Let a Scan run backwards instead of turning its inputs and outputs around."""

import onnx_ir as ir

from .graphs import constant, graph_of, integers, nodes, scan_states


class ReverseScans(ir.passes.InPlacePass):
    """Replace time flips around a Scan by its directions.

    A flip copies the whole sequence; a Scan reads its inputs in either direction at no cost.

    Postcondition: no input of a Scan is a flip along its scan axis; an output that was only ever flipped is written in
    the flipped order.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        for node in list(nodes(model, "Scan")):
            if any(integers(node, "scan_input_axes")) or any(integers(node, "scan_output_axes")):
                continue
            modified |= _inputs(node)
            modified |= _outputs(node)
        return ir.passes.PassResult(model, modified)


def _is_flip(node: ir.Node | None) -> bool:
    """Whether a node reverses axis 0 and nothing else."""
    if node is None or node.op_type != "Slice" or node.domain != "" or len(node.inputs) != 5:
        return False
    starts, ends, axes, steps = (constant(value) for value in node.inputs[1:])
    if starts is None or ends is None or axes is None or steps is None:
        return False
    lowest = -(1 << 31)
    return (
        list(axes.ravel()) == [0]
        and list(steps.ravel()) == [-1]
        and starts.ravel()[0] in (-1, (1 << 63) - 1)
        and ends.ravel()[0] <= lowest
    )


def _inputs(node: ir.Node) -> bool:
    states = scan_states(node)
    count = len(node.inputs) - states
    directions = integers(node, "scan_input_directions") or [0] * count
    modified = False
    for index in range(count):
        value = node.inputs[states + index]
        producer = value.producer() if value is not None else None
        if _is_flip(producer):
            assert producer is not None
            node.replace_input_with(states + index, producer.inputs[0])
            directions[index] ^= 1
            modified = True
    node.attributes["scan_input_directions"] = ir.AttrInt64s("scan_input_directions", directions)
    return modified


def _outputs(node: ir.Node) -> bool:
    states = scan_states(node)
    outputs = node.outputs[states:]
    directions = integers(node, "scan_output_directions") or [0] * len(outputs)
    modified = False
    for index, output in enumerate(outputs):
        flips = [user for user, _ in output.uses()]
        if not flips or output.is_graph_output() or not all(_is_flip(user) for user in flips):
            continue
        if any(user.outputs[0].is_graph_output() or user.graph is not node.graph for user in flips):
            continue
        for user in flips:
            ir.convenience.replace_all_uses_with(user.outputs[0], output)
            graph_of(user).remove(user, safe=True)
        directions[index] ^= 1
        modified = True
    node.attributes["scan_output_directions"] = ir.AttrInt64s("scan_output_directions", directions)
    return modified
