"""Smaller tables stay within half a quantisation step of what they hold, and rows that occur stay as they are."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from cellport.errors import ExportError
from cellport.export.passes import TableTypes
from cellport.export.passes.table_types import quantised_rows

from .graphs import operators, run

ROWS, WIDTH = 40, 32


def model(
    table: np.ndarray[Any, Any],
    lines: str = "y = Gather <axis = 0> (table, ids)",
    outputs: str = "y",
    ids: str = "b, t",
) -> ir.Model:
    kind = {"float32": "float", "float64": "double"}[str(table.dtype)]
    given_out = ", ".join(f"{kind}[{ids}, {name}_width] {name}" for name in outputs.split())
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> main (int64[{ids}] ids) => ({given_out}) {{ {lines} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def values(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


IDS = np.random.default_rng(1).integers(0, ROWS, (3, 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_float16_table_is_off_by_half_of_a_last_place(dtype: Any) -> None:
    table = values(ROWS, WIDTH, dtype=dtype)
    made = model(table)
    assert TableTypes("float16")(made).modified
    assert operators(made.graph) == ["Gather", "Cast"]
    (rows,) = run(made, ids=IDS)
    assert rows.dtype == dtype
    bound = np.maximum(2.0**-11 * np.abs(table), 2.0**-25)
    assert (np.abs(rows - table[IDS].astype(np.float64)) <= bound[IDS]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [None, 8])
def test_an_int8_table_is_off_by_half_of_its_rows_scale(dtype: Any, block: int | None) -> None:
    """The scale of a row or block is its largest absolute value / 127; a last rounding is that of the type."""
    table = values(ROWS, WIDTH, dtype=dtype)
    made = model(table)
    assert TableTypes("int8", block)(made).modified
    assert operators(made.graph) == ["Gather", "Cast", "Gather", "Mul", *(["Reshape"] if block else [])]
    (rows,) = run(made, ids=IDS)
    assert rows.dtype == dtype
    parts = np.abs(table.reshape(ROWS, -1, block or WIDTH)).max(-1, keepdims=True) / 127
    step = np.broadcast_to(parts, (ROWS, WIDTH // (block or WIDTH), block or WIDTH)).reshape(ROWS, WIDTH)
    rounding = np.finfo(dtype).eps * 128 * step
    assert (np.abs(rows - table[IDS].astype(np.float64)) <= (step / 2 + rounding)[IDS]).all()


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_integers_are_the_nearest_to_the_table(data: st.DataObject) -> None:
    seed, blocks = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 4))
    table = values(5, 4 * blocks, seed=seed) * np.float32(10.0 ** data.draw(st.integers(-20, 20)))
    stored, scales = quantised_rows(table, data.draw(st.sampled_from([None, 4])))
    assert stored.dtype == np.int8
    assert np.abs(stored.astype(int)).max() <= 127
    exact = table.astype(np.float64).reshape(stored.shape) / scales
    assert (np.abs(exact - stored) <= 0.5 + 127 * np.finfo(np.float32).eps).all()


def test_rows_of_zeros_stay_zeros() -> None:
    made = model(np.zeros((ROWS, WIDTH), np.float32))
    TableTypes("int8")(made)
    assert not run(made, ids=IDS)[0].any()


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_a_table_that_is_gathered_twice_is_stored_once(kind: Any) -> None:
    table = values(ROWS, WIDTH)
    lines = "y = Gather <axis = 0> (table, ids) turned = Transpose <perm = [1, 0]> (ids) z = Gather (table, turned)"
    made = model(table, lines, "y z")
    TableTypes(kind)(made)
    y, z = run(made, ids=IDS)
    np.testing.assert_array_equal(y, z.transpose(1, 0, 2))
    assert sum(v.const_value is not None for v in made.graph.initializers.values()) == {"float16": 1, "int8": 2}[kind]


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_a_table_that_something_else_reads_keeps_its_type(kind: Any) -> None:
    made = model(values(ROWS, WIDTH), "rows = Gather (table, ids) w = Transpose (table) y = MatMul(rows, w)")
    passing = TableTypes(kind)
    assert not passing(made).modified
    assert passing.notes == ["table 'table' left as float32: something else reads its values"]


def test_values_beyond_float16_are_named_and_left() -> None:
    table = values(ROWS, WIDTH)
    table[3, 4] = 1e5
    made, passing = model(table), TableTypes("float16")
    assert not passing(made).modified
    assert passing.notes == [
        "table 'table' left as float32: its largest absolute value is 100000, and float16 holds up to 65504"
    ]


def test_small_tables_and_rows_that_blocks_do_not_divide() -> None:
    assert not TableTypes("int8", minimum=ROWS * WIDTH + 1)(model(values(ROWS, WIDTH))).modified
    made, passing = model(values(ROWS, WIDTH)), TableTypes("int8", 5)
    passing(made)
    assert "blocks of 5 do not divide its width" in passing.notes[0]
    assert "Reshape" not in operators(made.graph)


def test_figures_are_those_of_what_is_stored() -> None:
    made, passing = model(values(ROWS, WIDTH)), TableTypes("int8", 8)
    passing(made)
    (change,) = passing.changes
    stored = [made.graph.initializers[name].const_value for name in ("table", "table.scale")]
    assert change.bytes == sum(each.nbytes for each in stored if each is not None) == ROWS * WIDTH + ROWS * 4 * 4
    assert (change.dtype, change.bytes_before) == ("int8", ROWS * WIDTH * 4)


@pytest.mark.parametrize(("kind", "block"), [("int4", None), ("float16", 8), ("int8", 0)])
def test_other_types_and_blocks_are_refused(kind: Any, block: int | None) -> None:
    with pytest.raises(ExportError, match="accepted"):
        TableTypes(kind, block)
