"""Compute at export what no input can change, weight layouts above all."""

import onnx_ir as ir
from onnxscript import optimizer

_NO_LIMIT = 1 << 62


class FoldConstants(ir.passes.InPlacePass):
    """Replace every node whose inputs are constants by its result, whatever its size.

    onnxscript's own limits keep files small; here a weight must never be permuted when a session starts.

    Postcondition: no node of the graph or of its bodies has constant inputs only, but those with random or
    side-effecting semantics.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        result = optimizer.fold_constants_ir(
            model, onnx_shape_inference=True, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT
        )
        return ir.passes.PassResult(model, bool(result.modified))
