"""Give weights, inputs, outputs and axes the names that the user knows."""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from cellport.manifest import Axes


class NameWeights(ir.passes.InPlacePass):
    """Take a prefix off the names of initializers, so that they are those of the user's state_dict."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        initializers = model.graph.initializers
        for name, value in list(initializers.items()):
            short = name.removeprefix(self._prefix)
            if short != name and short not in initializers:
                value.name = short
        return ir.passes.PassResult(model, True)


class NameTensors(ir.passes.InPlacePass):
    """Name the graph's inputs and outputs and its dynamic axes.

    Args:
        inputs: name and axes of each graph input, in order.
        outputs: the name of each graph output, in order.

    Postcondition: names are unique; what was internal gives way to the user's names.
    """

    def __init__(self, inputs: Sequence[tuple[str, Axes]], outputs: Sequence[str]) -> None:
        super().__init__()
        self._inputs = inputs
        self._outputs = outputs

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        symbols: dict[str, str] = {}
        for value, (_, axes) in zip(graph.inputs, self._inputs, strict=True):
            for dimension, axis in zip(value.shape or (), axes, strict=True):
                if isinstance(dimension, ir.SymbolicDim) and isinstance(dimension.value, str) and isinstance(axis, str):
                    symbols.setdefault(dimension.value, axis)
        public = [*graph.inputs, *graph.outputs]
        wanted = [name for name, _ in self._inputs] + list(self._outputs)
        for value in _values(model):
            if value not in public and value.name in wanted:
                value.name = f"{value.name}_inner"
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dimension, symbols) for dimension in value.shape])
        for index, value in enumerate(public):
            value.name = f"__{index}"
        for value, name in zip(public, wanted, strict=True):
            value.name = name
        for value, (_, axes) in zip(graph.inputs, self._inputs, strict=True):
            value.shape = ir.Shape(axes)
        common.NameFixPass()(model)
        return ir.passes.PassResult(model, True)


def _values(model: ir.Model) -> list[ir.Value]:
    found = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        found.extend(node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found.extend(attribute.as_graph().inputs)
    return found


def _renamed(dimension: int | ir.SymbolicDim, symbols: dict[str, str]) -> int | str | None:
    if isinstance(dimension, int):
        return dimension
    return symbols.get(dimension.value or "", dimension.value)
