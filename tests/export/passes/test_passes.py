"""Each pass on a graph written by hand: what it changes, and what it must leave."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from cellport.export.passes import (
    CleanScans,
    FoldConstants,
    LookupTables,
    MoveTransposes,
    NameTensors,
    NameWeights,
    OptionalInputs,
    RemoveDead,
    ReverseScans,
)
from cellport.export.passes.optional_inputs import Default

from .graphs import IDS, TOKENS, floats, operators, parse, run, same

SCAN = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[batch, 2] s, float[time, batch, 2] x) => (float[batch, 2] last, float[time, batch, 2] y)
{
    last, y, unread = Scan <num_scan_inputs = 1, body = step (float[batch, 2] h, float[batch, 2] u)
        => (float[batch, 2] new, float[batch, 2] out, float[batch, 2] other) {
        sum = Add(h, u)
        new = Identity(sum)
        twice = Add(sum, sum)
        out = Identity(twice)
        other = Neg(sum)
    }> (s, x)
}
"""


def test_copies_and_unread_outputs_leave_a_loop() -> None:
    model = parse(SCAN)
    assert CleanScans()(model).modified
    scan = model.graph.node(0)
    assert operators(scan.attributes["body"].as_graph()) == ["Add", "Add", "Neg"]
    assert [output.name for output in scan.outputs] == ["last", "y"]
    RemoveDead()(model)
    assert operators(model.graph.node(0).attributes["body"].as_graph()) == ["Add", "Add"]
    same(SCAN, model, s=floats(3, 2), x=floats(4, 3, 2))
    assert not CleanScans()(model).modified


def test_a_copy_stays_where_one_value_is_state_and_output() -> None:
    text = SCAN.replace("out = Identity(twice)", "out = Identity(sum)")
    model = parse(text)
    CleanScans()(model)
    body = model.graph.node(0).attributes["body"].as_graph()
    assert operators(body).count("Identity") == 1
    same(text, model, s=floats(3, 2), x=floats(4, 3, 2))


def test_a_copy_that_merging_took_away_is_put_back() -> None:
    """The runtime leaves one of two outputs of a step unwritten if they are one value."""
    text = SCAN.replace("out = Identity(twice)", "out = Identity(sum)")
    model = parse(text)
    RemoveDead()(model)
    body = model.graph.node(0).attributes["body"].as_graph()
    body.outputs[1] = body.outputs[0]
    CleanScans()(model)
    assert len(set(body.outputs)) == len(body.outputs)
    same(text, model, s=floats(3, 2), x=floats(4, 3, 2))


FLIPPED = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[batch, 2] s, float[time, batch, 2] x) => (float[batch, 2] last, float[time, batch, 2] y)
<int64[1] first = {-1}, int64[1] end = {-9223372036854775807}, int64[1] axis = {0}, int64[1] step = {-1}>
{
    turned = Slice(x, first, end, axis, step)
    last, out = Scan <num_scan_inputs = 1, body = step (float[batch, 2] h, float[batch, 2] u)
        => (float[batch, 2] new, float[batch, 2] twice) {
        new = Add(h, u)
        twice = Add(new, new)
    }> (s, turned)
    back = Slice(out, first, end, axis, step)
    y = Neg(back)
}
"""


def test_a_loop_runs_backwards_instead_of_turning_its_inputs_around() -> None:
    model = parse(FLIPPED)
    assert ReverseScans()(model).modified
    RemoveDead()(model)
    assert operators(model.graph) == ["Scan", "Neg"]
    scan = model.graph.node(0)
    assert list(scan.attributes["scan_input_directions"].as_ints()) == [1]
    assert list(scan.attributes["scan_output_directions"].as_ints()) == [1]
    same(FLIPPED, model, s=floats(3, 2), x=floats(4, 3, 2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("axis = {0}", "axis = {1}"),
        ("step = {-1}", "step = {-2}"),
        ("first = {-1}", "first = {2}"),
        ("end = {-9223372036854775807}", "end = {0}"),
    ],
)
def test_a_slice_that_is_no_flip_of_time_stays(old: str, new: str) -> None:
    text = FLIPPED.replace(old, new)
    if "axis" in new:
        text = text.replace("float[time, batch, 2] y", "float[time, b, 2] y")
    model = parse(text)
    ReverseScans()(model)
    assert operators(model.graph).count("Slice") == 2


def test_token_ids_are_transposed_instead_of_their_rows() -> None:
    model = parse(TOKENS)
    assert MoveTransposes()(model).modified
    RemoveDead()(model)
    assert operators(model.graph) == ["Transpose", "Gather", "LayerNormalization", "MatMul", "Add"]
    assert model.graph.node(0).inputs[0] is model.graph.inputs[0]
    same(TOKENS, model, ids=IDS)


def test_a_transpose_that_turns_the_rows_themselves_stays() -> None:
    text = TOKENS.replace("[1, 0, 2]", "[0, 2, 1]").replace(
        "float[2, 3] w = {1, 2, 3, 4, 5, 6}", "float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}"
    )
    text = text.replace("float[time, batch, 3] y", "float[batch, 2, 3] y")
    model = parse(text)
    assert not MoveTransposes()(model).modified


def test_two_transposes_become_one_or_none() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[a, b, c] x) => (float[a, b, c] y, float[b, c, a] z)
    {
        one = Transpose <perm = [1, 0, 2]> (x)
        two = Transpose <perm = [1, 0, 2]> (one)
        y = Neg(two)
        three = Transpose <perm = [0, 2, 1]> (one)
        z = Neg(three)
    }
    """
    model = parse(text)
    MoveTransposes()(model)
    RemoveDead()(model)
    assert operators(model.graph).count("Transpose") == 1
    same(text, model, x=floats(2, 3, 4))


