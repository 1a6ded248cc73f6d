"""Which integers an input accepts, read from what the graph does with them."""

import onnx_ir as ir

from cellport.manifest import Range

from .passes.graphs import integer

_KEEPS_VALUES = frozenset(["Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
_INTEGERS = frozenset([ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64])


def index_ranges(model: ir.Model) -> dict[str, Range]:
    """Find the integer inputs that select rows, and how many rows there are.

    An input that reaches the indices of one or more Gather nodes unchanged may hold 0 to the size of the smallest
    gathered axis less one. The runtime itself takes negative indices in silence and fails the whole batch for one that
    is too large, so callers are checked against this.

    Returns:
        The range of each such input, by its name.
    """
    found: dict[str, Range] = {}
    for value in model.graph.inputs:
        if value.dtype in _INTEGERS:
            sizes = _gathered_sizes(value)
            if sizes:
                assert value.name is not None
                found[value.name] = Range(minimum=0, maximum=min(sizes) - 1)
    return found


def _gathered_sizes(start: ir.Value) -> list[int]:
    sizes: list[int] = []
    waiting, seen = [start], {start}
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type in _KEEPS_VALUES and index == 0:
                new = [output for output in node.outputs if output not in seen]
                waiting.extend(new)
                seen.update(new)
            elif node.op_type == "Gather" and index == 1:
                data = node.inputs[0]
                size = data.shape[integer(node, "axis", 0)] if data is not None and data.shape is not None else None
                if isinstance(size, int):
                    sizes.append(size)
    return sizes
