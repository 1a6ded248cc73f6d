"""Ranges of what is multiplied by int8 weights, found by running a model."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

from cellport.errors import ExportError

from .bounds import Interval
from .graphs import add_initializer, graph_of, integers, nodes, scan_body
from .int8_weights import SMALL, SMALL_IN_BODIES, Product, products

__all__ = ["calibrate"]

Array = np.ndarray[Any, Any]


def calibrate(
    model: ir.Model,
    feeds: Iterable[Mapping[str, Array]],
    minimum: int = SMALL,
    minimum_in_bodies: int = SMALL_IN_BODIES,
) -> dict[str, Interval]:
    """Find the least and the largest value of each left operand that `Int8Weights` would quantise.

    Args:
        model: the model, in float32; only names that are not unique are changed.
        feeds: examples of what it will be run on, without padding: arrays by input name.
        minimum: as of `Int8Weights`.
        minimum_in_bodies: as of `Int8Weights`.

    Returns:
        Intervals by the name of the value, for the argument `ranges` of `Int8Weights`.

    Raises:
        ExportError: there are no feeds.
    """
    common.NameFixPass()(model)
    copy = ir.from_proto(ir.to_proto(model))
    wanted: dict[ir.Value, str] = {}
    for product in products(copy, minimum, minimum_in_bodies):
        if product.left not in wanted and (output := _given_out(copy, product)) is not None:
            wanted[product.left] = output
    if not wanted:
        return {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(copy).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: dict[str, Interval] = {}
    for given in feeds:
        results = session.run(list(wanted.values()), dict(given))
        for value, array in zip(wanted, results, strict=True):
            if array.size:
                low, high = found.get(value.name or "", (np.inf, -np.inf))
                found[value.name or ""] = min(low, float(array.min())), max(high, float(array.max()))
    if not found:
        raise ExportError("there are no feeds to find ranges with; accepted: at least one")
    return found


def _given_out(model: ir.Model, product: Product) -> str | None:
    """Make a left operand an output of the model; its name, or None if it stands too deep."""
    value = product.left
    if not product.inside or _home(value) is not graph_of(product.node):
        return _output(model, value) if _home(value) in (model.graph, None) else None
    for node in nodes(model, "Loop"):
        if scan_body(node) is graph_of(product.node) and node.graph is model.graph:
            return _output(model, _ends_of_rounds(model, node, value))
    for scan in nodes(model, "Scan"):
        body = scan_body(scan)
        if body is not graph_of(product.node) or scan.graph is not model.graph:
            continue
        copy = ir.node("Identity", [value])
        copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
        copy.outputs[0].name = f"{value.name}_step"
        body.append(copy)
        body.outputs.append(copy.outputs[0])
        scan.resize_outputs(len(scan.outputs) + 1)
        for name in ("scan_output_directions", "scan_output_axes"):
            if name in scan.attributes:
                scan.attributes[name] = ir.AttrInt64s(name, [*integers(scan, name), 0])
        steps = scan.outputs[-1]
        steps.name, steps.type = f"{value.name}_steps", value.type
        return _output(model, steps)
    return None


def _ends_of_rounds(model: ir.Model, loop: ir.Node, value: ir.Value) -> ir.Value:
    """Let a Loop give out the ends of a value's range in each round, [rounds, 2], and 0 if that is outside.

    The value itself cannot be collected: its size may be another in each round.
    """
    flat = ir.node("Reshape", [value, add_initializer(model, f"{value.name}_flat", np.array([-1]))])
    zero = add_initializer(model, f"{value.name}_zero", np.zeros(1, np.float32))
    filled = ir.node("Concat", [flat.outputs[0], zero], {"axis": 0})  # an empty value has no ends
    ends = [ir.node(f"Reduce{which}", [filled.outputs[0]], {"keepdims": 1}) for which in ("Min", "Max")]
    both = ir.node("Concat", [each.outputs[0] for each in ends], {"axis": 0})
    made = [flat, filled, *ends, both]
    for number, node in enumerate(made):
        node.outputs[0].name, node.outputs[0].type = f"{value.name}_ends_{number}", ir.TensorType(ir.DataType.FLOAT)
    both.outputs[0].shape = ir.Shape([2])
    body = scan_body(loop)
    body.extend(made)
    body.outputs.append(both.outputs[0])
    loop.resize_outputs(len(loop.outputs) + 1)
    rounds = loop.outputs[-1]
    rounds.name, rounds.type = f"{value.name}_rounds", ir.TensorType(ir.DataType.FLOAT)
    return rounds


def _home(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return value.graph if producer is None else producer.graph


def _output(model: ir.Model, value: ir.Value) -> str:
    copy = ir.node("Identity", [value])
    made = copy.outputs[0]
    made.shape, made.type, made.name = value.shape, value.type, f"{value.name}_range"
    model.graph.append(copy)
    model.graph.outputs.append(made)
    return made.name
