"""The manifest of an exported graph."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import onnx_ir as ir
from torch import nn
from torch.utils import _pytree as pytree

from cellport.manifest import TIME, Axes, InputSpec, Manifest, OutputSpec, Role, Source, StateSpec, TableSpec

from .capture import Captured, State
from .image_sizes import SIZES, ImageSizes
from .ranges import index_ranges
from .signature import Leaf
from .union_proof import Union

__all__ = ["describe_graph"]


def describe_graph(
    graph: ir.Model,
    captured: Captured,
    causal: bool,
    tables: Sequence[TableSpec],
    model: nn.Module,
    structure: Any,
    leaves: Sequence[Leaf],
    required: bool,
    shrunk: Mapping[str, Any],
    sizes: ImageSizes | None = None,
    union: Union | None = None,
) -> Manifest:
    """Describe a graph.

    Args:
        graph: the finished graph.
        captured: the module that it was made from.
        causal: whether a run in chunks proved equal to one pass.
        tables: its lookup tables.
        model: the user's module.
        structure: how its arguments are put together.
        leaves: its arguments.
        required: whether states must be given.
        shrunk: fields of `Source` that tell what was made smaller.
        sizes: the input of sizes, if rows of different sizes may share a run.
        union: which inputs are indices, and along which axes requests may be united.
    """
    ranges = index_ranges(graph)
    union = union or Union()
    dtypes = {value.name: _dtype(value) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    inputs = tuple(
        InputSpec(
            name=leaf.name,
            dtype=dtypes[leaf.name],
            axes=leaf.axes,
            role=_role(leaf, captured, sizes),
            range=ranges.get(leaf.name),
            optional=captured.added_lengths and leaf.name == captured.lengths,
            of=sizes.axes if sizes is not None and leaf.name == SIZES else (),
            index_of=union.indices.get(leaf.name),
            unite=union.axes.get(leaf.name),
        )
        for leaf in captured.inputs
    )
    outputs = tuple(
        OutputSpec(name=name, dtype=dtypes[name], axes=axes, chunking="concatenate" if TIME in axes else "last")
        for name, axes in captured.outputs
    )
    try:
        written = pytree.treespec_dumps(structure)
    except (NotImplementedError, ValueError, AssertionError):
        written = None
    lift = captured.module.lift
    source = Source(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        opset=graph.opset_imports[""],
        versions={name: version(name) for name in ("cellport", "torch", "onnx", "onnxscript", "onnx-ir")},
        arguments=tuple(leaf.name for leaf in leaves),
        results=captured.results,
        structure=written,
        lifted_states=lift.states,
        lifted_lengths=lift.lengths,
        **shrunk,
    )
    return Manifest(
        inputs=inputs,
        outputs=outputs,
        states=tuple(_state(each, dtypes, required) for each in captured.states),
        causal=causal,
        tables=tuple(tables),
        source=source,
    )


def _role(leaf: Leaf, captured: Captured, sizes: ImageSizes | None) -> Role:
    if leaf.name == captured.lengths:
        return "lengths"
    if sizes is not None and leaf.name == SIZES:
        return "sizes"
    return "sequence" if TIME in leaf.axes else "static"


def _state(state: State, dtypes: Mapping[str | None, str], required: bool) -> StateSpec:
    axes: Axes = state.axes
    return StateSpec(
        input=state.input, output=state.output, dtype=dtypes[state.input], axes=axes, required=required
    ).with_initial(state.initial.numpy())


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy())
