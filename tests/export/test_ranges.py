"""Which integers an input accepts is read from the graph."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from cellport.export.ranges import index_ranges
from cellport.manifest import Range


def ranges(lines: str, dtype: str = "int64") -> dict[str, Range]:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    main ({dtype}[batch, time] ids, float[batch] other) => (float[a, b, c] y)
    {{ {lines} }}
    """
    proto = onnx.parser.parse_model(text)
    arrays = {
        "wide": np.zeros((9, 3), np.float32),
        "small": np.zeros((4, 3), np.float32),
        "shape": np.array([-1]),
        "one": np.array(1),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
    return index_ranges(ir.from_proto(proto))


@pytest.mark.parametrize(
    ("lines", "largest"),
    [
        ("y = Gather(wide, ids)", 8),
        ("y = Gather <axis = 1> (wide, ids)", 2),
        ("turned = Transpose <perm = [1, 0]> (ids) y = Gather(wide, turned)", 8),
        ("flat = Reshape(ids, shape) y = Gather(wide, flat)", 8),
        ("a = Gather(wide, ids) b = Gather(small, ids) y = Add(a, b)", 3),
        ("long = Cast <to = 7> (ids) row = Unsqueeze(long, shape) y = Gather(small, row)", 3),
    ],
)
def test_ids_that_select_rows_are_at_most_the_last_of_the_smallest_table(lines: str, largest: int) -> None:
    assert ranges(lines) == {"ids": Range(minimum=0, maximum=largest)}
    assert ranges(lines, "int32") == {"ids": Range(minimum=0, maximum=largest)}


@pytest.mark.parametrize(
    "lines",
    [
        "next = Add(ids, one) y = Gather(wide, next)",
        "y = Gather(ids, one)",
        "zero = Sub(one, one) y = Gather(wide, zero)",
        "y = Neg(wide)",
    ],
)
def test_ids_that_are_computed_with_or_select_nothing_have_no_range(lines: str) -> None:
    assert ranges(lines) == {}
