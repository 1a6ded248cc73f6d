"""No node is left, in the graph or in a loop's body, that only constants decide."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from cellport.export.passes import FoldConstants, RemoveDead

from .graphs import floats, operators, run

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
main (float[batch, 4] s, float[time, batch, 4] x) => (float[batch, 4] last, float[time, batch, 3] y)
{{
    last, out = Scan <num_scan_inputs = 1, body = step (float[batch, 4] h, float[batch, 4] u)
        => (float[batch, 4] new, float[batch, 4] same) {{
        minus = Neg(v)
        twice = Add(minus, minus)
        scaled = Mul(h, twice)
        new = Add(scaled, u)
        same = Neg(new)
    }}> (s, x)
    turned = Transpose <perm = [1, 0]> (w)
    first, second = Split <axis = 1, num_outputs = 2> (turned)
    both = Concat <axis = 1> (second, first)
    narrow = Slice(both, from, to, axis)
    y = MatMul(out, narrow)
}}
"""


def model(opset: int) -> ir.Model:
    proto = onnx.parser.parse_model(TEXT.format(opset=opset))
    arrays = {"v": floats(4), "w": floats(6, 4), "from": np.array([1]), "to": np.array([4]), "axis": np.array([1])}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
    return ir.from_proto(proto)


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_layouts_of_weights_are_computed_outside_and_inside_of_loops(opset: int) -> None:
    before, after = model(opset), model(opset)
    FoldConstants()(after)
    RemoveDead()(after)
    assert operators(after.graph) == ["Scan", "MatMul"]
    assert operators(after.graph.node(0).attributes["body"].as_graph()) == ["Mul", "Add", "Neg"]
    feeds = {"s": floats(2, 4), "x": floats(5, 2, 4)}
    for old, new in zip(run(before, **feeds), run(after, **feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-6)


def test_what_an_input_decides_is_left() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[batch, 4] x) => (int64[2] shape, float[batch, 4] y)
    {
        shape = Shape(x)
        y = Neg(x)
    }
    """
    proto = onnx.parser.parse_model(text)
    made = ir.from_proto(proto)
    FoldConstants()(made)
    assert operators(made.graph) == ["Shape", "Neg"]


def test_an_initializer_that_the_caller_can_override_is_no_constant() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[2] x, float[2] w) => (float[2] y)
    <float[2] w = {1, 2}>
    {
        minus = Neg(w)
        y = Add(x, minus)
    }
    """
    made = ir.from_proto(onnx.parser.parse_model(text))
    FoldConstants()(made)
    RemoveDead()(made)
    assert operators(made.graph) == ["Neg", "Add"]
    np.testing.assert_array_equal(run(made, x=np.zeros(2, np.float32), w=np.ones(2, np.float32))[0], [-1, -1])
