"""Each output of a graph is a value of its own."""

import numpy as np
import onnx
import onnx_ir as ir

from cellport.export.passes import SeparateOutputs

from .graphs import operators, parse, run

# The parser refuses an output that is written twice, so the outputs are put in place afterwards.
TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[batch] x) => (float[batch] y)
<float[1] weight = {3}>
{ y = Neg(x) }
"""


def test_what_is_given_out_twice_or_as_it_came_in_is_copied() -> None:
    model = parse(TEXT)
    graph = model.graph
    y, x, weight = graph.outputs[0], graph.inputs[0], graph.initializers["weight"]
    graph.outputs.extend([y, x, weight])
    assert SeparateOutputs()(model).modified
    assert operators(graph) == ["Neg", "Identity", "Identity", "Identity"]
    assert graph.outputs[0] is y
    assert len({*graph.outputs, x, weight}) == 6
    for value, name in zip(graph.outputs, "abcd", strict=True):
        value.name = name
    value = np.array([1, 2], np.float32)
    for found, expected in zip(run(model, x=value), (-value, -value, value, [3]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_outputs_that_are_apart_are_left() -> None:
    model: ir.Model = parse(TEXT)
    assert not SeparateOutputs()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
