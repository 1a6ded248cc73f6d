"""Drop what nothing reads, and write what is left only once."""

import onnx_ir as ir
from onnx_ir.passes import common


class RemoveDead(ir.passes.InPlacePass):
    """Remove Identities, repeated subexpressions, repeated initializers, and everything that no output needs.

    Postcondition: every node and initializer reaches an output; constants are initializers of the main graph.
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
        return passes(model)
