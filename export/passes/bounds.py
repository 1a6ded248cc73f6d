"""Between which numbers a value stays, whatever the inputs are: what a fixed quantisation of it has to cover."""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from .graphs import constant, is_constant, nodes, scan_body, scan_states
from .rows import FLOATS

__all__ = ["Bounds"]

Interval = tuple[float, float]

_FIXED: dict[str, Interval] = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
_KEEPS = frozenset(
    [
        *("Cast", "Expand", "Flatten", "GatherElements", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
        *("Transpose", "Unsqueeze"),
    ]
)
_UNIT: Interval = (-1.0, 1.0)


class Bounds:
    """Intervals that values of a graph and its bodies provably stay in.

    A value is bounded if it comes from a bounded activation, the rows of a constant table, or sums, products and
    selections of such. States of a Scan are bounded if, supposing that they were within [-1, 1], their next values are:
    that is the case of LSTM (h = o * tanh c), GRU (h moves from its old value towards a tanh) and tanh RNNs. The
    supposition has to hold for the initial states too. It does for zeros and for states that the model itself returned.

    Args:
        model: the model; it must not change while its bounds are asked for.
        assumed: intervals that are known from elsewhere, by the name of the value.
    """

    def __init__(self, model: ir.Model, assumed: Mapping[str, Interval] = MappingProxyType({})) -> None:
        self._assumed = assumed
        self._scans = {scan_body(node): node for node in nodes(model, "Scan")}
        self._known: dict[ir.Value, Interval | None] = {}

    def of(self, value: ir.Value | None) -> Interval | None:
        """The interval of a value, or None if it has none that this class knows."""
        if value is None:
            return None
        if value.name in self._assumed:
            return self._assumed[value.name or ""]
        if value not in self._known:
            self._known[value] = self._find(value)
        return self._known[value]

    def _find(self, value: ir.Value) -> Interval | None:
        if is_constant(value):
            array = constant(value)
            return None if array is None else _interval(array)
        node = value.producer()
        if node is None:
            return self._state(value)
        if node.domain != "":
            return self._native(node, value) if node.op_type == "DynamicQuantizeLSTM" else None
        if node.op_type in _FIXED:
            return _FIXED[node.op_type]
        if node.op_type in _KEEPS or (node.op_type == "Gather" and node.inputs[0] is not None):
            return self.of(node.inputs[0])
        if node.op_type == "Scan":
            index = list(node.outputs).index(value)
            return self.of(scan_body(node).outputs[index])
        if node.op_type in ("LSTM", "GRU", "RNN"):
            return self._native(node, value)
        return self._combined(node)

    def _combined(self, node: ir.Node) -> Interval | None:
        if node.op_type == "Where":
            return _hull([self.of(value) for value in node.inputs[1:]])
        if node.op_type in ("Concat", "Max", "Min"):
            return _hull([self.of(value) for value in node.inputs])
        if node.op_type == "Relu":
            inner = self.of(node.inputs[0])
            return None if inner is None else (max(0.0, inner[0]), max(0.0, inner[1]))
        if node.op_type not in ("Add", "Sub", "Mul"):
            return None
        if node.op_type == "Add":
            between = self._between(node)
            if between is not None:
                return between
        a, b = (self.of(value) for value in node.inputs)
        if a is None or b is None:
            return None
        if node.op_type == "Add":
            return a[0] + b[0], a[1] + b[1]
        if node.op_type == "Sub":
            return a[0] - b[1], a[1] - b[0]
        corners = [x * y for x in a for y in b]
        return min(corners), max(corners)

    def _between(self, node: ir.Node) -> Interval | None:
        """``n + z * (h - n)`` with z in [0, 1] lies between h and n."""
        for start, step in (tuple(node.inputs), tuple(reversed(node.inputs))):
            product = step.producer() if step is not None else None
            if product is None or product.op_type != "Mul":
                continue
            for share, way in (tuple(product.inputs), tuple(reversed(product.inputs))):
                difference = way.producer() if way is not None else None
                if difference is None or difference.op_type != "Sub" or difference.inputs[1] is not start:
                    continue
                part = self.of(share)
                if part is not None and part[0] >= 0 and part[1] <= 1:
                    return _hull([self.of(start), self.of(difference.inputs[0])])
        return None

    def _state(self, value: ir.Value) -> Interval | None:
        """The interval of an input of a body."""
        node = self._scans.get(value.graph) if isinstance(value.graph, ir.Graph) else None
        if node is None:
            return None
        body, states = scan_body(node), scan_states(node)
        if (index := body.inputs.index(value)) >= states:
            return self.of(node.inputs[index])
        supposed = {
            old
            for old, first in zip(body.inputs[:states], node.inputs[:states], strict=True)
            if old.dtype in FLOATS and self._may_begin_within(first)
        }
        while value in supposed:
            # All states have a value here, so that nothing that is asked for leads back to itself.
            trial = copy.copy(self)
            trial._known = self._known | dict.fromkeys(body.inputs[:states]) | dict.fromkeys(supposed, _UNIT)
            kept = {old for old in supposed if _within(trial.of(body.outputs[body.inputs.index(old)]))}
            if kept == supposed:
                return _UNIT
            supposed = kept
        return None

    def _may_begin_within(self, value: ir.Value | None) -> bool:
        """Whether an initial state is within [-1, 1], or what a caller gives whose default is."""
        interval = self.of(value)
        while interval is None and value is not None and (node := value.producer()) is not None:
            if node.op_type not in _KEEPS and node.op_type != "Gather":
                break
            value = node.inputs[0]
        if interval is None and value is not None and value.is_graph_input() and value.const_value is not None:
            interval = _interval(value.const_value.numpy())
        return interval is None or _within(interval)

    def _native(self, node: ir.Node, value: ir.Value) -> Interval | None:
        """Outputs of ONNX's recurrent operators whose last activation is a tanh; c of an LSTM has no bound."""
        given = node.attributes.get("activations")
        names = ["Tanh"] if given is None else list(given.as_strings())
        gated = node.op_type != "RNN"
        bounded = all(name in ("Tanh", "Sigmoid") for name in names)
        if not bounded or (gated and value is (*node.outputs, None, None)[2]):
            return None
        return _UNIT


def _interval(array: np.ndarray[Any, Any]) -> Interval | None:
    if array.dtype.kind != "f" or not np.isfinite(array).all() or not array.size:
        return None
    return float(array.min()), float(array.max())


def _within(interval: Interval | None) -> bool:
    return interval is not None and interval[0] >= -1 and interval[1] <= 1


def _hull(intervals: list[Interval | None]) -> Interval | None:
    known = [each for each in intervals if each is not None]
    if len(known) < len(intervals):
        return None
    return min(low for low, _ in known), max(high for _, high in known)
