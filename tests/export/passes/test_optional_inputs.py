"""Inputs that may be left out, wherever their batch axis is and whatever reads them."""

import numpy as np
import pytest

from cellport.export.passes import OptionalInputs
from cellport.export.passes.optional_inputs import Default

from .graphs import floats, operators, parse, run


@pytest.mark.parametrize(
    ("shape", "axis"), [("batch", 0), ("batch, 2", 0), ("2, batch", 1), ("2, batch, 3", 1), ("2, 3, batch", 2)]
)
def test_a_default_is_broadcast_along_its_batch_axis(shape: str, axis: int) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[time, batch] x, float[{shape}] h) => (float[{shape}] y)
    {{ y = Neg(h) }}
    """
    sizes = [1 if each.strip() == "batch" else int(each) for each in shape.split(",")]
    default = floats(*sizes)
    model = parse(text)
    OptionalInputs({"h": Default(default, axis)}, ("x", 1))(model)
    assert str(model.graph.inputs[1].shape[axis]) == "batch_or_1"  # type: ignore[index]
    rows = np.repeat(default, 4, axis)
    np.testing.assert_array_equal(run(model, x=floats(3, 4))[0], -rows)
    given = floats(*rows.shape)
    np.testing.assert_array_equal(run(model, x=floats(3, 4), h=given)[0], -given)
    np.testing.assert_array_equal(run(model, x=floats(3, 4), h=default)[0], -rows)


def test_two_inputs_share_what_tells_the_batch_size() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[batch, 2] x, float[1, batch, 2] h, float[1, batch, 2] c) => (float[1, batch, 2] y)
    {
        sum = Add(h, c)
        y = Add(sum, x)
    }
    """
    model = parse(text)
    default = Default(np.ones((1, 1, 2), np.float32), 1)
    OptionalInputs({"h": default, "c": default}, ("x", 0))(model)
    assert operators(model.graph).count("Shape") == 1
    np.testing.assert_array_equal(run(model, x=floats(3, 2))[0], floats(3, 2)[None] + 2)


def test_an_input_that_is_an_output_is_broadcast_there_too() -> None:
    """A state that a model hands through."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[batch] x, float[batch] h) => (float[batch] y)
    { y = Neg(x) }
    """
    model = parse(text)
    model.graph.outputs.append(model.graph.inputs[1])
    OptionalInputs({"h": Default(np.array([7], np.float32), 0)}, ("x", 0))(model)
    np.testing.assert_array_equal(run(model, x=floats(3))[1], [7, 7, 7])


def test_names_of_the_graph_that_the_pass_would_take_stay_as_they_are() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    main (float[batch, 2] batch_size, float[1, batch, 2] h) => (float[1, batch, 2] ones_1, float[batch, 2] h_rows)
    {
        ones_1 = Add(batch_size, h)
        h_rows = Neg(batch_size)
    }
    """
    model = parse(text)
    OptionalInputs({"h": Default(np.ones((1, 1, 2), np.float32), 1)}, ("batch_size", 0))(model)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == [
        "batch_size",
        "h",
        "ones_1",
        "h_rows",
    ]
    np.testing.assert_array_equal(run(model, batch_size=floats(3, 2))[0], floats(3, 2)[None] + 1)


def test_without_defaults_nothing_changes() -> None:
    model = parse('<ir_version: 10, opset_import: ["" : 20]> main (float[batch] x) => (float[batch] y) { y = Neg(x) }')
    assert not OptionalInputs({}, ("x", 0))(model).modified
    assert operators(model.graph) == ["Neg"]
