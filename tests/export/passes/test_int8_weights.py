"""int8 weights compute products within what their quantisation allows, where and how they are told to."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from cellport.export.passes import Int8Weights, RemoveDead, calibrate
from cellport.export.passes.int8_weights import quantised_columns, quantised_range

from .balls import FLOAT32
from .graphs import operators, run

SIZE, COLUMNS = 24, 10


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def model(lines: str, inputs: str = "float[batch, 24] x", outputs: str = "y", **arrays: Any) -> ir.Model:
    given_out = ", ".join(f"float[{name}_0, {name}_1] {name}" for name in outputs.split())
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> main ({inputs}) => ({given_out}) {{ {lines} }}'
    )
    for name, value in {"w": values(SIZE, COLUMNS, seed=1), **arrays}.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    made = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    RemoveDead()(made)
    return made


def bound(x: Any, w: Any, left_error: float) -> Any:
    """Half a step of each weight, and `left_error` of each left operand, through a product with float32 rounding."""
    x, w = (np.abs(np.asarray(each, np.float64)) for each in (x, w))
    reach = x + left_error
    off = np.broadcast_to(w.max(0) / 127 / 2, w.shape)
    return np.full(x.shape, left_error) @ w + reach @ off + 8 * FLOAT32 * (reach @ w)


PRODUCTS: dict[str, dict[str, Any]] = {
    "y = MatMul(x, w)": {},
    "y = Gemm(x, w)": {},
    "y = Gemm <transB = 1> (x, v)": {"v": np.ascontiguousarray(values(SIZE, COLUMNS, seed=1).T)},
    "y = Gemm(x, w, b)": {"b": values(COLUMNS, seed=2)},
    "a = Tanh(x) s = Slice(a, zero, ten, one) y = Gemm(x, w, s)": {
        "zero": np.array([0]),
        "ten": np.array([COLUMNS]),
        "one": np.array([1]),
    },
}


@pytest.mark.parametrize("lines", PRODUCTS)
@pytest.mark.parametrize("fixed", [False, True])
def test_a_product_is_within_its_bound(lines: str, fixed: bool) -> None:
    """A range that is found in a call has a rounded zero point, which can add half a step to the error."""
    x, w = values(7, SIZE), values(SIZE, COLUMNS, seed=1)
    interval = float(x.min()), float(x.max())
    made, before = model(lines, **PRODUCTS[lines]), model(lines, **PRODUCTS[lines])
    passing = Int8Weights({"x": interval} if fixed else {}, 0)
    assert passing(made).modified
    assert (passing.fixed, passing.dynamic)[not fixed] == ["v" if "v)" in lines else "w"]
    expected = ["QuantizeLinear", "MatMulIntegerToFloat"] if fixed else ["DynamicQuantizeMatMul"]
    assert [each for each in operators(made.graph) if "Quant" in each or "MatMul" in each] == expected
    step = float(quantised_range(*interval)[0])
    allowed = bound(x, w, step / 2 if fixed else step)
    truth = x.astype(np.float64) @ w + (run(before, x=x)[0] - x @ w)
    assert (np.abs(run(made, x=x)[0] - truth) <= allowed + 1e-5).all()


def test_a_range_that_follows_from_the_graph_is_fixed() -> None:
    made = model("t = Tanh(x) y = MatMul(t, w)")
    passing = Int8Weights(minimum=0)
    passing(made)
    assert passing.fixed == ["w"]
    x = values(5, SIZE)
    t = np.tanh(x.astype(np.float64))
    w = values(SIZE, COLUMNS, seed=1)
    assert (np.abs(run(made, x=x)[0] - t @ w) <= bound(t, w, 1 / 127 / 2)).all()


def test_products_of_one_value_quantise_it_once() -> None:
    """Found in each call or fixed."""
    lines = "y = MatMul(x, w) z = MatMul(x, v)"
    for ranges, first in (({}, "DynamicQuantizeLinear"), ({"x": (-4.0, 4.0)}, "QuantizeLinear")):
        made = model(lines, outputs="y z", v=values(SIZE, 3, seed=5))
        Int8Weights(ranges, 0)(made)
        assert operators(made.graph) == [first, "MatMulIntegerToFloat", "MatMulIntegerToFloat"]
        x = values(5, SIZE).clip(-4, 4)
        for got, w in zip(run(made, x=x), (values(SIZE, COLUMNS, seed=1), values(SIZE, 3, seed=5)), strict=True):
            assert (np.abs(got - x.astype(np.float64) @ w) <= bound(x, w, 8 / 255)).all()


def test_rows_do_not_see_each_other_where_the_range_is_fixed() -> None:
    """Bit for bit; a range that is found in each call is that of all rows."""
    x = np.concatenate([values(3, SIZE), 100 * values(3, SIZE, seed=4)])
    lines = "t = Tanh(x) y = MatMul(t, w)"
    fixed, dynamic = model(lines), model("y = MatMul(x, w)")
    Int8Weights(minimum=0)(fixed)
    passing = Int8Weights(minimum=0)
    passing(dynamic)
    np.testing.assert_array_equal(run(fixed, x=x)[0][:3], run(fixed, x=x[:3])[0])
    assert (run(dynamic, x=x)[0][:3] != run(dynamic, x=x[:3])[0]).any()
    assert (
        passing.notes[-1]
        == "rows of a batch and steps of a call share the range of their values in the products with 'w'"
    )


def test_proven_ranges_can_be_left_out() -> None:
    passing = Int8Weights(minimum=0, proven=False)
    passing(model("t = Tanh(x) y = MatMul(t, w)"))
    assert passing.dynamic == ["w"]


def test_weights_keep_their_names_and_what_nothing_reads_is_gone() -> None:
    made, passing = model("y = MatMul(x, w)"), Int8Weights(minimum=0)
    passing(made)
    assert {name: value.dtype for name, value in made.graph.initializers.items()} == {
        "w": ir.DataType.INT8,
        "w.scale": ir.DataType.FLOAT,
    }
    assert (passing.bytes, passing.bytes_before) == (SIZE * COLUMNS + 4 * COLUMNS, 4 * SIZE * COLUMNS)


def test_a_weight_that_something_else_reads_stays_beside_its_integers() -> None:
    made = model("y = MatMul(x, w) z = Neg(w)", outputs="y z")
    Int8Weights(minimum=0)(made)
    np.testing.assert_array_equal(run(made, x=values(1, SIZE))[1], -values(SIZE, COLUMNS, seed=1))


@pytest.mark.parametrize(
    ("lines", "arrays"),
    [
        ("y = Gemm <alpha = 0.5> (x, w)", {}),
        ("a = Transpose(x) y = Gemm <transA = 1> (a, w)", {}),
        ("y = MatMul(w, u)", {"u": values(COLUMNS, 2)}),
        ("y = MatMul(x, w)", {"w": np.full((SIZE, COLUMNS), np.inf, np.float32)}),
    ],
)
def test_other_products_stay(lines: str, arrays: dict[str, Any]) -> None:
    assert not Int8Weights(minimum=0)(model(lines, **arrays)).modified


def test_small_weights_stay() -> None:
    assert not Int8Weights(minimum=SIZE * COLUMNS + 1)(model("y = MatMul(x, w)")).modified
    assert Int8Weights(minimum=SIZE * COLUMNS)(model("y = MatMul(x, w)")).modified


@given(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
@settings(max_examples=200)
def test_a_range_reaches_its_ends_and_holds_zero(a: float, b: float) -> None:
    low, high = sorted((a, b))
    step, zero = (each.astype(np.float64) for each in quantised_range(low, high))
    assert (0 - zero) * step <= min(low, 0) * (1 - 1e-6)
    assert (255 - zero) * step >= max(high, 0) * (1 - 1e-6)


@pytest.mark.parametrize("largest", [127, 63])
def test_integers_are_the_nearest_to_the_weights(largest: int) -> None:
    w = values(SIZE, COLUMNS) * 10.0 ** np.arange(-5, COLUMNS - 5)
    w[:, 3] = 0
    whole, scales = quantised_columns(w.astype(np.float32), largest)
    assert np.abs(whole.astype(int)).max() == largest
    assert (np.abs(whole * scales.astype(np.float64) - w) <= scales / 2 * (1 + 1e-4)).all()


def test_reduced_weights_cannot_overflow_sixteen_bits() -> None:
    """Two products of uint8 and int8 are added in 16 bits by processors without VNNI."""
    made = model("y = MatMul(x, w)")
    Int8Weights(minimum=0, reduce_range=True)(made)
    held = made.graph.initializers["w"].const_value
    assert held is not None
    assert 2 * 255 * np.abs(held.numpy().astype(int)).max() < 2**15


LOOP = """
    final, y3 = Scan <num_scan_inputs = 1, body = step (float[batch, 24] old, float[batch, 24] input)
        => (float[batch, 24] new, float[batch, 24] out) {
            sum = Gemm(old, r, input)
            new = ACTIVATION(sum)
            out = Identity(new)
        }> (h, x)
    y = Identity(final)
