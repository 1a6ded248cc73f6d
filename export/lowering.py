"""Which form each recurrent node gets: the native operator, or a Scan over precomputed projections.

Neither is faster everywhere: the native operator does less around each step, a Scan multiplies faster and lets a lookup
table take the place of its projection. So both forms of a node are measured, alone and on this machine.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

from cellport.errors import ExportError

from .passes import FoldConstants, LookupTables, LowerRecurrent, RemoveDead, can_lower
from .passes.graphs import constant, nodes
from .passes.lookup_tables import AUTO_LIMIT, Mode
from .passes.split_sums import gathers_of

__all__ = ["Lowering", "Shape", "lower"]

Lowering = Literal["auto", "native", "scan"]

_STEPS, _ROWS, _ROUNDS = 32, 512, 7
_measured: dict[tuple["Shape", int], tuple[float, float]] = {}


@dataclass(frozen=True)
class Shape:
    """What decides how fast a recurrent node is.

    Attributes:
        operator: LSTM, GRU or RNN.
        directions: 1 or 2.
        features: of the input.
        hidden: of the state.
        lengths: whether rows have lengths.
        table: whether a lookup table can hold its projections.
        after: whether a GRU resets after the product.
    """

    operator: str
    directions: int
    features: int
    hidden: int
    lengths: bool
    table: bool
    after: bool = True

    @classmethod
    def of(cls, node: ir.Node, table: bool) -> "Shape":
        """The shape of a node that a lookup table can stand in front of, or not."""
        weight, recurrent = constant(node.inputs[1]), constant(node.inputs[2])
        assert weight is not None
        assert recurrent is not None
        lengths = len(node.inputs) > 4 and node.inputs[4] is not None
        after = node.op_type != "GRU" or bool(node.attributes.get_int("linear_before_reset", 0))
        return cls(node.op_type, len(weight), weight.shape[2], recurrent.shape[2], lengths, table, after)


Timer = Callable[[Shape, int], tuple[float, float]]
"""Seconds of the native form and of the Scan for a shape and a batch size."""


def lower(
    model: ir.Model,
    mode: Lowering,
    *,
    tables: Mode,
    batches: Sequence[int] = (1, 16),
    timer: Timer | None = None,
    limit: int = AUTO_LIMIT,
) -> list[str]:
    """Give each recurrent node of a graph its form, in place.

    Args:
        model: the graph, its constants folded, before lookup tables are made.
        mode: ``"native"`` leaves all, ``"scan"`` replaces all that can be, ``"auto"`` replaces those whose Scan was
            faster, by the geometric mean over `batches`.
        tables: whether lookup tables will be made; ``"auto"`` if they add no more than `limit`, as of `LookupTables`.
        batches: the batch sizes that matter.
        timer: measures a shape; default is onnxruntime on this machine with one thread.
        limit: bytes that the tables of one embedding may add with ``tables="auto"``.

    Returns:
        One sentence for each kind of node.

    Raises:
        ExportError: native operators are asked for, which do not compute in float64.
    """
    candidates = [node for node in nodes(model) if can_lower(node)]
    double = [node for node in candidates if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.DOUBLE]
    if double and mode == "native":
        raise ExportError(
            f"lowering='native', but the {double[0].op_type} {double[0].name!r} is in float64, which onnxruntime's "
            "native operators do not compute; choose 'scan' or 'auto', or call model.float()"
        )
    if double and mode == "auto":
        LowerRecurrent(double)(model)
        left = lower(model, mode, tables=tables, batches=batches, timer=timer, limit=limit)
        return ["float64 layers: a Scan, because the runtime's native operators are float32 only", *left]
    if mode == "native" or not candidates:
        return []
    if mode == "scan":
        LowerRecurrent()(model)
        return []
    behind = _behind_tables(candidates, tables, limit)
    chosen: set[ir.Node] = set()
    notes: dict[Shape, str] = {}
    for node in candidates:
        shape = Shape.of(node, node in behind)
        ratios = []
        for batch in batches:
            native, scan = (timer or measure)(shape, batch)
            ratios.append(native / scan)
        faster = prod(ratios) > 1
        if faster:
            chosen.add(node)
        told = ", ".join(f"{ratio:.2f} at batch {batch}" for ratio, batch in zip(ratios, batches, strict=True))
        form = "a Scan over precomputed projections" if faster else "the native operator"
        sizes = f"{shape.features} to {shape.hidden}" + (", behind a table" if shape.table else "")
        notes[shape] = f"{shape.operator} {sizes}: {form}; a Scan is faster by {told}"
    LowerRecurrent(chosen)(model)
    return list(notes.values())


def _behind_tables(candidates: Sequence[ir.Node], tables: Mode, limit: int) -> set[ir.Node]:
    """The nodes whose projections will be looked up, if they become Scans."""
    found: dict[ir.Node, list[ir.Node]] = {}
    for node in candidates:
        for gather in (gathers_of(node.inputs[0]) or []) if tables is not False else []:
            found.setdefault(gather, []).append(node)
    large = {node for gather, users in found.items() if _added(gather, users) > limit for node in users}
    return {node for users in found.values() for node in users if tables is True or node not in large}


def _added(gather: ir.Node, users: Sequence[ir.Node]) -> int:
    """Bytes that the tables of an embedding are larger than the embedding, which goes if nothing else reads it."""
    embedding = constant(gather.inputs[0])
    assert embedding is not None
    weights = [constant(node.inputs[1]) for node in users]
    width = sum(each.shape[0] * each.shape[1] for each in weights if each is not None)
    return int((width - embedding.shape[1]) * len(embedding) * embedding.itemsize)


def measure(shape: Shape, batch: int) -> tuple[float, float]:
    """Time both forms of one node in interleaved rounds; seconds, medians. A shape is measured once in a process."""
    if (shape, batch) not in _measured:
        # One direction tells as much as two, and a product that both forms compute says nothing: that saves memory.
        alone = replace(shape, directions=1)
        if not shape.table:
            alone = replace(alone, features=min(shape.features, shape.hidden))
        passes: list[ir.passes.InPlacePass] = [LowerRecurrent(), FoldConstants(), RemoveDead()]
        passes += [LookupTables(True), RemoveDead()] if shape.table else []
        sessions = [_session(alone, []), _session(alone, [*passes, common.NameFixPass()])]
        rng = np.random.default_rng(0)
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(_ROUNDS + 1):
            feeds = _feeds(alone, batch, rng)
            for session, found in zip(sessions, times, strict=True):
                started = time.perf_counter()
                session.run(None, feeds)
                if number:
                    found.append(time.perf_counter() - started)
        _measured[shape, batch] = median(times[0]), median(times[1])
        del sessions, session
        _give_back_memory()
    return _measured[shape, batch]


def _give_back_memory() -> None:
    """Return what the sessions held to the system; glibc would keep it, beside the weights that are still to come."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _feeds(shape: Shape, batch: int, rng: np.random.Generator) -> dict[str, Any]:
    feeds: dict[str, Any] = {}
    if shape.table:
        feeds["ids"] = rng.integers(0, _ROWS, (_STEPS, batch))
    else:
        feeds["x"] = rng.standard_normal((_STEPS, batch, shape.features), np.float32)
    if shape.lengths:
        feeds["lengths"] = np.full(batch, _STEPS, np.int32)
    return feeds


