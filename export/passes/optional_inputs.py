"""Inputs that a caller may leave out: states at their initial value, lengths that cover the whole time axis."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from cellport.manifest import BATCH

from .graphs import add_initializer


@dataclass(frozen=True)
class Default:
    """The value of an input that is left out, with batch size 1, and the position of its batch axis."""

    value: "np.ndarray[Any, Any]"
    batch_axis: int


class OptionalInputs(ir.passes.InPlacePass):
    """Give inputs a default value, which the graph broadcasts over the batch.

    ONNX has a default for an input whose name an initializer shares (IR version 4 and later). The default has batch
    size 1; an Expand behind the input brings it to the batch size of the call.

    Args:
        defaults: the default of each optional input, by its name.
        batch: name and axis of the input that tells the batch size.
    """

    def __init__(self, defaults: Mapping[str, Default], batch: tuple[str, int]) -> None:
        super().__init__()
        self._defaults = defaults
        self._batch = batch

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        if not self._defaults:
            return ir.passes.PassResult(model, False)
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        name, axis = self._batch
        size = ir.node("Shape", [inputs[name]], {"start": axis, "end": axis + 1}, name="batch_size")
        size.outputs[0].name = "batch_size"
        size.outputs[0].dtype, size.outputs[0].shape = ir.DataType.INT64, ir.Shape([1])
        made = [size]
        for name, default in self._defaults.items():
            value = inputs[name]
            rank = default.value.ndim
            whole = size.outputs[0]
            if rank > 1:
                around = [np.ones(default.batch_axis, np.int64), np.ones(rank - default.batch_axis - 1, np.int64)]
                parts: list[ir.Value] = [whole]
                if around[0].size:
                    parts.insert(0, add_initializer(model, f"ones_{around[0].size}", around[0]))
                if around[1].size:
                    parts.append(add_initializer(model, f"ones_{around[1].size}", around[1]))
                shape = ir.node("Concat", parts, {"axis": 0}, name=f"{name}_shape")
                whole = shape.outputs[0]
                whole.name, whole.dtype, whole.shape = f"{name}_shape", ir.DataType.INT64, ir.Shape([rank])
                made.append(shape)
            uses = list(value.uses())
            expand = ir.node("Expand", [value, whole], name=f"{name}_rows")
            rows = expand.outputs[0]
            rows.name, rows.type, rows.shape = f"{name}_rows", value.type, value.shape
            for user, index in uses:
                user.replace_input_with(index, rows)
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = rows
            made.append(expand)
            value.const_value = ir.tensor(default.value, name=name)
            value.shape = ir.Shape(
                [f"{BATCH}_or_1" if i == default.batch_axis else d for i, d in enumerate(value.shape or ())]
            )
            graph.initializers[name] = value
        first = next(iter(graph), None)
        if first is None:
            graph.extend(made)
        else:
            graph.insert_before(first, made)
        common.NameFixPass()(model)
        return ir.passes.PassResult(model, True)
