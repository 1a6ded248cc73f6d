"""Bounds are proved from the graph, and are absent where nothing proves them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from cellport.export.passes.bounds import Bounds

STEP = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[t, b, 4] x, float[b, 4] h, float[b, 4] c) => (float[t, b, 4] y)
<float[4] big = {3, 3, 3, 3}>
{
    final_h, final_c, y = Scan <num_scan_inputs = 1, body = step (float[b, 4] h0, float[b, 4] c0, float[b, 4] x0)
        => (float[b, 4] h1, float[b, 4] c1, float[b, 4] out) { LINES out = Identity(h1) }> (START, c, x)
}
"""


def bound_of_output(lines: str, start: str = "h") -> tuple[float, float] | None:
    made = ir.from_proto(onnx.parser.parse_model(STEP.replace("LINES", lines).replace("START", start)))
    return Bounds(made).of(made.graph.outputs[0])


LSTM = "s = Sigmoid(x0) k = Mul(s, c0) i = Tanh(x0) j = Mul(s, i) c1 = Add(k, j) t = Tanh(c1) h1 = Mul(s, t)"
GRU = "z = Sigmoid(h0) n = Tanh(x0) d = Sub(h0, n) m = Mul(z, d) h1 = Add(n, m) c1 = Identity(c0)"


@pytest.mark.parametrize(
    "lines",
    [
        LSTM,
        GRU,
        GRU.replace("Mul(z, d)", "Mul(d, z)").replace("Add(n, m)", "Add(m, n)"),
        "h1 = Tanh(x0) c1 = Identity(c0)",
        f"{LSTM.replace('h1 =', 'new =')} m = Greater(x0, c0) h1 = Where(m, new, h0)",
        "h1 = Tanh(c0) c1 = Neg(h0)",
    ],
)
def test_states_of_lstm_gru_and_tanh_rnn_stay_between_minus_one_and_one(lines: str) -> None:
    """Supposing that they began there; so do outputs that are made of them."""
    bound = bound_of_output(lines)
    assert bound is not None
    assert -1 <= bound[0] < bound[1] <= 1


@pytest.mark.parametrize(
    "lines",
    [
        "h1 = Relu(x0) c1 = Identity(c0)",
        "s = Sigmoid(x0) h1 = Add(h0, s) c1 = Identity(c0)",
        GRU.replace("Sigmoid(h0)", "Tanh(h0)"),
        "h1 = Mul(h0, x0) c1 = Identity(c0)",
        "h1 = Exp(c0) c1 = Tanh(h0)",
    ],
)
def test_states_that_grow_have_no_bound(lines: str) -> None:
    assert bound_of_output(lines) is None


def test_the_cell_of_an_lstm_has_no_bound() -> None:
    made = ir.from_proto(onnx.parser.parse_model(STEP.replace("LINES", LSTM).replace("START", "h")))
    scan = next(node for node in made.graph if node.op_type == "Scan")
    bounds = Bounds(made)
    assert bounds.of(scan.outputs[0]) == (-1, 1)
    assert bounds.of(scan.outputs[1]) is None


def test_a_state_that_begins_outside_is_not_supposed_to_be_inside() -> None:
    """It would be, if h were within [-1, 1]; the constant 3 is not."""
    assert bound_of_output("h1 = Identity(h0) c1 = Identity(c0)", "big") is None


@pytest.mark.parametrize(("value", "bounded"), [(0.5, True), (1.5, False)])
def test_a_default_that_begins_outside_is_seen(value: float, bounded: bool) -> None:
    """A caller may give another; a learned initial state is used wherever none is given."""
    made = ir.from_proto(onnx.parser.parse_model(STEP.replace("LINES", GRU).replace("START", "h")))
    given = made.graph.inputs[1]
    given.const_value = ir.tensor(np.full((1, 4), value, np.float32), name="h")
    made.graph.initializers["h"] = given
    assert (Bounds(made).of(made.graph.outputs[0]) is not None) == bounded


@pytest.mark.parametrize(
    ("line", "interval"),
    [
        ("y = Gather(table, ids)", (-7, 18)),
        ("r = Gather(table, ids) y = Relu(r)", (0, 18)),
        ("s = Sigmoid(x) y = Mul(s, two)", (-2, 2)),
        ("s = Sigmoid(x) t = Tanh(x) y = Add(s, t)", (-1, 2)),
        ("s = Sigmoid(x) t = Tanh(x) y = Sub(s, t)", (-1, 2)),
        ("s = Sigmoid(x) t = Tanh(x) y = Concat <axis = 0> (s, t)", (-1, 1)),
        ("s = Sigmoid(x) y = Unsqueeze(s, one)", (0, 1)),
        ("y = Exp(x)", None),
        ("s = Sigmoid(x) y = Add(s, x)", None),
        ("y = MatMul(x, table)", None),
        ("h, l = LSTM <hidden_size = 4> (x3, w, w) y = Identity(h)", (-1, 1)),
        ("h, l = GRU <hidden_size = 4> (x3, w, w) y = Identity(l)", (-1, 1)),
        ("h, l, c = LSTM <hidden_size = 4> (x3, w, w) y = Identity(c)", None),
        ('h, l = RNN <hidden_size = 4, activations = ["Relu"]> (x3, w, w) y = Identity(h)', None),
    ],
)
def test_bounds_follow_operators(line: str, interval: tuple[float, float] | None) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> main (int64[2] ids, float[2, 5] x, float[2, 2, 4] x3) => (float y)'
        f" {{ {line} }}"
    )
    table = np.array([*range(19), -7]).reshape(5, 4)
    for name, value in {"table": table, "two": [-2, 2, 0, 1, 1], "w": np.ones((1, 4, 4))}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "one"))
    made = ir.from_proto(proto)
    assert Bounds(made).of(made.graph.outputs[0]) == interval


def test_a_given_range_goes_before_what_is_proved() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> main (float[2] x) => (float[2] y) { s = Tanh(x) y = Relu(s) }'
    )
    made = ir.from_proto(proto)
    assert Bounds(made, {"s": (-0.5, 0.25)}).of(made.graph.outputs[0]) == (0, 0.25)
