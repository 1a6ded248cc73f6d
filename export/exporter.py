"""`to_onnx`: from an nn.Module to a verified, self-describing ONNX file."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import nn

from cellport.errors import ExportError

from . import passes
from .alone import alone
from .arguments import (
    check_arguments,
    check_examples,
    check_module,
    check_pairs,
    check_repeats,
    check_results,
    metric_of,
)
from .capture import Captured, Copies, unlike_sizes
from .constants import numbers_of
from .describing import describe_graph
from .drawn import Draw, with_draw
from .graphing import FixedAxisError, check, graph_of_module, make_optional, save
from .image_sizes import coarseness
from .lifting import capture_lifted
from .lowering import Lowering
from .probing import probe, run_unchanged
from .report import Report
from .reroll import reroll
from .runs import Array, Runner
from .runtime import OnnxRunner
from .selections import selected_rows
from .shrinking import Shrinking, TableType, WeightType
from .signature import Leaf, argument_leaves, result_names, state_pairs
from .size_proof import padded_sizes
from .streaming import Streamed, streamed
from .unfolded import why_unfolded
from .union_proof import Union, proved_union
from .verification import QUICK, compare, named_cases
from .watching import layers_of, run_cell, watching
from .writing import external_data, written


@alone
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
    tables: TableType = "float32",
    table_block: int | None = None,
    counts: Mapping[str, Array | str | os.PathLike[str]] | None = None,
    weights: WeightType = "float32",
    calibration: Sequence[Mapping[str, Array]] = (),
    verify: bool = True,
    draw: Draw | None = None,
    cases: Sequence[Mapping[str, Array]] = (),
    evaluate: Callable[[Runner], float] | None = None,
) -> Report:
    """Export a recurrent model to an ONNX file that describes itself, and prove that it computes the same.

    What this function shares with `torch.onnx.export` has its name and meaning there. Exports of several threads run
    one after another; while one runs, torch's default dtype may be float64 for a time, in every thread.

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
        tables: element type of lookup tables and embeddings: ``"float32"``, ``"float16"``, or ``"int8"`` with a scale a
            row. Smaller ones are measured against the module and not held to the rule of equivalence.
        table_block: columns of an int8 table that share a scale; None for whole rows.
        counts: how often each token occurs, by input name: integers [vocabulary], or a file of them
            (`passes.read_counts`). Tokens that never occur share one row.
        weights: element type of weights: ``"float32"``, ``"float16"`` (stored so, and widened when the file is loaded),
            or ``"int8"`` with a scale a row and activations that are quantised as they come.
        calibration: inputs by name, without padding, that give int8 products a fixed range of activations; states
            and lengths may be left out.
        verify: compare the file with the module over a quick grid (`cellport.export.verify` runs the full one). Without
            it nothing sees a branch of forward on a size of 1, which the tracer takes for any other.
        draw: draws inputs that no one can draw one by one, such as indices and schedules: a function of a
            `numpy.random.Generator` and the wanted size of each named axis, which gives arrays by input name, for all
            inputs or for some. Without it integers are drawn like those of `args`.
        cases: inputs by name to compare at besides, such as real ones.
        evaluate: the task's metric: a function of a model, which maps arrays by input name to arrays by output name,
            to a number. The report holds it for PyTorch and for the file.

    Returns:
        A report: the manifest, sizes, figures, and what was decided and why.

    Raises:
        ExportError: the model cannot be exported as asked; the message says what to change. An older file at `f` stays.
        EquivalenceError: the file does not compute what the module computes. An older file at `f` stays.
    """
    started = time.perf_counter()
    chosen = {
        "input_names": input_names,
        "output_names": output_names,
        "state": state,
        "state_inputs": state_inputs,
        "lengths": lengths,
        "lookup": lookup,
        "lowering": lowering,
        "batches": batches,
        "table_block": table_block,
        "calibration": calibration,
        "cases": cases,
        "draw": draw,
        "verify": verify,
        "evaluate": evaluate,
    }
    check_arguments(args, f, opset_version, chosen)
    check_module(model)
    path = Path(f)
    shrinking = Shrinking(
        tables=tables, block=table_block, counts=counts or {}, weights=weights, calibration=calibration
    )
    leaves, structure = argument_leaves(model, args, input_names, dynamic_shapes)
    check_examples(leaves)
    special = numbers_of(model)
    leaves = [replace(leaf, special=special) for leaf in with_draw(_with_rows(model, leaves, structure), draw)]
    check_repeats(model, leaves, structure)
    folding = passes.LookupTables(lookup)
    form: Lowering = "scan" if weights == "int8" and lowering == "auto" else lowering

    def captured_of(
        model: nn.Module, leaves: Sequence[Leaf], structure: Any, carried: Mapping[str, str]
    ) -> tuple[Captured, bool]:
        calls, result = probe(model, leaves, structure, unlike_sizes(model, leaves))
        own = result[: -len(carried)] if carried else result
        names = [*result_names(output_names, own), *carried.values()]
        given = [leaf.name for leaf in leaves]
        pairs = state_pairs(state, given, names) if isinstance(state, Mapping) else dict(carried)
        check_results(names, result)
        check_pairs(pairs, leaves, names, result)
        copies = Copies(model)
        captured, causal = capture_lifted(
            copies, leaves, structure, names, pairs, calls, states=state == "auto", lengths=lengths == "auto"
        )
        copies.clear()
        return captured, causal

    def graph_of(captured: Captured) -> tuple[ir.Model, list[str]]:
        return graph_of_module(captured, opset_version, folding, form, lookup, batches)

    captured, causal = captured_of(model, leaves, structure, {})
    try:
        graph, lowered = graph_of(captured)
    except FixedAxisError as error:
        rolled, said = reroll(model, leaves, structure)
        if rolled is None:
            raise ExportError(f"{error}; it could not be made a recurrence: {said}") from error
        carried = streamed(rolled, leaves, structure) if state == "auto" else None
        if isinstance(carried, Streamed):
            try:
                captured, causal = captured_of(carried.model, carried.leaves, carried.structure, carried.states)
            except ExportError as failure:  # such as of a state that holds indices, of which not all are accepted
                carried = str(failure)
        notes = [carried] if isinstance(carried, str) else [] if causal else [*captured.notes[-1:]]
        if not isinstance(carried, Streamed) or not causal:
            captured, causal = captured_of(rolled, leaves, structure, {})
        graph, lowered = graph_of(captured)
        lowered += [said, *(f"states left inside: {note}" for note in notes)]
    if lookup is True and not folding.tables:
        raise ExportError(
            "lookup=True, but no embedding feeds a projection whose rows could be computed in advance"
            f"{why_unfolded(graph)}; accepted are lookup='auto' and False, which leave embeddings as they are"
        )
    with written(path) as draft:
        wide = shrinking.keep(graph, draft.parent)
        make_optional(graph, captured, state_inputs == "optional")
        shrinking.run(graph, captured)  # which has to see the defaults of states
        made = shrinking.tables_of(folding.tables)
        examples = {leaf.name: leaf.example.numpy() for leaf in captured.inputs}
        sizes, proved = padded_sizes(
            captured.runner(torch.float64),
            {leaf.name: leaf.axes for leaf in captured.inputs},
            dict(captured.outputs),
            examples,
            coarseness(model),
        )
        union, united = proved_union(
            captured.runner(torch.float64),
            {leaf.name: leaf.axes for leaf in captured.inputs},
            dict(captured.outputs),
            examples,
            draw,
            stateful=bool(captured.states),
        )
        if union.axes and shrinking.shared_ranges:
            union, united = Union(union.indices), "graphs run apart: int8 products share the range of their values"
        manifest = describe_graph(
            graph,
            captured,
            causal,
            made,
            model,
            structure,
            leaves,
            state_inputs == "required",
            shrinking.source(),
            sizes,
            union,
        )
        check(graph, draft.parent)
        save(graph, manifest, draft)
        own = captured.runner(captured.copies.dtype)
        notes = [*captured.notes, *lowered, *filter(None, [proved, united]), *folding.notes, *shrinking.notes]
        if verify:
            figures = compare(
                manifest,
                OnnxRunner(draft),
                own,
                captured.runner(torch.float64),
                QUICK.with_windows(coarseness(model)),
                examples=examples,
                exact=shrinking.exact,
                only=shrinking.only,
                neighbours=captured.neighbours,
                draws=draw,
                given=named_cases(manifest, cases),
            )
            manifest = replace(manifest, verification=figures)
            save(graph, manifest, draft)
        metric = None if evaluate is None else (metric_of(evaluate, own), metric_of(evaluate, OnnxRunner(draft)))
        if wide is not None:
            notes += shrinking.compare_speed(wide, draft, manifest, examples, draw)
    nodes = sum(1 for _ in ir.traversal.RecursiveGraphIterator(graph.graph))
    data = external_data(path)
    size = path.stat().st_size + (data.stat().st_size if data.exists() else 0)
    return Report(path, size, nodes, manifest, tuple(notes), time.perf_counter() - started, metric)


def _with_rows(model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> list[Leaf]:
    """The leaves, with the number of rows that integers select from."""
    layers = layers_of(model)

    def run(*tensors: torch.Tensor) -> Any:
        with watching(layers, run_cell):
            return run_unchanged(model, tensors, structure)

    rows = selected_rows(run, {leaf.name: leaf.example for leaf in leaves})
    return [replace(leaf, rows=rows.get(leaf.name)) for leaf in leaves]
