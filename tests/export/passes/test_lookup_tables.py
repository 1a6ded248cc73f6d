"""Tables hold, for every token, what the graph computes of its row; everything else stays as it was."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from cellport.export.passes import LookupTables, RemoveDead
from cellport.export.passes.rows import by_row

from .graphs import floats, operators, run

VOCABULARY, WIDTH, PROJECTED = 7, 4, 3


def model(lines: str, outputs: str = "y", opset: int = 20, ids: str = "batch, time", **weights: Any) -> ir.Model:
    """A graph over `rows`, the embedded `ids`, that may use `w`, `b` and `scale`."""
    given_out = ", ".join(f"float[{ids}, {name}_width] {name}" for name in outputs.split())
    text = f"""
    <ir_version: 10, opset_import: ["" : {opset}]>
    main (int64[{ids}] ids) => ({given_out})
    {{
        rows = Gather <axis = 0> (table, ids)
        {lines}
    }}
    """
    proto = onnx.parser.parse_model(text)
    arrays = {
        "table": floats(VOCABULARY, WIDTH),
        "w": floats(WIDTH, PROJECTED),
        "b": floats(PROJECTED),
        "scale": floats(WIDTH),
        **weights,
    }
    for name, value in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    made = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    RemoveDead()(made)
    return made


def tokens(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, VOCABULARY, shape)


def fold(made: ir.Model, mode: Any = True) -> LookupTables:
    folding = LookupTables(mode)
    folding(made)
    RemoveDead()(made)
    return folding


UNARY = [
    *("Abs", "Celu", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg"),
    *("Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"),
]


@pytest.mark.parametrize(
    "between",
    [
        *(f"{operator}(rows)" for operator in UNARY),
        *('Gelu <approximate = "tanh"> (rows)', "Cast <to = 1> (rows)", "Cast <saturate = 1, to = 1> (rows)"),
        *("LayerNormalization <axis = -1> (rows, scale)", "LayerNormalization <axis = 2, epsilon = 0.1> (rows, scale)"),
        *("Add(rows, scale)", "Mul(scale, rows)", "Sub(scale3, rows)", "Div(rows, one)", "Max(rows, scale, one)"),
        *("Min(rows, one)", "Pow(rows, two)"),
    ],
)
def test_an_operator_that_treats_rows_alike_folds_with_the_product_behind_it(between: str) -> None:
    """In float64, so that the table is at least as near to the truth as the graph was."""
    weights = {
        "one": np.array([0.5], np.float32),
        "two": np.array(2, np.float32),
        "scale3": floats(1, 1, WIDTH),
    }
    lines = f"between = {between}\nproduct = MatMul(between, w)\ny = Add(product, b)"
    before, after = model(lines, **weights), model(lines, **weights)
    assert len(fold(after).tables) == 1
    assert operators(after.graph) == ["Gather"]
    ids = tokens(3, 5)
    np.testing.assert_allclose(run(after, ids=ids)[0], run(before, ids=ids)[0], rtol=1e-5, atol=2e-6)


def test_roots_and_logarithms_fold_where_rows_are_positive() -> None:
    lines = "root = Sqrt(rows)\nlog = Log(root)\ny = MatMul(log, w)"
    table = np.abs(floats(VOCABULARY, WIDTH)) + 0.1
    before, after = model(lines, table=table), model(lines, table=table)
    assert len(fold(after).tables) == 1
    np.testing.assert_allclose(run(after, ids=tokens(2, 3))[0], run(before, ids=tokens(2, 3))[0], rtol=0, atol=2e-6)


def test_a_table_is_the_float64_value_rounded_once() -> None:
    made = model("product = MatMul(rows, w)\nsum = Add(product, b)\ny = Tanh(sum)")
    (table,) = fold(made).tables
    held = made.graph.initializers[table.name].const_value
    assert held is not None
    rows, w, b = (each.astype(np.float64) for each in (floats(VOCABULARY, WIDTH), floats(WIDTH, 3), floats(3)))
    np.testing.assert_array_equal(held.numpy(), np.tanh(rows @ w + b).astype(np.float32))


@pytest.mark.parametrize(("ids", "shape"), [("batch", (2,)), ("batch, time", (2, 3)), ("a, b, c", (2, 3, 4))])
def test_ids_may_have_any_rank(ids: str, shape: tuple[int, ...]) -> None:
    made = model("y = MatMul(rows, w)", ids=ids)
    before = run(made, ids=tokens(*shape))[0]
    assert len(fold(made).tables) == 1
    np.testing.assert_allclose(run(made, ids=tokens(*shape))[0], before, rtol=0, atol=2e-6)


def test_what_several_readers_need_becomes_a_table_each() -> None:
    """A product that is given out and goes on into another product is in both tables."""
    lines = "first = MatMul(rows, w)\ny = Relu(first)\nz = MatMul(first, square)"
    made = model(lines, "y z", square=floats(PROJECTED, PROJECTED))
    before = run(made, ids=tokens(2, 3))
    assert len(fold(made).tables) == 2
    assert operators(made.graph) == ["Gather", "Gather"]
    for old, new in zip(before, run(made, ids=tokens(2, 3)), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=2e-6)


def test_an_embedding_that_something_else_reads_stays() -> None:
    lines = "y = MatMul(rows, w)\nmixed = Softmax <axis = 1> (rows)\nz = Neg(mixed)"
    made = model(lines, "y z")
    before = run(made, ids=tokens(2, 3))
    assert len(fold(made).tables) == 1
    assert {"table", "table.table_0"} <= set(made.graph.initializers)
    for old, new in zip(before, run(made, ids=tokens(2, 3)), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=2e-6)


def test_two_gathers_from_one_embedding_fold_into_tables_of_their_own() -> None:
    lines = "y = MatMul(rows, w)\nagain = Gather <axis = 0> (table, turned)\nz = MatMul(again, v)"
    made = model(f"turned = Transpose <perm = [1, 0]> (ids)\n{lines}", "y z", v=floats(WIDTH, 2))
    ids = tokens(3, 3)
    before = run(made, ids=ids)
    assert sorted(table.width for table in fold(made).tables) == [2, PROJECTED]
    assert "table" not in made.graph.initializers
    assert "MatMul" not in operators(made.graph)
    for old, new in zip(before, run(made, ids=ids), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "lines",
    [
        "mixed = CumSum(rows, one)\ny = MatMul(mixed, w)",
        "mixed = Softmax <axis = 1> (rows)\ny = MatMul(mixed, w)",
        "mixed = ReduceMean <keepdims = 1> (rows, ones)\nboth = Add(rows, mixed)\ny = MatMul(both, w)",
        "mixed = Add(rows, steps)\ny = MatMul(mixed, w)",
        "mixed = LayerNormalization <axis = 1> (rows, scales)\ny = MatMul(mixed, w)",
        "turned = Transpose <perm = [0, 2, 1]> (rows)\ny = MatMul(turned, square)",
        "y = MatMul(steps3, rows)",
        "y = Add(rows, scale)",
    ],
)
def test_what_mixes_positions_or_saves_no_product_is_left(lines: str) -> None:
    weights = {
        "one": np.array(1),
        "ones": np.array([1]),
        "steps": floats(3, 1),
        "scales": floats(3, WIDTH),
        "square": floats(3, 3),
        "steps3": floats(1, 3, 3),
    }
    made = model(lines, **weights)
    before = operators(made.graph)
    assert fold(made).tables == []
    assert operators(made.graph) == before


def test_a_table_that_the_caller_can_override_is_no_constant() -> None:
    made = model("y = MatMul(rows, w)")
    made.graph.inputs.append(made.graph.initializers["table"])
    assert fold(made).tables == []


def test_the_limit_is_on_what_the_tables_add() -> None:
    """An embedding that nothing else reads is taken off the sum."""
    added, freed = VOCABULARY * PROJECTED * 4, VOCABULARY * WIDTH * 4
    made = model("y = MatMul(rows, w)")
    assert not LookupTables("auto", limit=added - freed - 1)(made).modified
    assert LookupTables("auto", limit=added - freed)(made).modified
    made = model("y = MatMul(rows, w)\nz = Softmax <axis = 1> (rows)", "y z")
    assert not LookupTables("auto", limit=added - 1)(made).modified
    assert LookupTables("auto", limit=added)(made).modified


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(), steps=st.lists(st.sampled_from(["Tanh", "Relu", "Add", "Mul", "MatMul", "LayerNorm"]), max_size=6)
)
def test_any_chain_of_row_operators_computes_the_same(data: st.DataObject, steps: list[str]) -> None:
    weights: dict[str, Any] = {}
    lines, value, width = [], "rows", WIDTH
    for number, step in enumerate([*steps, "MatMul"]):
        name = f"v{number}" if number < len(steps) else "y"
        if step == "MatMul":
            wide = data.draw(st.integers(1, 5))
            weights[f"c{number}"] = floats(width, wide)
            width = wide
        elif step in ("Add", "Mul", "LayerNorm"):
            weights[f"c{number}"] = floats(width)
        call = {"LayerNorm": "LayerNormalization <axis = -1, epsilon = 0.5>"}.get(step, step)
        second = f", c{number}" if f"c{number}" in weights else ""
        lines.append(f"{name} = {call} ({value}{second})")
        value = name
    before, after = (model("\n".join(lines), **weights) for _ in range(2))
    assert len(fold(after).tables) == 1
    ids = tokens(2, 3)
    np.testing.assert_allclose(run(after, ids=ids)[0], run(before, ids=ids)[0], rtol=1e-4, atol=1e-5)


def test_an_operator_of_another_domain_is_not_known_to_treat_rows_alike() -> None:
    node = ir.node("Relu", [ir.Value(name="x")], domain="custom")
    assert not by_row(node, {node.inputs[0]}, 3)  # type: ignore[arg-type]
    node = ir.node("Relu", [ir.Value(name="x")])
    assert by_row(node, {node.inputs[0]}, 3)  # type: ignore[arg-type]


def test_a_vocabulary_may_be_larger_than_what_is_computed_at_once() -> None:
    table = floats(5000, WIDTH)
    made = model("y = MatMul(rows, w)", table=table)
    fold(made)
    ids = np.array([[0, 4095, 4096, 4999]])
    np.testing.assert_allclose(run(made, ids=ids)[0], table[ids] @ floats(WIDTH, PROJECTED), rtol=0, atol=2e-6)


def test_sizes_are_asked_of_the_ids() -> None:
    """A value of which only the number of steps is read gets no table."""
    made = model(
        """
        normal = LayerNormalization <axis = -1> (rows, scale)
        product = MatMul(normal, w)
        steps = Shape <start = 1, end = 2> (normal)
        number = Cast <to = 1> (steps)
        y = Div(product, number)
        """
    )
    ids = tokens(2, 3)
    before = run(made, ids=ids)
    assert len(fold(made).tables) == 1
    np.testing.assert_allclose(run(made, ids=ids)[0], before[0], atol=1e-6)
