"""A Scan takes over a flip of time only where nothing else changes."""

import numpy as np
import pytest

from cellport.export.passes import RemoveDead, ReverseScans

from .graphs import floats, operators, parse, run, same

HEAD = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[batch, 2] s, float[time, batch, 2] x) => (float[batch, 2] last, float[time, batch, 2] y)
<int64[1] first = {-1}, int64[1] end = {-9223372036854775807}, int64[1] axis = {0}, int64[1] step = {-1}>
"""
SCAN = """last, out = Scan <num_scan_inputs = 1 OPTIONS, body = step (float[batch, 2] h, float[batch, 2] u)
    => (float[batch, 2] new, float[batch, 2] twice) { new = Sub(u, h) twice = Add(new, new) }>"""
FEEDS = {"s": floats(3, 2), "x": floats(4, 3, 2)}


def text(lines: str, options: str = "") -> str:
    return HEAD + "{" + lines.replace("SCAN", SCAN.replace("OPTIONS", options)) + "}"


FLIP = "Slice({}, first, end, axis, step)"


def test_an_output_that_is_also_read_as_it_is_keeps_its_flip() -> None:
    lines = f"SCAN (s, x)\nback = {FLIP.format('out')}\ny = Add(back, out)"
    model = parse(text(lines))
    ReverseScans()(model)
    assert operators(model.graph) == ["Scan", "Slice", "Add"]
    same(text(lines), model, **FEEDS)


def test_an_output_that_is_flipped_twice_over_loses_both_flips() -> None:
    lines = f"SCAN (s, x)\na = {FLIP.format('out')}\nb = {FLIP.format('out')}\nc = Neg(a)\ny = Add(b, c)"
    model = parse(text(lines))
    ReverseScans()(model)
    assert operators(model.graph) == ["Scan", "Neg", "Add"]
    same(text(lines), model, **FEEDS)


def test_an_input_that_others_read_flipped_is_flipped_for_them_only() -> None:
    lines = f"turned = {FLIP.format('x')}\nSCAN (s, turned)\ny = Add(out, turned)"
    model = parse(text(lines))
    ReverseScans()(model)
    RemoveDead()(model)
    assert sorted(operators(model.graph)) == ["Add", "Scan", "Slice"]
    scan = next(node for node in model.graph if node.op_type == "Scan")
    assert scan.inputs[1] is model.graph.inputs[1]
    same(text(lines), model, **FEEDS)


@pytest.mark.parametrize(
    ("options", "directions"),
    [
        ("", ([1], [0])),
        (", scan_input_directions = [0]", ([1], [0])),
        (", scan_input_directions = [1], scan_output_directions = [1]", ([0], [1])),
    ],
)
def test_a_direction_that_a_scan_has_already_is_turned_around(options: str, directions: tuple[list[int], ...]) -> None:
    lines = f"turned = {FLIP.format('x')}\nSCAN (s, turned)\ny = Neg(out)"
    model = parse(text(lines, options))
    assert ReverseScans()(model).modified
    RemoveDead()(model)
    scan = model.graph.node(0)
    assert operators(model.graph) == ["Scan", "Neg"]
    names = ("scan_input_directions", "scan_output_directions")
    assert tuple(list(scan.attributes[name].as_ints()) for name in names) == directions
    same(text(lines, options), model, **FEEDS)


def test_a_flip_that_is_an_output_of_the_graph_stays() -> None:
    lines = f"SCAN (s, x)\ny = {FLIP.format('out')}"
    model = parse(text(lines))
    ReverseScans()(model)
    assert operators(model.graph) == ["Scan", "Slice"]
    same(text(lines), model, **FEEDS)


def test_scans_over_another_axis_are_left() -> None:
    """There a flip of axis 0 is one of rows."""
    lines = f"turned = {FLIP.format('x')}\nSCAN (s, turned)\ny = Neg(out)"
    options = ", scan_input_axes = [1], scan_output_axes = [1]"
    changed = text(lines, options).replace("float[batch, 2] s", "float[time, 2] s").replace("batch, 2] l", "time, 2] l")
    model = parse(changed.replace("(float[batch, 2] h, float[batch, 2] u)", "(float[time, 2] h, float[time, 2] u)"))
    assert not ReverseScans()(model).modified
    assert operators(model.graph) == ["Slice", "Scan", "Neg"]
    assert np.isfinite(run(model, s=floats(4, 2), x=floats(4, 3, 2))[1]).all()
