"""Weights stored as float16, and widened once when a file is loaded."""

import numpy as np
import onnx_ir as ir

from .graphs import constant
from .rows import FLOATS
from .tables import set_constant, tables_of

__all__ = ["HalfWeights"]

SMALL = 1024
"""Values below which a weight keeps its type: a Cast and its names take as many bytes as it would save."""


class HalfWeights(ir.passes.InPlacePass):
    """Store weights as float16, with a Cast behind each in the main graph.

    onnxruntime computes a Cast of a constant when it loads a file and keeps the result only, so that what runs is the
    same as with wider weights, bodies of Scans included; it takes the bytes of the wider weights in memory.

    Precondition: constants are folded, and are initializers of the main graph.

    Postcondition: a weight that was stored so has its name, and what read it reads its Cast. The error of a value v is
    at most 2⁻¹¹ · |v|, or 2⁻²⁵ below 2⁻¹⁴. Tables and the defaults of inputs keep their type, and so does a weight with
    values that float16 cannot hold.

    Args:
        minimum: values below which a weight stays as it is.

    Attributes:
        changed: names of the weights that the last run changed.
        bytes: the size of these weights.
        bytes_before: their size before.
        notes: what was changed or left, and why.
    """

    def __init__(self, minimum: int = SMALL) -> None:
        super().__init__()
        self._minimum = minimum
        self.changed: list[str] = []
        self.bytes = self.bytes_before = 0
        self.notes: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        self.changed, self.notes, self.bytes, self.bytes_before = [], [], 0, 0
        tables = {table.value for table in tables_of(model)}
        casts = []
        for value in list(model.graph.initializers.values()):
            if value not in tables and self._fits(value):
                casts.append(self._change(value))
        first = next(iter(model.graph), None)
        if casts:
            assert first is not None
            model.graph.insert_before(first, casts)
            self.notes.append(
                f"{len(casts)} weights stored as float16: {self.bytes / 2**20:.2f} MiB, "
                f"before {self.bytes_before / 2**20:.2f}"
            )
        return ir.passes.PassResult(model, bool(casts))

    def _fits(self, value: ir.Value) -> bool:
        if value.dtype not in FLOATS or not value.uses():
            return False
        array = constant(value)
        if array is None or array.size < self._minimum:
            return False
        largest, limit = float(np.abs(array).max()), float(np.finfo(np.float16).max)
        if not largest <= limit:
            self.notes.append(
                f"weight {value.name!r} left as {array.dtype}: its largest absolute value is {largest:g}, and float16 "
                f"holds up to {limit:g}"
            )
            return False
        return True

    def _change(self, value: ir.Value) -> ir.Node:
        array, dtype, shape = constant(value), value.dtype, value.shape
        assert array is not None
        assert dtype is not None
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_wide")
        wide = cast.outputs[0]
        wide.name, wide.shape, wide.type = f"{value.name}_wide", shape, ir.TensorType(dtype)
        ir.convenience.replace_all_uses_with(value, wide, replace_graph_outputs=True)
        cast.replace_input_with(0, value)
        set_constant(value, array.astype(np.float16))
        self.changed.append(value.name or "")
        self.bytes += array.size * 2
        self.bytes_before += array.nbytes
        return cast
