"""Weights as int8 with a scale for each column, multiplied as integers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .bounds import Bounds, Interval
from .graphs import add_initializer, constant, graph_of, integer, nodes, rank

__all__ = ["Int8Weights", "quantised_columns", "quantised_range"]

Array = np.ndarray[Any, Any]

DOMAIN = "com.microsoft"
"""Where onnxruntime's own operators are."""

SMALL = 4096
"""Elements below which a weight outside of bodies stays: its product would be slower (decision 0009)."""

SMALL_IN_BODIES = 32768
"""The same inside of a Scan's body, where each further node costs its overhead at every step."""


@dataclass(frozen=True)
class Product:
    """A product of a computed value with a constant matrix.

    Attributes:
        node: MatMul or Gemm.
        left: the computed value.
        weight: the constant [inputs, columns], as it is multiplied.
        inside: whether it stands in the body of another node.
    """

    node: ir.Node
    left: ir.Value
    weight: Array
    inside: bool


class Int8Weights(ir.passes.InPlacePass):
    """Store weights as int8 and multiply integers: a scale for each column, symmetric, rounded to the nearest.

    Precondition: constants are folded, and are initializers of the main graph; the graph computes in float32. To
    quantise the weights of GRU and RNN nodes, and those of LSTM nodes with a fixed range, they are Scans
    (`LowerRecurrent`).

    Postcondition: MatMul and Gemm with a constant matrix, in the main graph and in bodies, are ``QuantizeLinear`` and
    ``MatMulIntegerToFloat`` where the range of the left operand is known, else ``DynamicQuantizeMatMul``, or
    ``DynamicQuantizeLinear`` in front of several, which find the range in each call. LSTM nodes are
    ``DynamicQuantizeLSTM``. These are onnxruntime's operators (domain ``com.microsoft``).

    A range is known if it is given, or if it follows from the graph (`Bounds`): the states of LSTM, GRU and tanh RNNs,
    what they put out, and the rows of constant tables. A left operand outside of its range is cut off at its ends.
    With a range that is found in each call, a row depends on the other rows of its batch, and a step on the other steps
    of its call, through the size of the quantisation step.

    Args:
        ranges: least and largest value of left operands, by their names, as `calibrate` finds them.
        minimum: elements below which a weight outside of bodies stays as it is.
        minimum_in_bodies: the same in the bodies of Scans.
        proven: use the ranges that follow from the graph too; without them the step fits each call's values better, at
            the price of what is said above.
        reduce_range: keep weights within ±63. Processors without VNNI instructions add pairs of products in 16 bits,
            which larger weights can overflow.

    Attributes:
        fixed: names of the weights whose products have a fixed range.
        dynamic: names of the weights whose products find it in each call.
        bytes: the size of the weights that were changed, with their scales.
        bytes_before: their size before.
        notes: what was changed or left, and why.
    """

    def __init__(
        self,
        ranges: Mapping[str, Interval] = MappingProxyType({}),
        minimum: int = SMALL,
        minimum_in_bodies: int = SMALL_IN_BODIES,
        *,
        proven: bool = True,
        reduce_range: bool = False,
    ) -> None:
        super().__init__()
        self._proven = proven
        self._ranges = ranges
        self._minimum = minimum
        self._minimum_in_bodies = minimum_in_bodies
        self._largest = 63 if reduce_range else 127
        self._reset()

    def _reset(self) -> None:
        self.fixed: list[str] = []
        self.dynamic: list[str] = []
        self.notes: list[str] = []
        self.bytes = self.bytes_before = 0
        self._made: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}
        self._lefts: dict[tuple[ir.Value, ir.Graph], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        self._reset()
        bounds = Bounds(model, self._ranges)
        found = products(model, self._minimum, self._minimum_in_bodies)
        # All are found before anything changes.
        known = [
            bounds.of(product.left) if self._proven else self._ranges.get(product.left.name or "") for product in found
        ]
        together = Counter((product.left, product.node.graph) for product in found)
        for product, interval in zip(found, known, strict=True):
            self._multiply(model, product, interval, together[product.left, product.node.graph] == 1)
        for node in list(nodes(model)):
            if node.domain == "" and node.op_type in ("LSTM", "GRU", "RNN"):
                self._recurrent(model, node)
        for (value, _), (integers, _) in self._made.items():
            if value.name is not None and not value.uses() and not value.is_graph_output():
                model.graph.initializers.pop(value.name, None)
                integers.name = value.name
        modified = bool(self.fixed or self.dynamic)
        if modified:
            model.opset_imports[DOMAIN] = 1
            common.NameFixPass()(model)
            self.notes.append(
                f"{len(self.fixed) + len(self.dynamic)} products with int8 weights, {len(self.fixed)} of them with a "
                f"fixed range: {self.bytes / 2**20:.2f} MiB, before {self.bytes_before / 2**20:.2f}"
            )
        if self.dynamic:
            self.notes.append(
                "rows of a batch and steps of a call share the range of their values in the products with "
                + ", ".join(map(repr, self.dynamic))
            )
        return ir.passes.PassResult(model, modified)

    def _multiply(self, model: ir.Model, product: Product, interval: Interval | None, alone: bool) -> None:
        """Replace a product; `alone` if no other product of its graph has its left operand."""
        node, value = product.node, product.node.inputs[1]
        assert value is not None
        weight, scale = self._stored(model, value, product.weight, bool(integer(node, "transB", 0)))
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        held = constant(addend)
        bias = addend if held is not None and held.shape == (product.weight.shape[1],) else None
        (self.dynamic if interval is None else self.fixed).append(value.name or "weight")
        if interval is None and alone:
            inputs = [product.left, weight, scale, None, bias]
            made = [ir.node("DynamicQuantizeMatMul", inputs, domain=DOMAIN, version=1)]
        else:
            left, step, zero = self._quantised(model, product, interval)
            made = [
                ir.node("MatMulIntegerToFloat", [left, weight, step, scale, zero, None, bias], domain=DOMAIN, version=1)
            ]
        if addend is not None and bias is None:
            made[-1].outputs[0].shape, made[-1].outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            made.append(ir.node("Add", [made[-1].outputs[0], addend]))
        _replace(node, made)

    def _quantised(
        self, model: ir.Model, product: Product, interval: Interval | None
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """A left operand as uint8, its step and its zero point, computed once for all products that have it."""
        left, graph = product.left, graph_of(product.node)
        if (left, graph) not in self._lefts:
            if interval is None:
                node = ir.node("DynamicQuantizeLinear", [left], num_outputs=3)
                whole, step, zero = node.outputs
                step.type, zero.type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.UINT8)
                step.shape, zero.shape = ir.Shape([]), ir.Shape([])
            else:
                step, zero = (
                    add_initializer(model, f"{left.name}.{what}", each)
                    for what, each in zip(("step", "zero"), quantised_range(*interval), strict=True)
                )
                node = ir.node("QuantizeLinear", [left, step, zero])
                whole = node.outputs[0]
            whole.shape, whole.type = left.shape, ir.TensorType(ir.DataType.UINT8)
            graph.insert_before(product.node, node)
            self._lefts[left, graph] = whole, step, zero
        return self._lefts[left, graph]

    def _stored(self, model: ir.Model, value: ir.Value, weight: Array, turned: bool) -> tuple[ir.Value, ir.Value]:
        """Initializers for the integers and the scales of a weight, the same for all its products."""
        if (value, turned) not in self._made:
            whole, scales = quantised_columns(weight, self._largest)
            self._made[value, turned] = self._add(model, value, "", whole), self._add(model, value, ".scale", scales)
            self.bytes_before += weight.nbytes
        return self._made[value, turned]

    def _add(self, model: ir.Model, value: ir.Value, suffix: str, array: Array) -> ir.Value:
        self.bytes += array.nbytes
        return add_initializer(model, f"{value.name}{suffix}", array)

    def _recurrent(self, model: ir.Model, node: ir.Node) -> None:
        weights = [constant(value) for value in node.inputs[1:3]]
        told = f"{node.op_type} {node.name!r} left in float32"
        if any(each is None or each.dtype != np.float32 for each in weights):
            return
        if node.op_type != "LSTM":
            self.notes.append(f"{told}: the runtime has no int8 operator of its kind; a Scan's products can be int8")
            return
        if sum(each.size for each in weights if each is not None) < self._minimum_in_bodies:
            return
        if integer(node, "layout", 0):
            self.notes.append(f"{told}: layout 1 has no int8 operator")
            return
        inputs = [*node.inputs, *(None for _ in range(8 - len(node.inputs)))]
        tail: list[ir.Value] = []
        for position, weight in zip((1, 2), weights, strict=True):
            assert weight is not None
            value = inputs[position]
            assert value is not None
            parts = [quantised_columns(each.T, self._largest) for each in weight]
            whole, scales = (np.stack(each) for each in zip(*parts, strict=True))
            zeros = np.zeros(scales.shape, np.int8)
            integers = inputs[position] = self._add(model, value, "", whole)
            tail += [self._add(model, value, ".scale", scales), self._add(model, value, ".zero", zeros)]
            self._made[value, False] = integers, tail[-2]
            self.bytes_before += weight.nbytes
            self.dynamic.append(value.name or "weight")
        attributes = [each for name, each in node.attributes.items() if name != "layout"]
        quantised = ir.Node(
            DOMAIN,
            "DynamicQuantizeLSTM",
            [*inputs, *tail],
            attributes,
            num_outputs=len(node.outputs),
            name=node.name,
            version=1,
        )
        _replace(node, [quantised])


def products(model: ir.Model, minimum: int = SMALL, minimum_in_bodies: int = SMALL_IN_BODIES) -> list[Product]:
    """The products whose weights are worth being int8.

    Args:
        model: the model.
        minimum: elements below which a weight outside of bodies is left out.
        minimum_in_bodies: the same in the bodies of Scans.
    """
    found = []
    for node in nodes(model):
        if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
            continue
        left, right = node.inputs[:2]
        weight = constant(right)
        if left is None or weight is None or constant(left) is not None or weight.dtype != np.float32:
            continue
        inside = node.graph is not model.graph
        if weight.ndim != 2 or weight.size < (minimum_in_bodies if inside else minimum) or rank(left) == 1:
            continue
        if node.op_type == "Gemm" and (integer(node, "transA", 0) or not _plain(node)):
            continue
        if not np.isfinite(weight).all():
            continue
        found.append(Product(node, left, weight.T if integer(node, "transB", 0) else weight, inside))
    return found


def quantised_columns(weight: Array, largest: int = 127) -> tuple[Array, Array]:
    """Integers and scales of a matrix, whose product is nearest to it.

    Args:
        weight: float32 [inputs, columns].
        largest: the largest absolute value of the integers.

    Returns:
        int8 [inputs, columns] and float32 [columns].
    """
    scales = (np.abs(weight).max(0).astype(np.float64) / largest).astype(np.float32)
    scales[scales == 0] = 1
    whole = np.rint(weight / scales.astype(np.float64)).clip(-largest, largest).astype(np.int8)
    return np.ascontiguousarray(whole), scales


def quantised_range(lowest: float, highest: float) -> tuple[Array, Array]:
    """Step and zero point of uint8 values that reach from `lowest` (at most 0) to `highest` (at least 0).

    Returns:
        float32 [] and uint8 []: q stands for (q - zero) * step, and no value in the range is further than step / 2 from
        one of these, but for the rounding of the step.
    """
    low, high = min(float(lowest), 0.0), max(float(highest), 0.0)
    if low == high:
        return np.array(1, np.float32), np.array(0, np.uint8)
    zero = min(max(round(255 * -low / (high - low)), int(low < 0)), 255 - int(high > 0))
    steps = [-low / zero if zero else 0.0, high / (255 - zero) if zero < 255 else 0.0]
    smallest = float(np.finfo(np.float32).tiny)
    return np.array(max(*steps, smallest), np.float32), np.array(zero, np.uint8)


def _plain(node: ir.Node) -> bool:
    given = [node.attributes.get(name) for name in ("alpha", "beta")]
    return all(each is None or each.as_float() == 1 for each in given)


def _replace(node: ir.Node, made: list[ir.Node]) -> None:
    """Let the outputs of the last of `made` take the place of those of a node."""
    graph = graph_of(node)
    for old, new in zip(node.outputs, made[-1].outputs, strict=True):
        new.shape, new.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, list(node.outputs), list(made[-1].outputs))
