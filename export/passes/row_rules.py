"""Which operators treat the rows of a tensor alike, whatever their number, and on which axis they leave them.

A place counts axes from the end, 1 being the last: that is what broadcasting goes by.
"""

from collections.abc import Callable, Mapping, Set

import onnx_ir as ir

from .graphs import constant, integer, integers, rank

__all__ = ["Unknown", "rows_after"]

Places = Mapping[ir.Value, int]


class Unknown(Exception):  # noqa: N818 - not an error of anybody's
    """An operator that is not known to treat rows alike."""


def rows_after(node: ir.Node, rows: Places, bounds: Set[ir.Value]) -> int | None:
    """The place of the axis of rows in what a node gives.

    Args:
        node: of the body of a Scan.
        rows: the place of that axis in the values that have one.
        bounds: values that are bounds of a window: those of a Slice with constant axes, of which the first is that of
            rows, or of a Pad with one axis.

    Returns:
        None if the result has no such axis: the node has nothing to do with rows, or fills them up.

    Raises:
        Unknown: if the rows are not treated alike, or not known to be.
    """
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        raise Unknown
    given = [value for value in node.inputs if value is not None]
    if any(value in bounds for value in given):
        return _bounded(node, rows, bounds)
    if not any(value in rows for value in given):
        return None
    if node.domain != "" or node.op_type not in _RULES or any(rank(each) is None for each in (*given, *node.outputs)):
        raise Unknown
    return _RULES[node.op_type](node, rows)


def _bounded(node: ir.Node, rows: Places, bounds: Set[ir.Value]) -> int | None:
    places = [index for index, value in enumerate(node.inputs) if value in bounds]
    if node.domain != "" or node.inputs[0] is None or rank(node.inputs[0]) is None:
        raise Unknown
    axes = _constant_axes(node, 3)
    values = node.inputs[0]
    if node.op_type == "Slice" and places == [1, 2] and len(node.inputs) == 4 and values not in rows:
        return axes[0]
    if node.op_type == "Pad" and places == [1] and axes == [rows.get(values)]:
        return None
    raise Unknown


def _constant_axes(node: ir.Node, index: int, of: int | None = None) -> list[int]:
    """Places of the axes that an input names, of `of` axes if not those of the first input."""
    array = constant(node.inputs[index]) if len(node.inputs) > index else None
    if array is None or node.inputs[0] is None:
        raise Unknown
    return [_place(int(axis), rank(node.inputs[0]) if of is None else of) for axis in array.ravel()]


def _place(axis: int, of: int | None) -> int:
    assert of is not None
    return -axis if axis < 0 else of - axis


def _alike(node: ir.Node, rows: Places) -> int:
    """Element by element: every input has the rows in one place, or nothing there that differs from row to row."""
    places = {rows[value] for value in node.inputs if value is not None and value in rows}
    if len(places) != 1:
        raise Unknown
    (place,) = places
    for value in node.inputs:
        if value is not None and value not in rows and not _same_for_rows(value, place):
            raise Unknown
    return place


def _same_for_rows(value: ir.Value, place: int) -> bool:
    assert value.shape is not None
    return len(value.shape) < place or value.shape[-place] == 1


def _first(node: ir.Node, rows: Places) -> int:
    """The place in the first input, which alone has rows."""
    first, *others = node.inputs
    if first is None or first not in rows or any(value in rows for value in others):
        raise Unknown
    return rows[first]


def _other_axis(default: int) -> Callable[[ir.Node, Places], int]:
    """Along an axis other than that of rows, which an attribute names."""

    def rule(node: ir.Node, rows: Places) -> int:
        place = _first(node, rows)
        assert node.inputs[0] is not None
        if _place(integer(node, "axis", default), rank(node.inputs[0])) == place:
            raise Unknown
        return place

    return rule


def _concat(node: ir.Node, rows: Places) -> int:
    places = {rows.get(value) if value is not None else None for value in node.inputs}
    place = places.pop()
    if place is None or places or _place(integer(node, "axis", 0), rank(node.outputs[0])) == place:
        raise Unknown
    return place


def _slice(node: ir.Node, rows: Places) -> int:
    place = _first(node, rows)
    if place in _constant_axes(node, 3):
        raise Unknown
    return place


def _gather(node: ir.Node, rows: Places) -> int:
    data, index = node.inputs
    assert data is not None
    assert index is not None
    axis = _place(integer(node, "axis", 0), rank(data))
    if index in rows:
        if data in rows or rank(index) != 1:
            raise Unknown
        return axis
    if axis == rows[data]:
        raise Unknown
    return rows[data] + ((rank(index) or 0) - 1 if axis < rows[data] else 0)


def _pad(node: ir.Node, rows: Places) -> int:
    place = _first(node, rows)
    pads = constant(node.inputs[1])
    if pads is None or len(node.inputs) > 3:
        raise Unknown
    before, after = pads.reshape(2, -1)
    if before[-place] or after[-place]:
        raise Unknown
    return place


def _reduce(node: ir.Node, rows: Places) -> int:
    place, axes = _first(node, rows), _constant_axes(node, 1)
    if place in axes or not axes:
        raise Unknown
    return place if integer(node, "keepdims", 1) else place - sum(axis < place for axis in axes)


def _reshape(node: ir.Node, rows: Places) -> int:
    """A list, as one."""
    shape = constant(node.inputs[1])
    if _first(node, rows) != 1 or rank(node.outputs[0]) != 1 or shape is None or list(shape.ravel()) != [-1]:
        raise Unknown
    return 1


def _unsqueeze(node: ir.Node, rows: Places) -> int:
    place = _first(node, rows)
    added = set(_constant_axes(node, 1, rank(node.outputs[0])))
    old = [each for each in range(1, (rank(node.outputs[0]) or 0) + 1) if each not in added]
    return old[place - 1]


def _squeeze(node: ir.Node, rows: Places) -> int:
    place, axes = _first(node, rows), _constant_axes(node, 1)
    if place in axes:
        raise Unknown
    return place - sum(axis < place for axis in axes)


def _transpose(node: ir.Node, rows: Places) -> int:
    place = _first(node, rows)
    count = rank(node.outputs[0]) or 0
    order = integers(node, "perm") or list(range(count))[::-1]
    return count - order.index(count - place)


def _matmul(node: ir.Node, rows: Places) -> int:
    place = _first(node, rows)
    weight = node.inputs[1]
    assert weight is not None
    if place == 1 or (rank(weight) or 0) < 2 or (place > 2 and not _same_for_rows(weight, place)):
        raise Unknown
    return place


def _gemm(node: ir.Node, rows: Places) -> int:
    left, right, *addend = node.inputs
    if left is None or rows.get(left) != 2 or right in rows or integer(node, "transA", 0):
        raise Unknown
    for value in addend:
        if value is not None and rows.get(value, 2) != 2:
            raise Unknown
        if value is not None and value not in rows and not _same_for_rows(value, 2):
            raise Unknown
    return 2


_ALIKE = (
    "Abs Add And Cast Clip Cos Div Elu Equal Erf Exp Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Selu Sigmoid Sign Sin "
    "Softplus Softsign Sqrt Sub Sum Tanh Where Xor"
)
_RULES: dict[str, Callable[[ir.Node, Places], int]] = {
    **dict.fromkeys(_ALIKE.split(), _alike),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), _reduce),
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _other_axis(-1),
    "Split": _other_axis(0),
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