"""


def loop(activation: str) -> ir.Model:
    inputs = "float[time, batch, 24] x, float[batch, 24] h"
    return model(LOOP.replace("ACTIVATION", activation), inputs, r=values(SIZE, SIZE, seed=3, scale=0.1))


def test_a_product_in_a_body_has_the_range_of_its_state() -> None:
    """A tanh keeps a state in [-1, 1]; a rectifier does not."""
    for activation, count in (
        ("Tanh", ["QuantizeLinear", "MatMulIntegerToFloat"]),
        ("Relu", ["DynamicQuantizeMatMul"]),
    ):
        made = loop(activation)
        Int8Weights(minimum_in_bodies=0)(made)
        scan = next(node for node in made.graph if node.op_type == "Scan")
        body = scan.attributes["body"].as_graph()
        assert operators(body) == [*count, "Add", activation, "Identity"]
        run(made, x=values(4, 2, SIZE), h=np.zeros((2, SIZE), np.float32))


def test_calibration_finds_the_ranges_of_values_inside_and_outside_of_bodies() -> None:
    made = loop("Relu")
    feeds = [{"x": values(6, 2, SIZE, seed=seed), "h": values(2, SIZE, seed=seed)} for seed in (1, 2)]
    ranges = calibrate(made, feeds, 0, 0)
    states = []
    for each in feeds:
        h = each["h"]
        for x in each["x"]:
            states.append(h)
            h = np.maximum(h @ values(SIZE, SIZE, seed=3, scale=0.1) + x, 0)
    (interval,) = ranges.values()
    np.testing.assert_allclose(interval, (np.min(states), np.max(states)), rtol=1e-5)
    passing = Int8Weights(ranges, 0, 0)
    passing(made)
    assert passing.fixed == ["r"]


def test_what_lies_outside_of_a_calibrated_range_is_cut_off() -> None:
    made = model("y = MatMul(x, w)", w=np.eye(SIZE, dtype=np.float32))
    Int8Weights({"x": (-1.0, 3.0)}, 0)(made)
    x = np.linspace(-9, 9, SIZE, dtype=np.float32)[None]
    np.testing.assert_allclose(run(made, x=x)[0], x.clip(-1, 3), rtol=0, atol=4 / 255 / 2 + 1e-5)


@pytest.mark.parametrize("operator", ["GRU", "RNN"])
def test_operators_without_an_int8_form_are_named(operator: str) -> None:
    gates = {"GRU": 3, "RNN": 1}[operator]
    lines = f"a, y3 = {operator} <hidden_size = 24> (x, wi, r) y = Squeeze(y3, zero)"
    arrays = {"wi": values(1, 24 * gates, SIZE), "r": values(1, 24 * gates, 24), "zero": np.array([0])}
    passing = Int8Weights(minimum=0, minimum_in_bodies=0)
    assert not passing(model(lines, "float[time, batch, 24] x", **arrays)).modified
    assert "the runtime has no int8 operator of its kind" in passing.notes[0]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", [False, True])
def test_an_lstm_is_within_its_bound(direction: str, given: bool) -> None:
    """In all directions, with lengths and initial states or without; three steps, so that each error is followed."""
    count, hidden, steps = (2 if direction == "bidirectional" else 1), 6, 3
    optional = "n, h, c" if given else ""
    lines = f'a, b, e = LSTM <hidden_size = {hidden}, direction = "{direction}"> (x, wi, r, bias, {optional})'
    if not given:
        lines = lines.replace("bias, )", "bias)")
    lines += " f = Concat <axis = 0> (b, e) g = Flatten <axis = 1> (a) k = Flatten <axis = 1> (f)"
    lines += " y = Identity(g) z = Identity(k)"
    inputs = "float[3, 2, 24] x, int32[2] n, " + ", ".join(f"float[{count}, 2, {hidden}] {name}" for name in "hc")
    arrays = {
        "wi": values(count, 4 * hidden, SIZE, scale=0.05),
        "r": values(count, 4 * hidden, hidden, scale=0.2, seed=1),
        "bias": values(count, 8 * hidden, seed=2),
    }
    before, made = (model(lines, inputs, "y z", **arrays) for _ in range(2))
    passing = Int8Weights(minimum_in_bodies=0)
    assert passing(made).modified
    assert passing.dynamic == ["wi", "r"]
    assert operators(made.graph)[0] == "DynamicQuantizeLSTM"
    x, c = values(steps, 2, SIZE, seed=7), values(count, 2, hidden, seed=9)
    h = values(count, 2, hidden, seed=8).clip(-1, 1)
    feeds = {"x": x, "n": np.array([3, 2], np.int32), "h": h, "c": c}

    x_error, h_error = float(np.ptp([*x.ravel(), 0])) / 255, 2 / 255
    w, r = (np.abs(arrays[name].astype(np.float64)) for name in ("wi", "r"))
    stored = [each.max(-1, keepdims=True) / 127 / 2 for each in (w, r)]
    cell = float(np.abs(c).max()) + steps
    off_h = off_c = 0.0
    for _ in range(steps):
        gate = (x_error * w + (np.abs(x).max() + x_error) * stored[0]).sum(-1)
        gate = float((gate + ((h_error + off_h) * r + (1 + h_error + off_h) * stored[1]).sum(-1)).max()) + 1e-5
        # sigmoid changes by at most a quarter of its argument's change, tanh by all of it
        off_c = off_c + cell * gate / 4 + gate / 4 * off_c + gate * 1.25 + gate**2 / 4
        off_h = gate / 4 + off_c + gate / 4 * off_c
    for new, old, allowed in zip(run(made, **feeds), run(before, **feeds), (off_h, max(off_h, off_c)), strict=True):
        assert np.abs(new - old).max() <= allowed


def test_the_checker_accepts_operators_of_the_runtime_and_infers_what_is_behind_them() -> None:
    """ONNX has no schema for them: it takes their types as they are stated and checks the rest of the graph."""
    made = model("p = MatMul(x, w) y = Tanh(p)")
    Int8Weights(minimum=0)(made)
    assert made.opset_imports["com.microsoft"] == 1
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
