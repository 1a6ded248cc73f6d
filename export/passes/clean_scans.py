"""Leave in a Scan's body only what a step has to do: every node there costs its overhead once a step."""

import onnx_ir as ir

from .graphs import integers, nodes, scan_body, scan_states, separate_outputs


class CleanScans(ir.passes.InPlacePass):
    """Remove copies and unread outputs from the bodies of Scan nodes.

    torch's scan refuses to return one tensor twice, so the exported bodies hold copies (`Identity`). A copy is needed
    only where one value is both a state and a scan output, or where an input is returned as it came; there it is put in
    if a merging of repeated nodes took it away.

    Postcondition: no Scan has an output that nothing reads, but for its states; a body holds an Identity only where
    two outputs have the same value or an output is an input.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        for node in list(nodes(model, "Scan")):
            modified |= _remove_copies(scan_body(node))
            modified |= separate_outputs(scan_body(node))
            modified |= _remove_unread(node)
        return ir.passes.PassResult(model, modified)


def _remove_copies(body: ir.Graph) -> bool:
    modified = False
    for node in list(body):
        if node.op_type != "Identity" or node.domain != "":
            continue
        source, copy = node.inputs[0], node.outputs[0]
        assert source is not None
        producer = source.producer()
        inside = producer is not None and producer.graph is body
        if copy in body.outputs and (not inside or source in body.outputs):
            continue
        for index, output in enumerate(body.outputs):
            if output is copy:
                body.outputs[index] = source
        ir.convenience.replace_all_uses_with(copy, source)
        body.remove(node, safe=True)
        modified = True
    return modified


def _remove_unread(node: ir.Node) -> bool:
    """Drop scan outputs that nothing outside reads."""
    states, body = scan_states(node), scan_body(node)
    kept = [
        index
        for index, output in enumerate(node.outputs)
        if index < states or output.uses() or output.is_graph_output()
    ]
    if len(kept) == len(node.outputs):
        return False
    attributes = dict(node.attributes)
    for name in ("scan_output_directions", "scan_output_axes"):
        values = integers(node, name)
        if values:
            attributes[name] = ir.AttrInt64s(name, [values[index - states] for index in kept if index >= states])
    outputs = [body.outputs[index] for index in kept]
    body.outputs.clear()
    body.outputs.extend(outputs)
    replacement = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        attributes=list(attributes.values()),
        num_outputs=len(kept),
        name=node.name,
        version=node.version,
    )
    for new, index in zip(replacement.outputs, kept, strict=True):
        old = node.outputs[index]
        new.name, new.shape, new.type = old.name, old.shape, old.type
    graph = node.graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [replacement], [node.outputs[index] for index in kept], list(replacement.outputs)
    )
    return True
