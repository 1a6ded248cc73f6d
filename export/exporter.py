"""`to_onnx`: from an nn.Module to a verified, self-describing ONNX file."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from cellport.errors import CellportError, ExportError
from cellport.manifest import (
    BATCH,
    METADATA_KEY,
    TIME,
    Axes,
    InputSpec,
    Manifest,
    OutputSpec,
    Source,
    StateSpec,
    TableSpec,
)

from . import passes
from .capture import Captured, Copies, State, unlike_sizes
from .lifting import capture_lifted
from .lowering import Lowering, lower
from .passes.optional_inputs import Default
from .probing import looped_step, probe, run_unchanged
from .ranges import index_ranges
from .report import Report
from .runtime import OnnxRunner
from .selections import selected_rows
from .signature import Leaf, argument_leaves, result_names, state_pairs
from .translate import quiet, translate
from .verification import QUICK, compare
from .watching import layers_of, run_cell, watching
from .writing import external_data, written

_EXTERNAL_DATA_FROM = 64_000_000
"""Bytes of weights and tables from which they go beside the file, where processes share one copy of them."""


def to_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    f: str | os.PathLike[str],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    opset_version: int = 20,
    state: Mapping[str, str] | Literal["auto"] | None = "auto",
    state_inputs: Literal["optional", "required"] = "optional",
    lengths: Literal["auto"] | None = "auto",
    lookup: bool | Literal["auto"] = "auto",
    lowering: Lowering = "auto",
    batches: Sequence[int] = (1, 16),
    weights: Literal["float32"] = "float32",
    verify: bool = True,
) -> Report:
    """Export a recurrent model to an ONNX file that describes itself, and prove that it computes the same.

    What this function shares with `torch.onnx.export` has its name and meaning there.

    Args:
        model: any module in evaluation mode; its recurrent layers are `cellport.cells`, torch.nn's RNN, LSTM and GRU,
            or the user's own written with `cellport.cells.recurrence`.
        args: example arguments: tensors and (named) tuples of tensors. Their sizes do not matter, their integers are
            taken as examples of valid ones.
        f: the file to write.
        input_names: a name for each tensor of `args`; default the names of forward's parameters.
        output_names: a name for each tensor that the model returns.
        dynamic_shapes: the axes that may change, as of `torch.export.export`; name the axis of rows ``"batch"`` and
            the axis of steps ``"time"``.
        opset_version: 18 to 22.
        state: output name to input name of each state that the model's forward takes and returns;
            ``"auto"`` also lifts the state of each unidirectional cell that forward leaves at its default to an input
            ``<path>.<state>`` and an output ``<path>.<state>_out``, if a chunked run then proves equal to one pass;
            None leaves the states inside.
        state_inputs: ``"optional"`` states default to their initial value; ``"required"`` ones must be given.
        lengths: ``"auto"`` adds an optional input ``lengths`` (int64 [batch], −1 for the whole time axis), wired to
            every cell that is not given lengths, if padded runs then prove equal to unpadded ones; None does not.
        lookup: ``"auto"`` folds embeddings and the projections behind them into lookup tables where that is worth
            its bytes; True insists; False leaves them.
        lowering: the form of LSTM, GRU and RNN layers: ``"native"`` operators, a ``"scan"`` over projections that are
            computed for all steps at once (or looked up), or ``"auto"`` for the faster, measured on this machine.
        batches: the batch sizes that ``lowering="auto"`` measures at; the geometric mean decides.
        weights: element type of weights.
        verify: compare the file with the module over a quick grid (`cellport.export.verify` runs the full one).

    Returns:
        A report: the manifest, sizes, figures, and what was decided and why.

    Raises:
        ExportError: the model cannot be exported as asked; the message says what to change. An older file at `f` stays.
        EquivalenceError: the file does not compute what the module computes. An older file at `f` stays.
    """
    started = time.perf_counter()
    path = Path(f)
    _check_arguments(model, args, state, state_inputs, lengths, lookup, lowering, batches, weights)
    leaves, structure = argument_leaves(model, args, input_names, dynamic_shapes)
    leaves = _with_rows(model, leaves, structure)
    calls, result = probe(model, leaves, structure, unlike_sizes(model, leaves))
    names = result_names(output_names, result)
    pairs = state_pairs(state, [leaf.name for leaf in leaves], names) if isinstance(state, Mapping) else {}
    copies = Copies(model)
    captured, causal = capture_lifted(
        copies, leaves, structure, names, pairs, calls, states=state == "auto", lengths=lengths == "auto"
    )
    copies.clear()
    folding = passes.LookupTables(lookup)
    notes = list(captured.notes)
    graph = _graph(captured, opset_version, folding, lambda made: notes.extend(_lower(made, lowering, lookup, batches)))
    if lookup is True and not folding.tables:
        raise ExportError("lookup=True, but no embedding feeds a projection whose rows could be computed in advance")
    _finish(graph, captured, state_inputs == "optional")
    manifest = _manifest(graph, captured, causal, folding.tables, model, structure, leaves, state_inputs == "required")
    notes.extend(folding.notes)
    with written(path) as draft:
        _check(graph, draft.parent)
        _save(graph, manifest, draft)
        if verify:
            runners = captured.runner(copies.dtype), captured.runner(torch.float64)
            examples = {leaf.name: leaf.example.numpy() for leaf in captured.inputs}
            figures = compare(manifest, OnnxRunner(draft), *runners, QUICK, examples=examples)
            manifest = replace(manifest, verification=figures)
            _save(graph, manifest, draft)
    nodes = sum(1 for _ in ir.traversal.RecursiveGraphIterator(graph.graph))
    data = external_data(path)
    size = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    return Report(path, size, nodes, manifest, tuple(notes), time.perf_counter() - started)


def _with_rows(model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> list[Leaf]:
    """The leaves, with the number of rows that integers select from."""
    layers = layers_of(model)

    def run(*tensors: torch.Tensor) -> Any:
        with watching(layers, run_cell):
            return run_unchanged(model, tensors, structure)

    rows = selected_rows(run, {leaf.name: leaf.example for leaf in leaves})
    return [replace(leaf, rows=rows.get(leaf.name)) for leaf in leaves]


def _check_arguments(
    model: nn.Module,
    args: object,
    state: object,
    state_inputs: object,
    lengths: object,
    lookup: object,
    lowering: object,
    batches: Sequence[int],
    weights: object,
) -> None:
    if not isinstance(model, nn.Module):
        raise ExportError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")
    if not isinstance(args, tuple):
        raise ExportError(f"args is a {type(args).__name__}; accepted: a tuple of example arguments")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ExportError(f"{training[0]} is in training mode; call model.eval() before exporting")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ExportError(f"{name!r} is on the device {tensor.device}; call model.cpu() before exporting")
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ExportError(
                f"{name!r} has dtype {tensor.dtype}; call model.float() before exporting, and choose the element type "
                "of the file with weights="
            )
    choices: dict[str, tuple[object, tuple[object, ...]]] = {
        "state_inputs": (state_inputs, ("optional", "required")),
        "lengths": (lengths, ("auto", None)),
        "lookup": (lookup, ("auto", True, False)),
        "lowering": (lowering, ("auto", "native", "scan")),
        "weights": (weights, ("float32",)),
    }
    for name, (value, accepted) in choices.items():
        if value not in accepted:
            raise ExportError(f"{name} is {value!r}; accepted: {', '.join(map(repr, accepted))}")
    if not batches or not all(isinstance(each, int) and each > 0 for each in batches):
        raise ExportError(f"batches is {batches!r}; accepted: a list of batch sizes of at least 1")
    if not (state in ("auto", None) or isinstance(state, Mapping)):
        raise ExportError(f"state is {state!r}; accepted: 'auto', None, or a mapping from output name to input name")


def _lower(graph: ir.Model, lowering: Lowering, lookup: object, batches: Sequence[int]) -> list[str]:
    return lower(graph, lowering, tables=lookup is not False, batches=batches)


def _graph(
    captured: Captured, opset_version: int, folding: passes.LookupTables, lowered: Callable[[ir.Model], None]
) -> ir.Model:
    """Trace, translate and optimise."""
    leaves = captured.leaves()
    dimensions = {axis: torch.export.Dim(axis, min=1) for axis in captured.sizes}
    shapes = tuple(
        {position: dimensions[axis] for position, axis in enumerate(leaf.axes) if isinstance(axis, str)}
        for leaf in leaves
    )
    try:
        with quiet(), torch.no_grad():
            torch._dynamo.reset()  # what an earlier export fixed would be fixed in this one
            program = torch.export.export(
                captured.module,
                tuple(captured.example(captured.unlike_sizes())),
                dynamic_shapes=(shapes,),
                strict=False,
            )
    except CellportError:
        raise
    except Exception as error:  # whatever the user's forward and torch's tracer raise
        examples = {leaf.name: leaf.example for leaf in leaves}
        user = [examples[name] for name in captured.arguments]
        looped = looped_step(captured.module.model, user, captured.module.structure)
        raise ExportError(looped or _why_not_traced(error)) from error
    graph = translate(program, opset_version)
    clean: list[ir.passes.InPlacePass] = [
        passes.FoldConstants(),
        passes.RemoveDead(),
        passes.CleanScans(),
        passes.ReverseScans(),
        passes.MoveTransposes(),
        passes.RemoveDead(),
    ]
    ir.passes.PassManager([passes.NameWeights("model."), *clean, *clean[-2:]], steps=1)(graph)
    lowered(graph)
    ir.passes.PassManager([*clean, folding, *clean, passes.CleanScans()], steps=1)(graph)
    inputs = [(leaf.name, leaf.axes) for leaf in leaves]
    outputs = [name for name, _ in captured.outputs] + [each.output for each in captured.states]
    ir.passes.PassManager([passes.SeparateOutputs(), passes.NameTensors(inputs, outputs)], steps=1)(graph)
    return graph


def _why_not_traced(error: Exception) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(error).__name__:
        return f"the model branches or sizes a tensor on the values of its inputs: {first}"
    if "specializ" in text or "Constraints violated" in text:
        return f"the model fixes an axis that dynamic_shapes declares dynamic: {' '.join(text.split())[:500]}"
    return f"torch.export cannot trace the model: {first}"


def _finish(graph: ir.Model, captured: Captured, optional: bool) -> None:
    """Make states and added lengths optional."""
    defaults: dict[str, Default] = {}
    if captured.added_lengths and captured.lengths is not None:
        value = next(leaf for leaf in captured.inputs if leaf.name == captured.lengths).example[:1]
        defaults[captured.lengths] = Default(value.numpy(), 0)
    if optional:
        for each in captured.states:
            defaults[each.input] = Default(each.initial.numpy(), each.axes.index(BATCH))
    if defaults:
        first = next((leaf for leaf in captured.inputs if BATCH in leaf.axes and leaf.name not in defaults), None)
        if first is None:
            raise ExportError(
                f"no input but the states has an axis {BATCH!r}, so that nothing tells the batch size where a state is "
                f"left out; name that axis in dynamic_shapes, or use state_inputs='required'"
            )
        passes.OptionalInputs(defaults, (first.name, first.axes.index(BATCH)))(graph)


def _manifest(
    graph: ir.Model,
    captured: Captured,
    causal: bool,
    tables: Sequence[passes.FoldedTable],
    model: nn.Module,
    structure: Any,
    leaves: Sequence[Leaf],
    required: bool,
) -> Manifest:
    ranges = index_ranges(graph)
    dtypes = {value.name: _dtype(value) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    inputs = tuple(
        InputSpec(
            name=leaf.name,
            dtype=dtypes[leaf.name],
            axes=leaf.axes,
            role="lengths" if leaf.name == captured.lengths else "sequence" if TIME in leaf.axes else "static",
            range=ranges.get(leaf.name),
            optional=captured.added_lengths and leaf.name == captured.lengths,
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
    )
    return Manifest(
        inputs=inputs,
        outputs=outputs,
        states=tuple(_state(each, dtypes, required) for each in captured.states),
        causal=causal,
        tables=tuple(
            TableSpec(name=t.name, vocabulary=t.vocabulary, width=t.width, dtype=t.dtype, bytes=t.bytes) for t in tables
        ),
        source=source,
    )


def _state(state: State, dtypes: Mapping[str | None, str], required: bool) -> StateSpec:
    axes: Axes = state.axes
    return StateSpec(
        input=state.input, output=state.output, dtype=dtypes[state.input], axes=axes, required=required
    ).with_initial(state.initial.numpy())


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy())


def _save(graph: ir.Model, manifest: Manifest, path: Path) -> None:
    """Write the file; large ones in two parts."""
    graph.metadata_props[METADATA_KEY] = manifest.to_json()
    graph.producer_name, graph.producer_version = "cellport", version("cellport")
    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    external = external_data(path).name if size >= _EXTERNAL_DATA_FROM else None
    ir.save(graph, path, external_data=external)


def _check(graph: ir.Model, folder: Path) -> None:
    """Check a graph in full, its weights left on disk: the checker would copy them several times."""
    path = folder / "check.onnx"
    ir.save(graph, path, external_data=external_data(path).name)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    finally:
        path.unlink(missing_ok=True)
        external_data(path).unlink(missing_ok=True)
