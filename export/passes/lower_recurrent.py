"""ONNX's recurrent operators as Scans over projections that are computed for all steps at once.

A native node multiplies its input by W inside. As a Scan, the product stands alone in front of the loop, where a lookup
table can take its place, and the loop holds what depends on the state and nothing else. What makes a step cheap was
measured (decision 0007): products that take the projection as their addend (Gemm) instead of an addition of their own,
one product for all gates with the same activation instead of a Split in front of it, and lengths outside of the loop.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .graphs import add_initializer, constant, graph_of, integer, nodes
from .scan_bodies import BODIES

__all__ = ["LowerRecurrent", "can_lower"]

Array = np.ndarray[Any, Any]

_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def can_lower(node: ir.Node) -> bool:
    """Whether a node is an LSTM, GRU or RNN that this module has a loop for.

    Its weights are constants, its activations are ONNX's defaults (or Relu for an RNN), and it has no peepholes,
    coupled gates, clipping, or batch-first layout.
    """
    if node.op_type not in _GATES or node.domain != "" or any(constant(value) is None for value in node.inputs[1:3]):
        return False
    if len(node.inputs) > 3 and node.inputs[3] is not None and constant(node.inputs[3]) is None:
        return False
    if node.op_type == "LSTM" and len(node.inputs) > 7 and node.inputs[7] is not None:
        return False
    if any(name in node.attributes for name in ("clip", "activation_alpha", "activation_beta")):
        return False
    if integer(node, "layout", 0) or integer(node, "input_forget", 0):
        return False
    given = node.attributes.get("activations")
    names = [] if given is None else list(given.as_strings())
    directions = _directions(node)
    if node.op_type == "RNN":
        return names in ([], ["Tanh"] * directions, ["Relu"] * directions)
    return names in ([], _ACTIVATIONS[node.op_type] * directions)


class LowerRecurrent(ir.passes.InPlacePass):
    """Replace recurrent nodes by Scans.

    Precondition: constants are folded.

    Postcondition: no chosen node that `can_lower` accepts is left. What reads its output through the Squeeze, or the
    Transpose and Reshape, that join the directions reads the Scan's output directly. Padded outputs are 0, and final
    states are those after each row's last valid step; a row of length 0 keeps its initial state, where the runtime's
    operators return zeros.

    Args:
        which: the nodes to replace, or a function that chooses; default all.
    """

    def __init__(self, which: Container[ir.Node] | Callable[[ir.Node], bool] | None = None) -> None:
        super().__init__()
        self._which = which

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        for node in list(nodes(model)):
            if can_lower(node) and self._wanted(node):
                Lowering(model, node).run()
                modified = True
        if modified:
            common.NameFixPass()(model)
        return ir.passes.PassResult(model, modified)

    def _wanted(self, node: ir.Node) -> bool:
        if self._which is None:
            return True
        return self._which(node) if callable(self._which) else node in self._which


def _directions(node: ir.Node) -> int:
    return 2 if _direction(node) == "bidirectional" else 1


def _direction(node: ir.Node) -> str:
    attribute = node.attributes.get("direction")
    return "forward" if attribute is None else attribute.as_string()


class Lowering:
    """One node on its way to Scans."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.name = node.name or node.op_type.lower()
        inputs = [*node.inputs, *(None for _ in range(8 - len(node.inputs)))]
        assert inputs[0] is not None
        self.x = inputs[0]
        self.lengths = inputs[4]
        self.initial = inputs[5 : 7 if node.op_type == "LSTM" else 6]
        weights = [constant(inputs[1]), constant(inputs[2])]
        assert weights[0] is not None
        assert weights[1] is not None
        self.w, self.r = weights[0], weights[1]
        self.hidden = int(self.r.shape[2])
        bias = constant(inputs[3])
        gates = _GATES[node.op_type]
        self.b = np.zeros((len(self.w), 2 * gates * self.hidden), self.w.dtype) if bias is None else bias
        dtype = self.x.dtype if self.x.dtype is not None else inputs[1].dtype if inputs[1] is not None else None
        assert dtype is not None
        self.dtype = dtype
        shape = self.x.shape if self.x.shape is not None else ir.Shape([None, None, self.w.shape[2]])
        self.steps, self.batch = shape[0], shape[1]
        self.made: list[ir.Node] = []

    def run(self) -> None:
        """Replace the node."""
        node = self.node
        outputs = [*node.outputs, *(None for _ in range(3 - len(node.outputs)))]
        read = [each is not None and _is_read(each) for each in outputs]
        valid = self.valid() if self.lengths is not None else None
        backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[_direction(node)]
        runs = [self.direction(d, reverse, valid, read) for d, reverse in enumerate(backwards)]
        replaced: list[tuple[ir.Value, ir.Value]] = []
        gone: list[ir.Node] = []
        if outputs[0] is not None and read[0]:
            self.join(outputs[0], [sequence for sequence, _ in runs], replaced, gone)
        for index, output in enumerate(outputs[1:]):
            if output is not None and read[index + 1]:
                replaced.append((output, self.stack([finals[index] for _, finals in runs])))
        graph_of(node).insert_before(node, self.made)
        for old, new in replaced:
            new.name, old.name = old.name, None
            new.shape, new.type = old.shape if old.shape is not None else new.shape, old.type or new.type
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        weights = [value for value in node.inputs[1:4] if value is not None]
        for each in (*gone, node):
            graph_of(each).remove(each, safe=True)
        for value in weights:
            if not value.uses() and value.name is not None:
                self.model.graph.initializers.pop(value.name, None)

    def direction(
        self, d: int, reverse: bool, valid: ir.Value | None, read: Sequence[bool]
    ) -> tuple[ir.Value, list[ir.Value]]:
        """One direction: its outputs [time, batch, hidden], 0 in the padding, and its final states [batch, hidden]."""
        first = [self.start(value, d) for value in self.initial]
        body, scanned = BODIES[self.node.op_type](self, d)
        finals_from_steps = valid is not None and not reverse
        masks = valid is not None and reverse
        wants_c = len(first) == 2 and finals_from_steps and read[2]
        body_graph = body.graph(masked=masks, gives_c=wants_c)
        directions = [int(reverse)] * (len(scanned) + masks)
        scan = ir.node(
            "Scan",
            [*first, *scanned, *([valid] if masks else [])],
            {
                "body": body_graph,
                "num_scan_inputs": len(directions),
                "scan_input_directions": directions,
                "scan_output_directions": [int(reverse)] * (1 + wants_c),
            },
            num_outputs=len(first) + 1 + wants_c,
            name=f"{self.name}_scan_{d}",
        )
        self.made.append(scan)
        for index, value in enumerate(scan.outputs):
            sequence = index >= len(first)
            self.typed(value, [self.steps, self.batch, self.hidden] if sequence else [self.batch, self.hidden])
        finals, sequences = list(scan.outputs[: len(first)]), list(scan.outputs[len(first) :])
        if finals_from_steps:
            finals = [
                self.at_last_step(sequences[index], first[index])
                if index < len(sequences) and read[index + 1]
                else final
                for index, final in enumerate(finals)
            ]
        output = sequences[0]
        if valid is not None and read[0]:
            zero = self.constant("zero", np.zeros((), self.dtype.numpy()))
            output = self.add("Where", [valid, output, zero], [self.steps, self.batch, self.hidden])
        return output, finals

    def start(self, value: ir.Value | None, d: int) -> ir.Value:
        """The initial state of a direction, [batch, hidden]."""
        if value is not None:
            index = self.constant(f"direction_{d}", np.array(d))
            return self.add("Gather", [value, index], [self.batch, self.hidden], axis=0)
        batch = self.add("Shape", [self.x], [1], ir.DataType.INT64, start=1, end=2)
        shape = self.add(
            "Concat", [batch, self.constant("hidden", np.array([self.hidden]))], [2], ir.DataType.INT64, axis=0
        )
        zero = ir.tensor(np.zeros(1, self.dtype.numpy()))
        return self.add("ConstantOfShape", [shape], [self.batch, self.hidden], value=zero)

    def valid(self) -> ir.Value:
        """Which steps are valid: bool [time, batch, 1]."""
        int64 = ir.DataType.INT64
        assert self.lengths is not None
        steps = self.add("Shape", [self.x], [1], int64, start=0, end=1)
        count = self.add("Squeeze", [steps], [], int64)
        zero, one = self.constant("first", np.array(0)), self.constant("next", np.array(1))
        numbers = self.add("Range", [zero, count, one], [self.steps], int64)
        column = self.add("Unsqueeze", [numbers, self.axes(1)], [self.steps, 1], int64)
        lengths = self.add("Cast", [self.lengths], [self.batch], int64, to=int(int64))
        below = self.add("Less", [column, lengths], [self.steps, self.batch], ir.DataType.BOOL)
        return self.add("Unsqueeze", [below, self.axes(2)], [self.steps, self.batch, 1], ir.DataType.BOOL)

    def at_last_step(self, sequence: ir.Value, first: ir.Value) -> ir.Value:
        """The value [batch, hidden] of a sequence at each row's last valid step, or `first` where a row has none."""
        int64 = ir.DataType.INT64
        assert self.lengths is not None
        lengths = self.add("Cast", [self.lengths], [self.batch], int64, to=int(int64))
        last = self.add("Sub", [lengths, self.constant("next", np.array(1))], [self.batch], int64)
        last = self.add("Max", [last, self.constant("first", np.array(0))], [self.batch], int64)
        index = self.add("Unsqueeze", [last, self.axes(0, 2)], [1, self.batch, 1], int64)
        batch = self.add("Shape", [last], [1], int64, start=0, end=1)
        one, hidden = self.constant("one", np.array([1])), self.constant("hidden", np.array([self.hidden]))
        shape = self.add("Concat", [one, batch, hidden], [3], int64, axis=0)
        index = self.add("Expand", [index, shape], [1, self.batch, self.hidden], int64)
        taken = self.add("GatherElements", [sequence, index], [1, self.batch, self.hidden], axis=0)
        final = self.add("Squeeze", [taken, self.axes(0)], [self.batch, self.hidden])
        ran = self.add("Greater", [lengths, self.constant("first", np.array(0))], [self.batch], ir.DataType.BOOL)
        ran = self.add("Unsqueeze", [ran, self.axes(1)], [self.batch, 1], ir.DataType.BOOL)
        return self.add("Where", [ran, final, first], [self.batch, self.hidden])

    def join(
        self,
        output: ir.Value,
        sequences: list[ir.Value],
        replaced: list[tuple[ir.Value, ir.Value]],
        gone: list[ir.Node],
    ) -> None:
        """Put the directions together in the form in which they are read."""
        users = [user for user, _ in output.uses()]
        wide = len(sequences) * self.hidden
        if len(users) == 1 and not output.is_graph_output():
            user = users[0]
            if len(sequences) == 1 and user.op_type == "Squeeze":
                replaced.append((user.outputs[0], sequences[0]))
                gone.append(user)
                return
            after = [each for each, _ in user.outputs[0].uses()]
            turned = user.op_type == "Transpose" and list(user.attributes["perm"].as_ints()) == [0, 2, 1, 3]
            if turned and [each.op_type for each in after] == ["Reshape"] and not user.outputs[0].is_graph_output():
                joined = self.add("Concat", sequences, [self.steps, self.batch, wide], axis=2)
                replaced.append((after[0].outputs[0], joined))
                gone.extend([after[0], user])
                return
        apart = [
            self.add("Unsqueeze", [each, self.axes(1)], [self.steps, 1, self.batch, self.hidden]) for each in sequences
        ]
        replaced.append((output, self.concatenated(apart, 1, [self.steps, len(apart), self.batch, self.hidden])))

    def stack(self, states: list[ir.Value]) -> ir.Value:
        """Final states [batch, hidden] of the directions as [directions, batch, hidden]."""
        apart = [self.add("Unsqueeze", [each, self.axes(0)], [1, self.batch, self.hidden]) for each in states]
        return self.concatenated(apart, 0, [len(apart), self.batch, self.hidden])

    def concatenated(self, values: list[ir.Value], axis: int, shape: Sequence[Any]) -> ir.Value:
        return values[0] if len(values) == 1 else self.add("Concat", values, shape, axis=axis)

    def projected(self, weight: Array, bias: Array) -> ir.Value:
        """The input times a weight [rows, features], plus a bias [rows], for all steps."""
        rows = len(weight)
        product = self.add(
            "MatMul",
            [self.x, self.constant("weight", np.ascontiguousarray(weight.T))],
            [self.steps, self.batch, rows],
        )
        if not bias.any():
            return product
        return self.add("Add", [product, self.constant("bias", bias)], [self.steps, self.batch, rows])

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[Any],
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """A node in front of the one that is replaced; its output."""
        made = ir.node(op_type, inputs, attributes)
        self.made.append(made)
        return self.typed(made.outputs[0], shape, dtype)

    def typed(self, value: ir.Value, shape: Sequence[Any], dtype: ir.DataType | None = None) -> ir.Value:
        value.type = ir.TensorType(dtype or self.dtype)
        value.shape = ir.Shape(shape)
        return value

    def constant(self, name: str, array: Array) -> ir.Value:
        """An initializer of the main graph."""
        return add_initializer(self.model, f"{self.name}.{name}", array)

    def axes(self, *axes: int) -> ir.Value:
        return self.constant("axes", np.array(axes))


def _is_read(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())