def _session(shape: Shape, passes: Sequence[ir.passes.InPlacePass]) -> onnxruntime.InferenceSession:
    """The node alone, changed by some passes, in onnxruntime with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = _alone(shape)
    if passes:
        ir.passes.PassManager(passes, steps=1)(model)
    data = ir.to_proto(model).SerializeToString()
    del model
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _alone(shape: Shape) -> ir.Model:
    """A graph of one node with weights of zero, behind an embedding if a table can take its place."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[shape.operator] * shape.hidden

    def initializer(name: str, *size: int) -> ir.Value:
        # Memory that nothing writes is not used; a bias of zeros would be left out.
        tensor = ir.tensor(np.ones(size, np.float32) if name == "b" else np.zeros(size, np.float32), name=name)
        return ir.Value(name=name, shape=ir.Shape(size), type=ir.TensorType(tensor.dtype), const_value=tensor)

    def value(name: str, dtype: ir.DataType, *size: int | str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(size), type=ir.TensorType(dtype))

    float_ = ir.DataType.FLOAT
    weights = [
        initializer("w", shape.directions, gates, shape.features),
        initializer("r", shape.directions, gates, shape.hidden),
        initializer("b", shape.directions, 2 * gates),
    ]
    made: list[ir.Node] = []
    inputs: list[ir.Value] = []
    initializers = list(weights)
    if shape.table:
        inputs.append(value("ids", ir.DataType.INT64, "time", "batch"))
        initializers.append(initializer("embedding", _ROWS, shape.features))
        made.append(ir.node("Gather", [initializers[-1], inputs[0]], {"axis": 0}))
        made[0].outputs[0].type = ir.TensorType(float_)
        made[0].outputs[0].shape = ir.Shape(["time", "batch", shape.features])
        x = made[0].outputs[0]
    else:
        x = value("x", float_, "time", "batch", shape.features)
        inputs.append(x)
    lengths = value("lengths", ir.DataType.INT32, "batch") if shape.lengths else None
    if lengths is not None:
        inputs.append(lengths)
    attributes: dict[str, Any] = {"hidden_size": shape.hidden}
    attributes["direction"] = "bidirectional" if shape.directions == 2 else "forward"
    if shape.operator == "GRU":
        attributes["linear_before_reset"] = int(shape.after)
    node = ir.node(shape.operator, [x, *weights, lengths], attributes, num_outputs=1)
    node.outputs[0].type = ir.TensorType(float_)
    node.outputs[0].shape = ir.Shape(["time", shape.directions, "batch", shape.hidden])
    node.outputs[0].name = "y"
    made.append(node)
    graph = ir.Graph(
        inputs, [node.outputs[0]], nodes=made, initializers=initializers, opset_imports={"": 20}, name="measured"
    )
    return ir.Model(graph, ir_version=10)
