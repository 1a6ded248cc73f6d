"""The bodies of the Scans that take the place of ONNX's recurrent operators: one step of an LSTM, a GRU, an RNN."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .graphs import integer

if TYPE_CHECKING:
    from .lower_recurrent import Lowering

__all__ = ["BODIES", "Body"]

Array = np.ndarray[Any, Any]


class Body:
    """The body of a Scan while it is written."""

    def __init__(self, lowering: "Lowering", d: int, states: int, widths: Sequence[int]) -> None:
        self.lowering = lowering
        self.name = f"{lowering.name}_step_{d}"
        self.nodes: list[ir.Node] = []
        batch, hidden = lowering.batch, lowering.hidden
        self.states = [self._value(name, [batch, hidden]) for name in ("h", "c")[:states]]
        self.inputs = [self._value(f"x{index}", [batch, width]) for index, width in enumerate(widths)]
        self.new: list[ir.Value] = []

    def _value(self, name: str, shape: Sequence[Any], dtype: ir.DataType | None = None) -> ir.Value:
        return self.lowering.typed(ir.Value(name=f"{self.name}_{name}"), shape, dtype)

    def add(self, op_type: str, *inputs: ir.Value | None, width: int | None = None, **attributes: Any) -> ir.Value:
        """A node of the step; its output."""
        made = ir.node(op_type, inputs, attributes)
        return self._taken(made, [width or self.lowering.hidden])[0]

    def split(self, value: ir.Value, parts: int) -> Sequence[ir.Value]:
        """A value in equal parts."""
        made = ir.node("Split", [value], {"axis": 1, "num_outputs": parts}, num_outputs=parts)
        return self._taken(made, [self.lowering.hidden] * parts)

    def _taken(self, node: ir.Node, widths: Sequence[int]) -> Sequence[ir.Value]:
        """Append a node. Names that a graph around the body has too, even for later values, are refused at loading."""
        for index, (value, width) in enumerate(zip(node.outputs, widths, strict=True)):
            value.name = f"{self.name}_{len(self.nodes)}_{index}"
            self.lowering.typed(value, [self.lowering.batch, width])
        self.nodes.append(node)
        return node.outputs

    def product(self, left: ir.Value, weight: Array, addend: ir.Value | None, width: int) -> ir.Value:
        """Left times a weight [rows, hidden], plus an addend."""
        right = self.lowering.constant("recurrent", np.ascontiguousarray(weight.T))
        return self.add("Gemm", left, right, *([] if addend is None else [addend]), width=width)

    def graph(self, *, masked: bool, gives_c: bool) -> ir.Graph:
        """The body: new states, h as a scan output, and c as another if `gives_c`.

        Args:
            masked: a last scanned input, bool [batch, 1], tells which rows take the step.
            gives_c: whether c is handed out at every step.
        """
        inputs, states, h = [*self.states, *self.inputs], list(self.new), self.new[0]
        if masked:
            mask = self._value("valid", [self.lowering.batch, 1], ir.DataType.BOOL)
            inputs.append(mask)
            states = [self.add("Where", mask, new, old) for new, old in zip(self.new, self.states, strict=True)]
        # The runtime leaves one of two outputs of a body unwritten if they are one value.
        given = [h if masked else self.add("Identity", h)]
        if gives_c:
            given.append(self.add("Identity", self.new[1]))
        return ir.Graph(
            inputs,
            [*states, *given],
            nodes=self.nodes,
            opset_imports=dict(self.lowering.model.graph.opset_imports),
            name=self.name,
        )


def _lstm(lowering: "Lowering", d: int) -> tuple[Body, list[ir.Value]]:
    """Gates in the order i, o, f, c; the first three share a product and a Sigmoid."""
    size = lowering.hidden
    w, r, b = lowering.w[d], lowering.r[d], lowering.b[d]
    bias = b[: 4 * size] + b[4 * size :]
    scanned = [lowering.projected(w[part], bias[part]) for part in (slice(3 * size), slice(3 * size, None))]
    body = Body(lowering, d, 2, [3 * size, size])
    h, c = body.states
    gates = body.add("Sigmoid", body.product(h, r[: 3 * size], body.inputs[0], 3 * size), width=3 * size)
    candidate = body.add("Tanh", body.product(h, r[3 * size :], body.inputs[1], size))
    i, o, f = body.split(gates, 3)
    new_c = body.add("Add", body.add("Mul", f, c), body.add("Mul", i, candidate))
    body.new = [body.add("Mul", o, body.add("Tanh", new_c)), new_c]
    return body, scanned


def _gru(lowering: "Lowering", d: int) -> tuple[Body, list[ir.Value]]:
    """Gates in the order z, r, h; h' = n + z * (h - n)."""
    size = lowering.hidden
    w, r, b = lowering.w[d], lowering.r[d], lowering.b[d]
    after = bool(integer(lowering.node, "linear_before_reset", 0))
    both, own = slice(2 * size), slice(2 * size, None)
    inner = b[3 * size :][own]
    scanned = [
        lowering.projected(w[both], b[: 3 * size][both] + b[3 * size :][both]),
        lowering.projected(w[own], b[: 3 * size][own] if after else b[: 3 * size][own] + inner),
    ]
    body = Body(lowering, d, 1, [2 * size, size])
    (h,) = body.states
    gates = body.add("Sigmoid", body.product(h, r[both], body.inputs[0], 2 * size), width=2 * size)
    z, reset = body.split(gates, 2)
    if after:
        addend = lowering.constant("bias", inner) if inner.any() else None
        product = body.product(h, r[own], addend, size)
        candidate = body.add("Tanh", body.add("Add", body.add("Mul", reset, product), body.inputs[1]))
    else:
        candidate = body.add("Tanh", body.product(body.add("Mul", reset, h), r[own], body.inputs[1], size))
    body.new = [body.add("Add", candidate, body.add("Mul", z, body.add("Sub", h, candidate)))]
    return body, scanned


def _rnn(lowering: "Lowering", d: int) -> tuple[Body, list[ir.Value]]:
    size = lowering.hidden
    w, r, b = lowering.w[d], lowering.r[d], lowering.b[d]
    given = lowering.node.attributes.get("activations")
    activation = "Tanh" if given is None else list(given.as_strings())[d]
    body = Body(lowering, d, 1, [size])
    body.new = [body.add(activation, body.product(body.states[0], r, body.inputs[0], size))]
    return body, [lowering.projected(w, b[:size] + b[size:])]


BODIES: dict[str, Callable[["Lowering", int], tuple[Body, list[ir.Value]]]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
"""Makes the body of one direction of an operator, and what it scans, by the operator's name."""
