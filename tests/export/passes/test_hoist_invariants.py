"""What does not depend on the step is computed before the loop."""

from cellport.export.passes import HoistInvariants

from .graphs import floats, operators, parse, run, same

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
main (float[batch, 2] s, float[time, batch, 2] x, float[2] w) => (float[batch, 2] last, float[time, batch, 2] y)
{
    last, y = Scan <num_scan_inputs = 1, body = step (float[batch, 2] h, float[batch, 2] u)
        => (float[batch, 2] new, float[batch, 2] out) {
            root = Sqrt(w)
            twice = Add(root, root)
            scaled = Mul(u, twice)
            new = Sub(scaled, h)
            out = Add(new, root)
        }> (s, x)
}
"""


def test_nodes_that_need_nothing_of_the_step_leave_the_body_in_order() -> None:
    model = parse(TEXT)
    HoistInvariants()(model)
    assert operators(model.graph) == ["Sqrt", "Add", "Scan"]
    body = model.graph.node(2).attributes["body"].as_graph()
    assert operators(body) == ["Mul", "Sub", "Add"]
    same(TEXT, model, s=floats(3, 2), x=floats(4, 3, 2), w=abs(floats(2)))


def test_a_second_run_changes_nothing() -> None:
    model = parse(TEXT)
    assert HoistInvariants()(model).modified
    assert not HoistInvariants()(model).modified


def test_what_the_body_gives_as_it_is_stays() -> None:
    text = TEXT.replace("out = Add(new, root)", "out = Expand(root, shape)").replace(
        "{\n    last", "<int64[2] shape = {3, 2}>\n{\n    last"
    )
    model = parse(text)
    HoistInvariants()(model)
    body = model.graph.node(2).attributes["body"].as_graph()
    assert operators(body) == ["Mul", "Sub", "Expand"]
    same(text, model, s=floats(3, 2), x=floats(4, 3, 2), w=abs(floats(2)))


def test_random_nodes_draw_at_every_step() -> None:
    text = TEXT.replace("root = Sqrt(w)", "root = RandomUniformLike(w)")
    model = parse(text)
    assert not HoistInvariants()(model).modified
    assert run(model, s=floats(3, 2), x=floats(4, 3, 2), w=floats(2))[1].shape == (4, 3, 2)


def test_a_node_leaves_two_loops_at_once() -> None:
    inner = """out = Scan <num_scan_inputs = 1, body = row (float[2] v) => (float[2] z) {
                root = Sqrt(w)
                z = Mul(v, root)
            }> (u)"""
    text = TEXT.replace("out = Add(new, root)", inner).replace(
        "root = Sqrt(w)\n            twice", "half = Neg(w)\n twice"
    )
    text = text.replace("twice = Add(root, root)", "twice = Add(half, half)")
    model = parse(text)
    HoistInvariants()(model)
    assert operators(model.graph) == ["Neg", "Add", "Sqrt", "Scan"]
    same(text, model, s=floats(3, 2), x=floats(4, 3, 2), w=abs(floats(2)))


def test_sizes_of_what_the_body_reads_are_taken_from_what_the_loop_reads() -> None:
    text = TEXT.replace(
        "root = Sqrt(w)",
        """rows = Shape <start = 0, end = 1> (h)
            columns = Shape <start = 1, end = 2> (u)
            size = Concat <axis = 0> (rows, columns)
            wide = Expand(w, size)
            root = Sqrt(wide)""",
    )
    model = parse(text)
    HoistInvariants()(model)
    assert operators(model.graph) == ["Shape", "Shape", "Concat", "Expand", "Sqrt", "Add", "Scan"]
    same(text, model, s=floats(3, 2), x=floats(4, 3, 2), w=abs(floats(2)))


def test_the_whole_shape_of_what_the_body_reads_stays() -> None:
    text = TEXT.replace("root = Sqrt(w)", "size = Shape(u)\n            wide = Expand(w, size)\n root = Sqrt(wide)")
    model = parse(text)
    HoistInvariants()(model)
    assert operators(model.graph) == ["Scan"]
    same(text, model, s=floats(3, 2), x=floats(4, 3, 2), w=abs(floats(2)))
