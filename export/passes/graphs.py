"""What several passes ask of a graph."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir


def constant(value: ir.Value | None) -> "np.ndarray[Any, Any] | None":
    """The array that a value holds if it is an initializer or a Constant's output, else None."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that no caller can override, or a Constant's output."""
    if value is None or value.is_graph_input():
        return False
    return value.is_initializer() or ir.convenience.get_const_tensor(value) is not None


def nodes(model: ir.Model, op_type: str | None = None) -> Iterator[ir.Node]:
    """Every node of the main graph and of all graphs inside it; safe against changes while it runs."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if op_type is None or (node.op_type == op_type and node.domain == ""):
            yield node


def scan_body(node: ir.Node) -> ir.Graph:
    """The body of a Scan node, or of a Loop."""
    return node.attributes["body"].as_graph()


def scan_states(node: ir.Node) -> int:
    """How many states a Scan node carries."""
    return len(node.inputs) - node.attributes["num_scan_inputs"].as_int()


def rank(value: ir.Value) -> int | None:
    """The number of axes, if it is known."""
    return None if value.shape is None else len(value.shape)


def integers(node: ir.Node, name: str) -> list[int]:
    """An attribute that is a list of integers; empty if it is not there."""
    attribute = node.attributes.get(name)
    return [] if attribute is None else list(attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is an integer."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node stands in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def add_initializer(model: ir.Model, name: str, array: "np.ndarray[Any, Any]") -> ir.Value:
    """Register an initializer of the main graph under a name that is still free."""
    taken = {value.name for value in (*model.graph.inputs, *model.graph.outputs)} | set(model.graph.initializers)
    free, count = name, 0
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.tensor(array, name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def separate_outputs(body: ir.Graph) -> bool:
    """Give each output of a body a value of its own; the runtime leaves one of two with the same value unwritten."""
    seen: set[ir.Value] = set(body.inputs)
    modified = False
    for index, output in enumerate(body.outputs):
        if output in seen:
            copy = ir.node("Identity", [output])
            copy.outputs[0].type, copy.outputs[0].shape = output.type, output.shape
            body.append(copy)
            body.outputs[index] = copy.outputs[0]
            modified = True
        seen.add(body.outputs[index])
    return modified
