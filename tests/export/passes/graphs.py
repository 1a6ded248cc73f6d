"""Graphs written by hand: how they are read, run and compared."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

TOKENS = """
<ir_version: 10, opset_import: ["" : 20]>
main (int64[batch, time] ids) => (float[time, batch, 3] y)
<float[5, 2] table = {0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9}, float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3},
 float[2] scale = {1, 2}>
{
    rows = Gather <axis = 0> (table, ids)
    normal = LayerNormalization <axis = -1> (rows, scale)
    turned = Transpose <perm = [1, 0, 2]> (normal)
    product = MatMul(turned, w)
    y = Add(product, b)
}
"""
IDS = np.array([[0, 4, 2], [1, 1, 3]])


def parse(text: str) -> ir.Model:
    """A model whose shapes are inferred, as after translation."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def run(model: ir.Model, **feeds: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def operators(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def same(before: str | ir.Model, after: ir.Model, **feeds: Any) -> None:
    for old, new in zip(
        run(parse(before) if isinstance(before, str) else before, **feeds), run(after, **feeds), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
