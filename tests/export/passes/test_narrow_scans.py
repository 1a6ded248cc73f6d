"""A Scan whose steps treat rows alike computes the windows it is given; any other computes all rows."""

import numpy as np
import onnx_ir as ir
import pytest

from cellport.export.passes import NarrowScans
from cellport.export.passes.narrow_scans import CHOOSE, MARKS

from .graphs import floats, parse, run

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[rows, 2] s, float[time, rows, 2] x, int64[time] low, int64[time] high, int64[time] none, int64[time] all)
    => (float[rows, 2] last, float[time, rows, N] y)
<int64[6] index = {0, 0, 1, 2, 3, 4}, int64[6] picked = {0, 1, 2, 3, 4, 5}, int64 first = {0},
 float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[2] b = {1, -1}, int64[1] zero = {0},
 int64[1] one = {1}, int64[1] two = {2}, int64[3] lines = {-1, 1, 2}, int64[1] list = {-1},
 int64[4] wider = {0, 1, 0, 0}, int64[4] longer = {0, 0, 1, 0}, int64[2] order = {1, 0}>
{
    from_all = Identity(low)
    to_all = Identity(high)
    starts = Unsqueeze(from_all, one)
    stops = Unsqueeze(to_all, one)
    size = Shape <start = 0, end = 1> (s)
    rest = Sub(size, to_all)
    behind = Unsqueeze(rest, one)
    pads = Concat <axis = 1> (starts, behind)
    last, y = Scan <num_scan_inputs = 4, body = step
        (float[rows, 2] h, float[rows, 2] u, int64[1] start, int64[1] stop, int64[2] around)
        => (float[rows, 2] new, float[rows, N] out) {
            new = Identity(h)
            own = Slice(u, start, stop, zero)
            BODY
            out = Pad(made, around, , zero)
        }> (s, x, starts, stops, pads)
}
"""
SLICES, ROWS = 5, 6
LOW, HIGH = np.array([0, 0, 1, 4, 3]), np.array([1, 4, 6, 5, 3])

ALIKE = {
    "one input": "made = Tanh(own)",
    "a vector": "made = Add(own, b)",
    "two of the window": "twice = Add(own, own)\nmade = Mul(twice, own)",
    "a product": "both = Concat <axis = -1> (own, own)\nmade = MatMul(both, w)",
    "Gemm": "both = Concat <axis = 1> (own, own)\nmade = Gemm(both, w)",
    "parts": "front, back = Split <axis = 1, num_outputs = 2> (own)\nmade = Concat <axis = 1> (back, front)",
    "a part": "made = Slice(own, one, two, one)",
    "a column": "made = Gather <axis = 1> (own, order)",
    "Softmax": "made = Softmax <axis = -1> (own)",
    "a sum of features": "made = ReduceSum <keepdims = 1> (own, one)",
    "axes that come and go": "wide = Unsqueeze(own, zero)\nsum = ReduceMax <keepdims = 0> (wide, two)\n"
    "narrow = Squeeze(sum, zero)\nmade = Unsqueeze(narrow, one)",
    "turned twice": "across = Transpose <perm = [1, 0]> (own)\nmade = Transpose <perm = [1, 0]> (across)",
    "features of zeros": "made = Pad(own, wider)",
    "rows by an index": "near = Slice(index, start, stop, zero)\nplain = Reshape(near, list)\n"
    "made = Gather <axis = 0> (u, plain)",
}
OTHER = {
    "over rows": "made = Softmax <axis = 0> (own)",
    "the rows' sum": "sum = ReduceSum <keepdims = 1> (own, zero)\nmade = Sub(own, sum)",
    "rows of all": "part = Slice(u, start, stop, zero)\nsum = Add(part, u)\nmade = Slice(sum, zero, two, one)",
    "a size": "shape = Shape(own)\nmade = Expand(b, shape)",
    "a shape": "three = Reshape(own, lines)\nmade = Squeeze(three, one)",
    "a running sum": "made = CumSum(own, first)",
    "rows that come first": "across = Transpose(own)\nproduct = MatMul(across, own)\nlike = MatMul(own, product)\n"
    "made = Identity(like)",
    "more rows": "long = Pad(own, longer)\nshort = Slice(u, start, stop, zero)\nmade = Add(short, short)",
    "bounds": "number = Cast <to = 1> (start)\nmade = Add(own, number)",
    "the order of rows": "made = Gather <axis = 0> (own, picked)",
}


AXES = {"wide": 3, "three": 3, "narrow": 1, "shape": 1}


def text(body: str, features: int) -> str:
    return TEXT.replace("BODY", body).replace("N]", f"{features}]")


def model_of(body: str) -> ir.Model:
    features = 3 if "w)" in body or "wider" in body else 1 if body.endswith("one)") and "made = Sub" not in body else 2
    model = parse(text(body, features))
    for node, whole in zip(list(model.graph)[:2], ("none", "all"), strict=True):
        (other,) = (value for value in model.graph.inputs if value.name == whole)
        mark = ir.node(CHOOSE, [node.inputs[0], other], domain=MARKS)
        mark.outputs[0].type, mark.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        model.graph.insert_before(node, mark)
        node.replace_input_with(0, mark.outputs[0])
    (scan,) = (node for node in model.graph if node.op_type == "Scan")
    for node in scan.attributes["body"].as_graph():
        for value in node.outputs:
            if value.shape is None:  # which inference does not find with axes from outside of the body
                value.shape = ir.Shape([None] * AXES.get(value.name or "", 2))
    return model


def choose(model: ir.Model, index: int) -> None:
    """Do by hand what the pass decides."""
    for node in list(model.graph):
        if node.op_type == "Choose":
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[index])  # type: ignore[arg-type]
            model.graph.remove(node, safe=True)


def feeds() -> dict[str, np.ndarray]:
    none = np.zeros(SLICES, np.int64)
    return {
        "s": floats(ROWS, 2),
        "x": floats(SLICES, ROWS, 2),
        "low": LOW,
        "high": HIGH,
        "none": none,
        "all": none + ROWS,
    }


def marks(model: ir.Model) -> int:
    return sum(node.domain != "" for node in model.graph)


def reads(model: ir.Model) -> set[str]:
    """The inputs that the model reads."""
    return {value.name or "" for value in model.graph.inputs if value.uses()}


@pytest.mark.parametrize("body", ALIKE.values(), ids=ALIKE)
def test_rows_that_are_treated_alike_are_computed_in_their_window_alone(body: str) -> None:
    model, whole = model_of(body), model_of(body)
    assert NarrowScans()(model).modified
    assert not marks(model)
    assert {"low", "high"} <= reads(model)
    assert not {"none", "all"} & reads(model)
    choose(whole, 1)
    found, wanted = run(model, **feeds())[1], run(whole, **feeds())[1]
    for t, (low, high) in enumerate(zip(LOW, HIGH, strict=True)):
        np.testing.assert_allclose(found[t, low:high], wanted[t, low:high], rtol=1e-6)
        assert not found[t, :low].any()
        assert not found[t, high:].any()


@pytest.mark.parametrize("body", OTHER.values(), ids=OTHER)
def test_rows_that_are_not_known_to_be_treated_alike_are_all_computed(body: str) -> None:
    model = model_of(body)
    assert NarrowScans()(model).modified
    assert not marks(model)
    assert not {"low", "high"} & reads(model)


def test_a_window_that_leaves_the_step_is_not_taken() -> None:
    model = model_of("made = Neg(own)\nnoise = Neg(made)")
    (scan,) = (node for node in model.graph if node.op_type == "Scan")
    body = scan.attributes["body"].as_graph()
    body.outputs[1] = next(node.outputs[0] for node in body if node.op_type == "Neg")
    NarrowScans()(model)
    assert not {"low", "high"} & reads(model)


def test_the_rows_of_a_window_are_an_axis_of_their_own_name() -> None:
    model = model_of("made = Tanh(own)")
    (scan,) = (node for node in model.graph if node.op_type == "Scan")
    body = scan.attributes["body"].as_graph()
    for node in body:
        for value in node.outputs:
            value.shape = ir.Shape(["rows", 2])
    NarrowScans()(model)
    found = {node.op_type: str(node.outputs[0].shape) for node in body}
    assert found["Slice"] == found["Tanh"] == "[window,2]"
    assert found["Pad"] == "[rows,2]"


def test_a_graph_without_marks_is_left_as_it_is() -> None:
    model = model_of("made = Tanh(own)")
    choose(model, 0)
    assert not NarrowScans()(model).modified
