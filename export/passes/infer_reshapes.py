"""Let a Reshape infer the one size that it would otherwise be told by the graph."""

import numpy as np
import onnx_ir as ir

from .graphs import add_initializer, constant, nodes


class InferReshapes(ir.passes.InPlacePass):
    """Replace the shape of a Reshape that is computed from a single unknown size by a constant with -1 in its place.

    A tracer that keeps an axis dynamic writes `x.reshape(n, 6)` as a Shape, a Squeeze, a Reshape and a Concat before
    the Reshape proper: in the body of a loop, four operators a step. All other sizes being known and not 0, the unknown
    one follows from the number of elements.

    Precondition: constants are folded, shapes are inferred. What computed the shape is dead afterwards.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        modified = False
        for node in nodes(model, "Reshape"):
            sizes = _sizes(node)
            if sizes is not None:
                node.replace_input_with(1, add_initializer(model, "shape", np.array(sizes, np.int64)))
                modified = True
        return ir.passes.PassResult(model, modified)


def _sizes(node: ir.Node) -> list[int] | None:
    """The constant shape, if all sizes but one are known."""
    shape = node.inputs[1]
    made = shape.producer() if shape is not None else None
    if made is None or made.op_type != "Concat":
        return None
    sizes: list[int] = []
    for part in made.inputs:
        known = constant(part)
        if known is not None:
            sizes.extend(int(size) for size in known)
        elif part is not None and part.shape is not None and list(part.shape) == [1]:
            sizes.append(-1)
        else:
            return None
    return sizes if sizes.count(-1) == 1 and all(size == -1 or size > 0 for size in sizes) else None