def test_what_depends_on_one_token_becomes_a_table() -> None:
    """The whole chain of layer normalisation, product and bias is read from one row."""
    model = parse(TOKENS)
    MoveTransposes()(model)
    folding = LookupTables(True)
    assert folding(model).modified
    RemoveDead()(model)
    assert sorted(operators(model.graph)) == ["Gather", "Transpose"]
    assert [(each.vocabulary, each.width, each.dtype, each.bytes) for each in folding.tables] == [(5, 3, "float32", 60)]
    assert list(model.graph.initializers) == [folding.tables[0].name]
    for old, new in zip(run(parse(TOKENS), ids=IDS), run(model, ids=IDS), strict=True):
        np.testing.assert_allclose(old, new, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LayerNormalization <axis = -1> (rows, scale)", "Softmax <axis = 1> (rows)"),
        ("LayerNormalization <axis = -1> (rows, scale)", "CumSum (rows, one)"),
        ("LayerNormalization <axis = -1> (rows, scale)", "Add (rows, steps)"),
    ],
)
def test_nothing_behind_an_operator_that_mixes_positions_is_folded(old: str, new: str) -> None:
    """A position's own constant counts as mixing: it is not the token's."""
    extra = ", int64 one = {1}, float[3, 1] steps = {1, 2, 3}>"
    text = TOKENS.replace(old, new).replace("scale = {1, 2}>", "scale = {1, 2}" + extra)
    model = parse(text)
    MoveTransposes()(model)
    assert not LookupTables(True)(model).modified


def test_an_embedding_without_a_projection_is_left() -> None:
    text = TOKENS.replace("product = MatMul(turned, w)", "product = Concat <axis = 2> (turned, turned)")
    text = text.replace("y = Add(product, b)", "y = Neg(product)").replace("batch, 3] y", "batch, 4] y")
    assert not LookupTables(True)(parse(text)).modified


def test_auto_leaves_tables_that_are_too_large_and_says_so() -> None:
    model = parse(TOKENS)
    MoveTransposes()(model)
    RemoveDead()(model)
    folding = LookupTables("auto", limit=10)
    assert not folding(model).modified
    assert "lookup=True folds all the same" in folding.notes[0]
    assert LookupTables("auto", limit=20)(model).modified


def test_no_tables_are_made_where_none_are_wanted() -> None:
    model = parse(TOKENS)
    MoveTransposes()(model)
    assert not LookupTables(False)(model).modified


def test_what_is_constant_is_computed_whatever_its_size() -> None:
    rows = 3000
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[batch, 200] x) => (float[batch, {rows}] y)
    {{
        turned = Transpose <perm = [1, 0]> (w)
        y = MatMul(x, turned)
    }}
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(rows, 200), "w"))
    model = ir.from_proto(proto)
    FoldConstants()(model)
    assert operators(model.graph) == ["MatMul"]


def test_dead_and_repeated_nodes_are_removed() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[a] x) => (float[a] y)
    <float[1] unread = {1}>
    {
        dead = Neg(x)
        one = Exp(x)
        two = Exp(x)
        copy = Identity(two)
        y = Add(one, copy)
    }
    """
    model = parse(text)
    RemoveDead()(model)
    assert operators(model.graph) == ["Exp", "Add"]
    assert not model.graph.initializers
    same(text, model, x=floats(4))


def test_an_input_that_is_left_out_takes_its_default_for_every_row() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[time, batch, 2] x, float[1, batch, 2] h) => (float[time, batch, 2] y)
    { y = Add(x, h) }
    """
    model = parse(text)
    OptionalInputs({"h": Default(np.array([[[1, 2]]], np.float32), 1)}, ("x", 1))(model)
    x = floats(4, 3, 2)
    np.testing.assert_array_equal(run(model, x=x)[0], x + np.array([1, 2], np.float32))
    h = floats(1, 3, 2)
    np.testing.assert_array_equal(run(model, x=x, h=h)[0], x + h)


def test_the_users_names_win_over_inner_ones() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[s0, 2] a) => (float[s0, 2] b)
    <float[2] "model.w" = {1, 2}>
    {
        y = Add(a, "model.w")
        b = Exp(y)
    }
    """.replace('"model.w"', "model_w")
    model = parse(text)
    NameWeights("model_")(model)
    NameTensors([("x", ("batch", 2))], ["y"])(model)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert list(model.graph.initializers) == ["w"]
    assert str(model.graph.outputs[0].shape) == "[batch,2]"
    np.testing.assert_allclose(run(model, x=np.zeros((1, 2), np.float32))[0], np.exp([[1, 2]]), rtol=1e-6)
