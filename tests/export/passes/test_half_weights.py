"""Weights stored as float16 compute what their rounded values compute, and cost nothing when the file runs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from cellport.export.passes import HalfWeights

from .graphs import operators, run

SIZE = 40

LOOP = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[time, batch, 40] x, float[batch, 40] h) => (float[time, batch, 40] y)
{
    projected = MatMul(x, w)
    final, y = Scan <num_scan_inputs = 1, body = step (float[batch, 40] old, float[batch, 40] input)
        => (float[batch, 40] new, float[batch, 40] out) {
            sum = Gemm(old, r, input)
            new = Tanh(sum)
            out = Identity(new)
        }> (h, projected)
}
"""


def loop(**weights: Any) -> ir.Model:
    proto = onnx.parser.parse_model(LOOP)
    for name, value in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return ir.from_proto(proto)


def weight(seed: int) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal((SIZE, SIZE)) / SIZE**0.5).astype(np.float32)


FEEDS = {
    "x": np.random.default_rng(5).standard_normal((6, 2, SIZE)).astype(np.float32),
    "h": np.zeros((2, SIZE), np.float32),
}


def test_what_runs_is_the_model_of_the_rounded_weights() -> None:
    """Bit for bit, in front of a loop and in its body."""
    made = loop(w=weight(1), r=weight(2))
    rounded = loop(**{name: weight(n).astype(np.float16).astype(np.float32) for n, name in ((1, "w"), (2, "r"))})
    assert HalfWeights()(made).modified
    assert operators(made.graph)[:2] == ["Cast", "Cast"]
    for new, old in zip(run(made, **FEEDS), run(rounded, **FEEDS), strict=True):
        np.testing.assert_array_equal(new, old)


def test_weights_keep_their_names_and_take_half_of_their_bytes() -> None:
    made, passing = loop(w=weight(1), r=weight(2)), HalfWeights()
    passing(made)
    assert {name: value.dtype for name, value in made.graph.initializers.items()} == {
        "w": ir.DataType.FLOAT16,
        "r": ir.DataType.FLOAT16,
    }
    assert passing.changed == ["w", "r"]
    assert (passing.bytes, passing.bytes_before) == (2 * 2 * SIZE**2, 4 * 2 * SIZE**2)


def test_the_runtime_widens_them_when_it_loads_the_file(tmp_path: Path) -> None:
    """No Cast and no float16 is left in the graph that it runs, where a body reads a weight either."""
    made = loop(w=weight(1), r=weight(2))
    HalfWeights()(made)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    proto = ir.to_proto(made).SerializeToString()
    onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    left = ir.load(tmp_path / "optimised.onnx").graph
    assert "Cast" not in [node.op_type for node in ir.traversal.RecursiveGraphIterator(left)]
    assert all(value.dtype != ir.DataType.FLOAT16 for value in left.initializers.values())


@pytest.mark.parametrize("value", [7e4, np.inf, np.nan])
def test_a_weight_that_float16_cannot_hold_is_named_and_left(value: float) -> None:
    large = weight(1)
    large[1, 2] = value
    made, passing = loop(w=large, r=weight(2)), HalfWeights()
    passing(made)
    assert passing.changed == ["r"]
    assert passing.notes[0].startswith("weight 'w' left as float32: its largest absolute value is ")
    assert made.graph.initializers["w"].dtype == ir.DataType.FLOAT


def test_small_weights_stay() -> None:
    made = loop(w=weight(1), r=weight(2))
    assert not HalfWeights(SIZE**2 + 1)(made).modified
    assert HalfWeights(SIZE**2)(made).modified


def test_tables_and_defaults_of_inputs_stay() -> None:
    """A table has a pass of its own; the default of an input has the type of the input."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> main (int64[t] ids, float[40, 40] state) => (float[t, 40] y)'
        "{ rows = Gather(table, ids) y = MatMul(rows, state) }"
    )
    for name in ("table", "state"):
        proto.graph.initializer.append(numpy_helper.from_array(weight(1), name))
    assert not HalfWeights()(ir.from_proto(proto)).modified
