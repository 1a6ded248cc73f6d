"""Rows that occur stay as they are; the others share one."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from cellport.errors import ExportError
from cellport.export.passes import PruneTables, TableTypes
from cellport.export.passes.graphs import add_initializer
from cellport.export.passes.prune_tables import read_counts
from cellport.export.ranges import index_ranges

from .graphs import operators, run
from .test_table_types import IDS, ROWS, WIDTH, model, values

COUNTS = np.arange(ROWS) % 3
"""A third of the tokens does not occur."""


def test_rows_that_occur_stay_bit_for_bit_and_the_others_become_their_mean() -> None:
    table = values(ROWS, WIDTH)
    made, passing = model(table), PruneTables({"ids": COUNTS})
    assert passing(made).modified
    assert operators(made.graph) == ["Gather", "Gather"]
    everything = np.arange(ROWS)[None]
    (rows,) = run(made, ids=everything)
    np.testing.assert_array_equal(rows[0][COUNTS > 0], table[COUNTS > 0])
    mean = table[COUNTS == 0].astype(np.float64).mean(0).astype(np.float32)
    np.testing.assert_array_equal(rows[0][COUNTS == 0], np.broadcast_to(mean, (14, WIDTH)))
    (change,) = passing.changes
    assert (change.rows, change.rows_before, change.vocabulary) == (27, ROWS, ROWS)
    assert (change.bytes, change.bytes_before) == (27 * WIDTH * 4, ROWS * WIDTH * 4)
    assert passing.map_bytes == ROWS * 4


def two_tables() -> ir.Model:
    made = model(values(ROWS, WIDTH), "i = Transpose <perm = [1, 0]> (ids) y = Gather (table, i)")
    first = next(node for node in made.graph if node.op_type == "Gather")
    again = ir.node("Gather", [add_initializer(made, "other", values(ROWS, 7)), first.inputs[1]])
    again.outputs[0].shape, again.outputs[0].type = ir.Shape(["b", "t", 7]), first.outputs[0].type
    again.outputs[0].name = "z"
    made.graph.append(again)
    made.graph.outputs.append(again.outputs[0])
    return made


def test_tables_of_the_same_ids_share_one_map() -> None:
    made, before = two_tables(), run(two_tables(), ids=IDS)
    PruneTables({"ids": COUNTS})(made)
    assert operators(made.graph) == ["Transpose", "Gather", "Gather", "Gather"]
    occurs = COUNTS[IDS.T] > 0
    for old, new in zip(before, run(made, ids=IDS), strict=True):
        np.testing.assert_array_equal(old[occurs], new[occurs])


def test_ids_keep_their_range() -> None:
    """The map has an entry for every token, so the manifest's range of the input does not change."""
    made = model(values(ROWS, WIDTH))
    before = index_ranges(made)
    PruneTables({"ids": COUNTS})(made)
    assert index_ranges(made) == before


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_pruned_tables_can_be_stored_as_smaller_types(kind: str) -> None:
    """What is stored of a row does not depend on the rows that were taken out."""
    pruned, whole = model(values(ROWS, WIDTH)), model(values(ROWS, WIDTH))
    PruneTables({"ids": COUNTS})(pruned)
    for each in (pruned, whole):
        TableTypes(kind, minimum=0)(each)  # type: ignore[arg-type]
    occurs = COUNTS[IDS] > 0
    np.testing.assert_array_equal(run(pruned, ids=IDS)[0][occurs], run(whole, ids=IDS)[0][occurs])


def test_a_table_that_something_else_reads_keeps_its_rows() -> None:
    made = model(values(ROWS, WIDTH), "rows = Gather (table, ids) w = Transpose (table) y = MatMul(rows, w)")
    passing = PruneTables({"ids": COUNTS})
    assert not passing(made).modified
    assert passing.notes == ["table 'table' keeps all its rows: something else reads it"]


def test_one_row_that_does_not_occur_is_not_worth_a_map() -> None:
    passing = PruneTables({"ids": np.arange(ROWS)})
    assert not passing(model(values(ROWS, WIDTH))).modified
    assert passing.notes == ["no rows to take out for input 'ids': 1 of 40 tokens do not occur"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"other": COUNTS}, "input 'other'; the model's inputs are 'ids'"),
        ({"ids": COUNTS[1:]}, "for 39 tokens; table 'table' has 40 rows"),
        ({"ids": COUNTS - 1}, "are -1 for token 0; accepted: at least 0"),
        ({"ids": COUNTS * 0.5}, r"dtype float64; accepted: integers"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        PruneTables(counts)(model(values(ROWS, WIDTH)))


def test_an_input_that_gathers_nothing_is_refused() -> None:
    with pytest.raises(ExportError, match="no table is read by its values"):
        PruneTables({"ids": COUNTS})(model(values(ROWS, WIDTH), "one = Abs(ids) y = Gather (table, one)"))


def test_counts_are_read_from_text_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("3 10\n0 2\n\n")
    (tmp_path / "column.txt").write_text("2\n0\n0\n10\n")
    np.save(tmp_path / "array.npy", np.array([2, 0, 0, 10], np.int32))
    for name in ("pairs.txt", "column.txt", "array.npy"):
        assert read_counts(tmp_path / name, 4).tolist() == [2, 0, 0, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n4 1\n", "line 2 counts token 4; accepted: 0 to 3"),
        ("1 2\n1 3\n", "line 2 counts token 1 for the second time"),
        ("1 2\n3\n", "line 2 has 1 words"),
        ("1 2 3\n", "line 1 has 3 words"),
        ("the 2\n", "line 1 is 'the 2'; accepted: integers"),
        ("1\n2\n", "has counts for 2 tokens; accepted: 4"),
    ],
)
def test_a_file_that_is_no_list_of_counts_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "counts.txt").write_text(text)
    with pytest.raises(ExportError, match=message):
        read_counts(tmp_path / "counts.txt", 4)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read counts from '.*counts\.npy'"):
        read_counts(tmp_path / "counts.npy", 4)
