"""Compute at export what no input can change, weight layouts above all."""

import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnxscript import optimizer

from .graphs import add_initializer, constant, graph_of, nodes

_NO_LIMIT = 1 << 62
_RANDOM = frozenset(["Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomUniform"])


class FoldConstants(ir.passes.InPlacePass):
    """Replace every node whose inputs are constants by its result, whatever its size.

    onnxscript's own limits keep files small; here a weight must never be permuted when a session starts. Nodes with
    several outputs, such as the Split of a weight, are not among what it folds.

    Postcondition: no node of the graph or of its bodies has constant inputs only, but those with random or
    side-effecting semantics.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = _fold(model)
        while _fold_several_outputs(model):
            modified = True
            _fold(model)
        return ir.passes.PassResult(model, modified)


def _fold(model: ir.Model) -> bool:
    result = optimizer.fold_constants_ir(
        model, onnx_shape_inference=True, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT
    )
    return bool(result.modified)


def _fold_several_outputs(model: ir.Model) -> bool:
    modified = False
    for node in list(nodes(model)):
        arrays = {value: constant(value) for value in node.inputs if value is not None}
        if len(node.outputs) < 2 or not arrays or any(array is None for array in arrays.values()):
            continue
        if node.domain != "" or node.op_type in _RANDOM or _has_body(node):
            continue
        proto = ir.serde.serialize_node(node)
        names = {value: f"i{index}" for index, value in enumerate(arrays)}
        proto.input[:] = ["" if value is None else names[value] for value in node.inputs]
        proto.output[:] = [f"o{index}" for index in range(len(node.outputs))]
        graph = onnx.helper.make_graph(
            [proto],
            "constant",
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names.values()],
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output],
        )
        opset = onnx.helper.make_opsetid("", model.opset_imports[""])
        evaluate = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[opset]))
        results = evaluate.run(None, {names[value]: array for value, array in arrays.items()})
        for output, array in zip(node.outputs, results, strict=True):
            made = add_initializer(model, output.name or node.op_type.lower(), array)
            ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
        graph_of(node).remove(node, safe=True)
        modified = True
    return modified


def _has_body(node: ir.Node) -> bool:
    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values())
