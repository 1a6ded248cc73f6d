"""Make each output of a graph a value of its own, so that each can have a name of its own."""

import onnx_ir as ir


class SeparateOutputs(ir.passes.InPlacePass):
    """Copy what is given out twice, or given out as it came in.

    A model may return one tensor as a result and as a state, or hand an input or a weight through.

    Postcondition: no output is an input, an initializer, or another output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        seen: set[ir.Value] = set()
        modified = False
        for index, output in enumerate(graph.outputs):
            if output in seen or output.is_graph_input() or output.is_initializer():
                copy = ir.node("Identity", [output])
                copy.outputs[0].type, copy.outputs[0].shape = output.type, output.shape
                graph.append(copy)
                graph.outputs[index] = copy.outputs[0]
                modified = True
            seen.add(output)
        return ir.passes.PassResult(model, modified)
