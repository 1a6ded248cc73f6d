"""Drop what nothing reads, and write what is left only once."""

import onnx_ir as ir
from onnx_ir.passes import common

from .graphs import nodes, separate_outputs


class RemoveDead(ir.passes.InPlacePass):
    """Remove Identities, repeated subexpressions, repeated initializers, and everything that no output needs.

    Postcondition: every node and initializer reaches an output; constants are initializers of the main graph; no two
    outputs of a loop's body are one value (the runtime would leave one of them unwritten).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        passes = ir.passes.Sequential(
            common.IdentityEliminationPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
        )
        result = passes(model)
        for node in nodes(model):
            if node.op_type in ("Scan", "Loop") and node.domain == "":
                separate_outputs(node.attributes["body"].as_graph())
        return result
