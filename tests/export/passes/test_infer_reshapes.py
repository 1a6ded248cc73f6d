"""A Reshape infers a size only where everything else is known."""

import numpy as np
import pytest

from cellport.export.passes import InferReshapes, RemoveDead

from .graphs import floats, operators, parse, same

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[n, m, 3] x) => (float[k, 6] y)
<int64[1] rest = {6}>
{
    n = Shape <start = 0, end = 1> (x)
    shape = Concat <axis = 0> (n, rest)
    y = Reshape (x, shape)
}
"""


@pytest.mark.parametrize("allowzero", [0, 1])
def test_the_one_unknown_size_is_inferred(allowzero: int) -> None:
    model = parse(TEXT.replace("Reshape (x", f"Reshape <allowzero = {allowzero}> (x"))
    assert InferReshapes()(model).modified
    RemoveDead()(model)
    assert operators(model.graph) == ["Reshape"]
    same(TEXT, model, x=floats(4, 2, 3))
    same(TEXT, model, x=np.zeros((0, 2, 3), np.float32))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rest = {6}", "rest = {0}"),  # 0 copies a size
        ("rest = {6}", "rest = {-1}"),  # already inferred
        ("(n, rest)", "(n, n)"),
        ("Shape <start = 0, end = 1>", "Shape <start = 0, end = 2>"),
    ],
)
def test_other_shapes_stay(old: str, new: str) -> None:
    assert not InferReshapes()(parse(TEXT.replace(old, new))).modified
