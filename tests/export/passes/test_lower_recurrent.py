"""A lowered node computes what ONNX's specification says of it, more exactly than a single float32 run has to."""

from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common

from cellport.export.passes import CleanScans, FoldConstants, LookupTables, LowerRecurrent, RemoveDead

from .graphs import operators, run

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

STEPS, ROWS, FEATURES, HIDDEN = 7, 4, 3, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "gru-reset-before": ("GRU", {}),
    "rnn": ("RNN", {}),
    "rnn-relu": ("RNN", {"activations": ["Relu"]}),
}


def weights(operator: str, directions: int, bias: bool) -> Feeds:
    """W, R and B as ONNX lays them out."""
    rng = np.random.default_rng(0)
    gates = GATES[operator] * HIDDEN
    sizes = {"w": (gates, FEATURES), "r": (gates, HIDDEN), **({"b": (2 * gates,)} if bias else {})}
    return {name: rng.uniform(-0.8, 0.8, (directions, *size)).astype(np.float32) for name, size in sizes.items()}


def feeds_of(operator: str, directions: int, *, lengths: bool, states: bool, steps: int, rows: int) -> Feeds:
    rng = np.random.default_rng(1)
    given: Feeds = {"x": rng.standard_normal((steps, rows, FEATURES)).astype(np.float32)}
    if lengths:
        given["lengths"] = np.resize(np.array([steps, steps // 2, 0, 1], np.int32), rows)
    if states:
        for name in ("h", "c")[: 1 + (operator == "LSTM")]:
            given[name] = rng.standard_normal((directions, rows, HIDDEN)).astype(np.float32)
    return given


def model_of(
    operator: str, direction: str, parameters: Feeds, given: Feeds, opset: int = 20, **attributes: Any
) -> ir.Model:
    """One recurrent node whose inputs and outputs are the graph's."""
    directions = 2 if direction == "bidirectional" else 1
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * directions
    names = [name if name in {**parameters, **given} else "" for name in ("x", "w", "r", "b", "lengths", "h", "c")]
    outputs = ["y", "y_h", "y_c"][: 2 + (operator == "LSTM")]
    node = helper.make_node(
        operator, names[: 5 + len(outputs) - 1], outputs, hidden_size=HIDDEN, direction=direction, **attributes
    )
    axes = {
        "x": ["time", "batch", FEATURES],
        "lengths": ["batch"],
        "y": ["time", directions, "batch", HIDDEN],
    }
    state = [directions, "batch", HIDDEN]
    kinds = {"lengths": TensorProto.INT32}

    def values(these: Any) -> list[Any]:
        return [
            helper.make_tensor_value_info(each, kinds.get(each, TensorProto.FLOAT), axes.get(each, state))
            for each in these
        ]

    initializers = [numpy_helper.from_array(array, name) for name, array in parameters.items()]
    graph = helper.make_graph([node], "one", values(given), values(outputs), initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def step(operator: str, x: Array, w: Array, r: Array, b: Array, state: list[Array], attributes: Any) -> list[Array]:
    """One step of one direction by the equations of the operators' specification."""
    size, h = HIDDEN, state[0]
    into, own = x @ w.T + b[: len(w)], h @ r.T + b[len(w) :]
    if operator == "RNN":
        return [np.maximum(into + own, 0) if "activations" in attributes else np.tanh(into + own)]
    if operator == "LSTM":
        i, o, f, c = np.split(into + own, 4, axis=1)
        new = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(c)
        return [sigmoid(o) * np.tanh(new), new]
    z, reset = np.split(sigmoid(into[:, : 2 * size] + own[:, : 2 * size]), 2, axis=1)
    if attributes.get("linear_before_reset"):
        n = np.tanh(into[:, 2 * size :] + reset * own[:, 2 * size :])
    else:
        n = np.tanh(into[:, 2 * size :] + (reset * h) @ r[2 * size :].T + b[-size:])
    return [(1 - z) * n + z * h]


def computed(operator: str, direction: str, parameters: Feeds, given: Feeds, dtype: Any, **attributes: Any) -> Any:
    """Y, Y_h and Y_c; rows without steps keep their initial state."""
    x = given["x"].astype(dtype)
    steps, rows = x.shape[:2]
    lengths = given.get("lengths", np.full(rows, steps))
    w, r = (parameters[name].astype(dtype) for name in ("w", "r"))
    b = parameters.get("b", np.zeros((len(w), 2 * w.shape[1]))).astype(dtype)
    count = 1 + (operator == "LSTM")
    y, finals = np.zeros((steps, len(w), rows, HIDDEN), dtype), np.zeros((count, len(w), rows, HIDDEN), dtype)
    for d, row in product(range(len(w)), range(rows)):
        zero = np.zeros((1, HIDDEN), dtype)
        state = [given[name][d, row : row + 1].astype(dtype) if name in given else zero for name in ("h", "c")[:count]]
        order = range(lengths[row])
        for t in reversed(order) if direction == "reverse" or d else order:
            state = step(operator, x[t, row : row + 1], w[d], r[d], b[d], state, attributes)
            y[t, d, row] = state[0][0]
        finals[:, d, row] = [each[0] for each in state]
    return [y, *finals]


def near(found: list[Array], truth: list[Array], single: list[Array]) -> None:
    """At most four times the error of one float32 computation, and the last bits."""
    for each, exact, rough in zip(found, truth, single, strict=True):
        allowed = 4 * np.abs(rough - exact).max() + 1e-6 * np.maximum(1, np.abs(exact))
        assert (np.abs(each - exact) <= allowed).all()


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_outputs_are_those_of_the_specification(kind: str, direction: str, lengths: bool, states: bool) -> None:
    """With half of the biases left out, for T = 1 too, and NaN in the padding."""
    operator, attributes = KINDS[kind]
    directions = 2 if direction == "bidirectional" else 1
    parameters = weights(operator, directions, bias=states)
    for steps, rows in ((STEPS, ROWS), (1, 1)):
        given = feeds_of(operator, directions, lengths=lengths, states=states, steps=steps, rows=rows)
        model = model_of(operator, direction, parameters, given, **attributes)
        LowerRecurrent()(model)
        assert not set(GATES) & set(operators(model.graph))
        dirty = given | {"x": given["x"].copy()}
        for row, length in enumerate(given.get("lengths", [])):
            dirty["x"][length:, row] = np.nan
        found = run(model, **dirty)
        truth, single = (
            computed(operator, direction, parameters, given, dtype, **attributes) for dtype in (np.float64, np.float32)
        )
        near(found, truth, single)
        for row, length in enumerate(given.get("lengths", [])):
            assert not found[0][length:, :, row].any()


@pytest.mark.parametrize("opset", [18, 21, 22])
@pytest.mark.parametrize("kind", KINDS)
def test_every_opset_has_the_operators_of_the_loop(kind: str, opset: int) -> None:
    operator, attributes = KINDS[kind]
    parameters = weights(operator, 2, bias=True)
    given = feeds_of(operator, 2, lengths=True, states=True, steps=STEPS, rows=ROWS)
    given["lengths"] = np.maximum(given["lengths"], 1)  # for rows without steps the runtime's operators return zeros
    native = model_of(operator, "bidirectional", parameters, given, opset, **attributes)
    before = run(native, **given)
    LowerRecurrent()(native)
    for new, old in zip(run(native, **given), before, strict=True):
        np.testing.assert_allclose(new, old, atol=2e-6)


def test_a_node_alone_can_be_chosen() -> None:
    given = feeds_of("GRU", 1, lengths=False, states=False, steps=2, rows=1)
    model = model_of("GRU", "forward", weights("GRU", 1, bias=True), given)
    assert not LowerRecurrent(lambda node: node.op_type == "LSTM")(model).modified
    assert LowerRecurrent([model.graph.node(0)])(model).modified


@pytest.mark.parametrize(("kind", "tables"), [("lstm", 4), ("gru", 4), ("rnn", 2)])
def test_every_product_with_the_input_becomes_a_table(kind: str, tables: int) -> None:
    """In both directions, through a layer normalisation behind the embedding."""
    operator, attributes = KINDS[kind]
    parameters = weights(operator, 2, bias=True)
    given = feeds_of(operator, 2, lengths=True, states=False, steps=STEPS, rows=ROWS)
    model = model_of(operator, "bidirectional", parameters, given, **attributes)
    x, node = model.graph.inputs[0], model.graph.node(0)
    ids = ir.Value(name="ids", shape=ir.Shape(["time", "batch"]), type=ir.TensorType(ir.DataType.INT64))
    rng = np.random.default_rng(2)
    for name, size in (("embedding", (9, FEATURES)), ("scale", (FEATURES,))):
        tensor = ir.tensor(rng.standard_normal(size).astype(np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape(size), type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.register_initializer(value)
    initializers = model.graph.initializers
    gather = ir.node("Gather", [initializers["embedding"], ids], {"axis": 0})
    normal = ir.node("LayerNormalization", [gather.outputs[0], initializers["scale"]], {"axis": -1})
    model.graph.insert_before(node, [gather, normal])
    for each in (gather, normal):
        each.outputs[0].shape, each.outputs[0].type = x.shape, x.type
    node.replace_input_with(0, normal.outputs[0])
    model.graph.inputs[0] = ids
    feeds = {"ids": rng.integers(0, 9, (STEPS, ROWS)), "lengths": np.maximum(given["lengths"], 1)}
    before = run(model, **feeds)
    folding = LookupTables(True)
    passes = [LowerRecurrent(), FoldConstants(), RemoveDead(), folding, RemoveDead(), CleanScans()]
    ir.passes.PassManager([*passes, common.NameFixPass()], steps=1)(model)
    assert len(folding.tables) == tables
    assert not {"MatMul", "LayerNormalization"} & set(operators(model.graph))
    for new, old in zip(run(model, **feeds), before, strict=True):
        np.testing.assert_allclose(new, old, atol=2e-6)
