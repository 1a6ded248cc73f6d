"""From a captured module to an ONNX graph: traced, translated, optimised, with optional inputs; and onto disk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
import torch
from torch.fx.experimental import _config as fx_config

from cellport.errors import CellportError, ExportError
from cellport.manifest import BATCH, METADATA_KEY, Manifest

from . import passes
from .capture import Captured
from .image_sizes import coarseness
from .lowering import Lowering, lower
from .passes.optional_inputs import Default
from .probing import looped_step
from .translate import quiet, translate
from .writing import external_data

__all__ = ["FixedAxisError", "check", "graph_of_module", "make_optional", "save"]

_SIZES = (1, 2, 3, 40, 300)
_LONGEST = 1200
"""Up to which size of an axis the numbers in a module's code are tried."""

_EXTERNAL_DATA_FROM = 64_000_000
"""Bytes of weights and tables from which they go beside the file, where processes share one copy of them."""


class FixedAxisError(ExportError):
    """The module computes with a fixed size of an axis that is to be dynamic, as a Python loop over time does."""


def graph_of_module(
    captured: Captured,
    opset_version: int,
    folding: passes.LookupTables,
    lowering: Lowering,
    tables: bool | Literal["auto"],
    batches: Sequence[int],
) -> tuple[ir.Model, list[str]]:
    """Trace, translate and optimise.

    Args:
        captured: the module.
        opset_version: of the graph.
        folding: the pass that makes lookup tables.
        lowering: the form of recurrent nodes.
        tables: whether lookup tables are made; ``"auto"`` makes those that are worth their bytes.
        batches: batch sizes to choose the form for.

    Returns:
        The graph, and what was decided about its recurrent nodes.

    Raises:
        ExportError: the module cannot be traced or translated; the message names what stands in the way.
    """
    leaves = captured.leaves()
    coarse = coarseness(captured.module)
    least = coarse + 1 if coarse > 1 else 1
    dimensions = {axis: torch.export.Dim(axis, min=1 if axis == BATCH else least) for axis in captured.sizes}
    shapes = tuple(
        {position: dimensions[axis] for position, axis in enumerate(leaf.axes) if isinstance(axis, str)}
        for leaf in leaves
    )

    def traced() -> torch.export.ExportedProgram:
        with quiet(), torch.no_grad():
            torch._dynamo.reset()  # what an earlier export fixed would be fixed in this one
            return torch.export.export(
                captured.module,
                tuple(captured.example(captured.unlike_sizes())),
                dynamic_shapes=(shapes,),
                strict=False,
            )

    try:
        try:
            program = traced()
        except Exception as error:
            if isinstance(error, CellportError) or not _fixes_an_axis(error):
                raise
            # A size that is one less than an axis may be 1, where the tracer sees a case of its own, which it mostly is
            # not.
            with _oblivious():
                program = traced()
            if not _is_the_module(program, captured):
                raise
    except CellportError:
        raise
    except Exception as error:  # whatever the user's forward and torch's tracer raise
        examples = {leaf.name: leaf.example for leaf in leaves}
        user = [examples[name] for name in captured.arguments]
        looped = looped_step(captured.module.model, user, captured.module.structure)
        kind = FixedAxisError if looped or _fixes_an_axis(error) else ExportError
        raise kind(looped or _why_not_traced(error)) from error
    graph = translate(program, opset_version)
    clean: list[ir.passes.InPlacePass] = [
        passes.FoldConstants(),
        passes.InferReshapes(),
        passes.RemoveDead(),
        passes.CleanScans(),
        passes.ReverseScans(),
        passes.MoveTransposes(),
        passes.RemoveDead(),
    ]
    ir.passes.PassManager([passes.NameWeights("model."), *clean, *clean[-2:]], steps=1)(graph)
    notes = lower(graph, lowering, tables=tables, batches=batches)
    split = passes.SplitSums(tables)
    sums = [split, passes.RemoveDead(), passes.MoveTransposes(), split]
    last = [passes.CleanScans(), passes.HoistInvariants(), passes.NarrowScans(), passes.RemoveDead()]
    ir.passes.PassManager([*clean, *sums, *clean, folding, *clean, *last], steps=1)(graph)
    inputs = [(leaf.name, leaf.axes) for leaf in leaves]
    outputs = [name for name, _ in captured.outputs] + [each.output for each in captured.states]
    ir.passes.PassManager([passes.SeparateOutputs(), passes.NameTensors(inputs, outputs)], steps=1)(graph)
    return graph, notes


@contextmanager
def _oblivious() -> Iterator[None]:
    """Let the tracer take a size of 1 for any other."""
    before = fx_config.backed_size_oblivious
    fx_config.backed_size_oblivious = True
    try:
        yield
    finally:
        fx_config.backed_size_oblivious = before


def _is_the_module(program: torch.export.ExportedProgram, captured: Captured) -> bool:
    """Compare a traced module with the module itself over other sizes, also around the numbers in its code."""
    leaves = captured.leaves()
    numbers = {int(each) for leaf in leaves for each in leaf.special if each == int(each) and 1 < each <= _LONGEST}
    around = sorted({number + change for number in numbers for change in (-1, 0, 1)} | set(_SIZES))
    axes = list(captured.sizes)
    cases = [{**captured.unlike_sizes(), axis: size} for axis in axes for size in around]
    rng = torch.Generator().manual_seed(0)
    graph = program.module(check_guards=False)
    for sizes in cases:
        values = [
            value + 0.1 * torch.randn(value.shape, generator=rng, dtype=value.dtype)
            if value.is_floating_point()
            else value
            for value in captured.example(sizes)
        ]
        with torch.no_grad():
            try:
                truth = captured.module(*values)
            except Exception:  # the module does not run at this size
                continue
            try:
                found = graph(*values)
            except Exception:  # whatever a graph fails with that was made for other sizes
                return False
        for one, other in zip(truth, found, strict=True):
            if one.shape != other.shape or not torch.allclose(one, other, 1e-4, 1e-4, equal_nan=True):
                return False
    return True


def _fixes_an_axis(error: Exception) -> bool:
    return "specializ" in str(error) or "Constraints violated" in str(error)


def _why_not_traced(error: Exception) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(error).__name__:
        return f"the model branches or sizes a tensor on the values of its inputs: {first}"
    if _fixes_an_axis(error):
        reasons = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("- ")] or [first]
        return (
            "the model fixes an axis that dynamic_shapes declares dynamic, or does not compute the same for every size "
            f"of it from 1 on: {reasons[0]:.500}"
        )
    return f"torch.export cannot trace the model: {first}"


def make_optional(graph: ir.Model, captured: Captured, optional: bool) -> None:
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


def save(graph: ir.Model, manifest: Manifest, path: Path) -> None:
    """Write the file; large ones in two parts."""
    graph.metadata_props[METADATA_KEY] = manifest.to_json()
    graph.producer_name, graph.producer_version = "cellport", version("cellport")
    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    external = external_data(path).name if size >= _EXTERNAL_DATA_FROM else None
    ir.save(graph, path, external_data=external)


def check(graph: ir.Model, folder: Path) -> None:
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
