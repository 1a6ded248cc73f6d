"""A Transpose moves only where nothing else reads what stood before it."""

import numpy as np
import pytest

from cellport.export.passes import MoveTransposes, RemoveDead

from .graphs import IDS, TOKENS, floats, operators, parse, run, same


def test_rows_that_others_read_untransposed_are_gathered_for_them_too() -> None:
    """Two gathers cost less than turning rows around."""
    text = TOKENS.replace("=> (float[time, batch, 3] y)", "=> (float[time, batch, 3] y, float[batch, time, 2] z)")
    text = text.replace("normal = LayerNormalization <axis = -1> (rows, scale)", "normal = Neg(rows)\n z = Exp(normal)")
    model = parse(text)
    MoveTransposes()(model)
    RemoveDead()(model)
    same(text, model, ids=IDS)
    assert operators(model.graph).count("Transpose") == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LayerNormalization <axis = -1> (rows, scale)", "Softmax <axis = 1> (rows)"),
        ("LayerNormalization <axis = -1> (rows, scale)", "Add (rows, steps)"),
    ],
)
def test_a_transpose_stays_behind_what_does_not_treat_rows_alike(old: str, new: str) -> None:
    extra = ", float[3, 1] steps = {1, 2, 3}>"
    text = TOKENS.replace(old, new).replace("scale = {1, 2}>", "scale = {1, 2}" + extra)
    model = parse(text)
    assert not MoveTransposes()(model).modified
    same(text, model, ids=IDS)


def test_a_transpose_that_moves_nothing_goes() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[batch, time, 2] x) => (float[batch, time, 2] y)
    {
        same = Transpose <perm = [0, 1, 2]> (x)
        more = Exp(same)
        y = Transpose <perm = [0, 1, 2]> (more)
    }
    """
    model = parse(text)
    assert MoveTransposes()(model).modified
    RemoveDead()(model)
    same(text, model, x=np.ones((2, 3, 2), np.float32))
    assert operators(model.graph) == ["Exp"]


def test_a_transpose_that_is_an_output_stays() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (int64[batch, time] ids) => (float[time, batch, 2] y)
    <float[3, 2] table = {1, 2, 3, 4, 5, 6}>
    {
        rows = Gather <axis = 0> (table, ids)
        y = Transpose <perm = [1, 0, 2]> (rows)
    }
    """
    model = parse(text)
    assert not MoveTransposes()(model).modified
    assert run(model, ids=IDS % 3)[0].shape == (3, 2, 2)


def test_a_transpose_of_a_transpose_of_an_output_leaves_the_output() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[a, b] x) => (float[b, a] y, float[a, b] z)
    {
        y = Transpose <perm = [1, 0]> (x)
        back = Transpose <perm = [1, 0]> (y)
        z = Exp(back)
    }
    """
    model = parse(text)
    assert MoveTransposes()(model).modified
    assert operators(model.graph) == ["Transpose", "Exp"]
    same(text, model, x=floats(2, 3))
