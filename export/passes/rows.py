"""Operators that treat every row, the last axis of a tensor, alike and alone."""

import onnx_ir as ir

from .graphs import constant, integer, is_constant, rank

_UNARY = frozenset(
    [
        *("Abs", "Cast", "Celu", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
        *("Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"),
    ]
)
_BINARY = frozenset(["Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"])
FLOATS = frozenset([ir.DataType.FLOAT, ir.DataType.DOUBLE])


def by_row(node: ir.Node, derived: set[ir.Value], leading: int | None) -> bool:
    """Whether a node computes each row of its result from the same row of derived values and constants."""
    if node.domain != "" or not any(value in derived for value in node.inputs):
        return False
    if not all(value is None or value in derived or is_constant(value) for value in node.inputs):
        return False
    if node.op_type in _UNARY:
        return node.op_type != "Cast" or node.outputs[0].dtype in FLOATS
    if node.op_type in _BINARY:
        return all(value in derived or _one_row(value, leading) for value in node.inputs if value is not None)
    if node.op_type == "MatMul":
        return node.inputs[0] in derived and node.inputs[1] not in derived and rank(_second(node)) == 2
    if node.op_type == "LayerNormalization":
        parameters = [value for value in node.inputs[1:] if value is not None]
        last = integer(node, "axis", -1) in (-1, (leading or 0) - 1)
        unread = not any(value.uses() for value in node.outputs[1:])
        return last and unread and node.inputs[0] in derived and all(value not in derived for value in parameters)
    return False


def _second(node: ir.Node) -> ir.Value:
    value = node.inputs[1]
    assert value is not None
    return value


def _one_row(value: ir.Value, leading: int | None) -> bool:
    """Whether a constant broadcasts along every axis but the last."""
    array = constant(value)
    return array is not None and array.ndim <= (leading or 0) and all(size == 1 for size in array.shape[:-1])
