"""A projection of a sum of embeddings becomes a sum of projections, each of which a lookup table can hold.

A token and its position, or its segment, are embedded each and added before the first layer. The sum depends on two
integers, and a table of all pairs would be far too large; but a product with a matrix is linear, so each embedding can
be projected by itself (specification of the cells, section 4.7). A layer normalisation of the sum is not linear, and is
left.
"""

import onnx_ir as ir

from .graphs import constant, graph_of, integer, integers, is_constant, nodes, rank
from .lookup_tables import AUTO_LIMIT, Mode
from .move_transposes import source_gather


class SplitSums(ir.passes.InPlacePass):
    """Move additions of embedded rows behind the transposes and matrix products that follow them.

    Precondition: constants are folded, biases are added behind products. Run it before and after `MoveTransposes`, then
    `LookupTables`. A sum is left alone if `LookupTables` would leave one of its embeddings, because two products would
    then take the place of one.

    - `Transpose(Add(a, b))` becomes `Add(Transpose(a), Transpose(b))`, where `b` may lack leading
      axes, as positions do.
    - `Add(MatMul(Add(a, b), w), bias)` becomes `Add(Add(MatMul(a, w), bias), MatMul(b, w))`.
    """

    def __init__(self, mode: Mode = "auto", limit: int = AUTO_LIMIT) -> None:
        super().__init__()
        self._mode = mode
        self._limit = limit

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        if self._mode is False:
            return ir.passes.PassResult(model, False)
        while self._once(model):
            modified = True
        return ir.passes.PassResult(model, modified)

    def _once(self, model: ir.Model) -> bool:
        for node in nodes(model):
            if node.graph is not model.graph or node.domain != "" or not node.inputs:
                continue
            if node.op_type == "Transpose" and _behind_transpose(node):
                return True
            if node.op_type == "MatMul" and self._behind_product(node):
                return True
        return False

    def _behind_product(self, node: ir.Node) -> bool:
        total, weight = node.inputs
        matrix = constant(weight)
        sides = _sides(total)
        if sides is None or total is None or matrix is None or matrix.ndim != 2 or node.outputs[0].is_graph_output():
            return False
        for gather in gathers_of(total) or []:
            table = constant(gather.inputs[0])
            assert table is not None
            if self._mode == "auto" and len(table) * matrix.shape[1] * table.itemsize > self._limit:
                return False
        last = _bias(node) or node
        made = []
        for number, side in enumerate(sides):
            product = ir.node("MatMul", [side, weight])
            _like(product, last, side)
            made.append(product)
            if number == 0 and last is not node:
                bias = next(value for value in last.inputs if value is not node.outputs[0])
                added = ir.node("Add", [product.outputs[0], bias])
                _like(added, last, side)
                made.append(added)
        ends = [made[-2].outputs[0], made[-1].outputs[0]]
        _replace(last, [*made, ir.node("Add", ends)])
        return True


def gathers_of(value: ir.Value | None) -> list[ir.Node] | None:
    """The gathers of constant rows whose rows, each changed by operators that treat rows alike, a value adds up."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if (gather := source_gather(node)) is not None:
        return [gather]
    if node.domain == "" and node.op_type == "Add":
        found = [gathers_of(side) for side in node.inputs]
        if all(each is not None for each in found):
            return [gather for each in found for gather in each or []]
    return None


def _sides(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """Both sides of a sum of embedded rows, the one with all axes first."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or node.op_type != "Add" or gathers_of(value) is None:
        return None
    if source_gather(node) is not None:
        return None  # a constant is added to rows of one embedding
    first, second = node.inputs
    if first is None or second is None or value is None or rank(value) is None:
        return None
    if rank(first) != rank(value):
        first, second = second, first
    return (first, second) if rank(first) == rank(value) and rank(second) is not None else None


def _behind_transpose(node: ir.Node) -> bool:
    total, permutation = node.inputs[0], integers(node, "perm")
    sides = _sides(total)
    if sides is None or not permutation or permutation[-1] != len(permutation) - 1 or node.outputs[0].is_graph_output():
        return False
    made: list[ir.Node] = []
    ends = []
    for side in sides:
        missing = len(permutation) - (rank(side) or 0)
        if missing:
            gather = side.producer()
            if gather is None or source_gather(gather) is not gather or integer(gather, "axis", 0) != 0:
                return False
            side = _widened(gather, missing, made)
        turned = ir.node("Transpose", [side], {"perm": permutation})
        turned.outputs[0].type = side.type
        if side.shape is not None:
            turned.outputs[0].shape = ir.Shape([side.shape[axis] for axis in permutation])
        made.append(turned)
        ends.append(turned.outputs[0])
    _replace(node, [*made, ir.node("Add", ends)])
    return True


def _widened(gather: ir.Node, missing: int, made: list[ir.Node]) -> ir.Value:
    """The rows of a gather with leading axes of size 1, which its integers are given."""
    table, ids = gather.inputs
    assert ids is not None
    axes = ir.node("Constant", [], {"value_ints": list(range(missing))})
    axes.outputs[0].shape, axes.outputs[0].type = ir.Shape([missing]), ir.TensorType(ir.DataType.INT64)
    wide = ir.node("Unsqueeze", [ids, axes.outputs[0]])
    wide.outputs[0].type = ids.type
    rows = ir.node("Gather", [table, wide.outputs[0]], {"axis": 0})
    rows.outputs[0].type = gather.outputs[0].type
    if ids.shape is not None and gather.outputs[0].shape is not None:
        wide.outputs[0].shape = ir.Shape([1] * missing + list(ids.shape))
        rows.outputs[0].shape = ir.Shape([1] * missing + list(gather.outputs[0].shape))
    made += [axes, wide, rows]
    return rows.outputs[0]


def _bias(node: ir.Node) -> ir.Node | None:
    """The addition of a constant that alone follows a product."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1:
        return None
    user = uses[0].node
    if user.op_type != "Add" or user.domain != "" or user.outputs[0].is_graph_output():
        return None
    others = [value for value in user.inputs if value is not node.outputs[0]]
    return user if len(others) == 1 and is_constant(others[0]) and rank(others[0]) == 1 else None  # type: ignore[arg-type]


def _like(node: ir.Node, last: ir.Node, side: ir.Value) -> None:
    """Give a product of `side` its type and shape: the leading axes of `side`, the last axis of what it replaces."""
    node.outputs[0].type = last.outputs[0].type
    if side.shape is not None and last.outputs[0].shape is not None:
        node.outputs[0].shape = ir.Shape([*side.shape[:-1], last.outputs[0].shape[-1]])


def _replace(node: ir.Node, made: list[ir.Node]) -> None:
    """Put nodes in the place of one, the last one's result in the place of its result."""
    old, new = node.outputs[0], made[-1].outputs[0]
    new.type, new.shape = old.type, old.shape
    graph_of(node).insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, new)
    graph_of(node).remove(node, safe=True)
