"""`verify`: the proof that an exported file equals the module that it was made from."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from cellport.errors import ExportError
from cellport.manifest import InputSpec, Manifest, Verification

from .alone import alone
from .capture import Captured, Copies, capture, unlike_sizes
from .drawn import Draw, with_draw
from .examination import Examination, errors_by_step
from .flat import Lift, results
from .image_sizes import coarseness
from .probing import probe
from .reroll import reroll
from .runs import Array
from .runtime import OnnxRunner
from .signature import Leaf
from .streaming import streamed
from .verification import CaseFigures, Grid, compare, named_cases


@alone
def verify(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    args: tuple[Any, ...] | None = None,
    grid: Grid | None = None,
    progress: Callable[[int, int], None] | None = None,
    draw: Draw | None = None,
    cases: Sequence[Mapping[str, Array]] = (),
) -> Verification:
    """Compare a file with its module over a grid of batches, lengths, initial states and chunkings.

    onnxruntime is compared with a float64 run of the module, with PyTorch's own float32 error as the yardstick; see
    `cellport.export.verification` for the rule and the default grid: batches of 1, 2 and 7 rows; 1, 2, 13 and 64 steps,
    full and ragged with garbage in the padding; default and random initial states; one pass, chunks of 5, and step by
    step.

    Args:
        model: the module with the weights that were exported, in evaluation mode.
        path: the file.
        args: example arguments, as given to `to_onnx`. They tell how the model's arguments are put together, which is
            needed where the manifest cannot tell, such as for named tuples, and the random inputs will be like them.
        grid: which cases to compare.
        progress: called with the cases done and in all.
        draw: as of `to_onnx`.
        cases: inputs by name to compare at besides, such as real ones.

    Returns:
        The number of cases, and for each output the largest errors of onnxruntime and of PyTorch's float32 run.

    Raises:
        EquivalenceError: a case breaks the rule; the message names the worst one.
        ManifestError: the file has no manifest.
        ExportError: the module does not take what the file was made from.
    """
    return examine(model, path, args=args, grid=grid, progress=progress, steps=0, draw=draw, cases=cases).verification


@alone
def examine(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    args: tuple[Any, ...] | None = None,
    grid: Grid | None = None,
    progress: Callable[[int, int], None] | None = None,
    steps: int = 128,
    draw: Draw | None = None,
    cases: Sequence[Mapping[str, Array]] = (),
) -> Examination:
    """Do what `verify` does, and keep the figures of every case and the errors along one long sequence.

    Args:
        model: as of `verify`.
        path: as of `verify`.
        args: as of `verify`.
        grid: as of `verify`.
        progress: as of `verify`.
        steps: length of the long sequence; 0 for none.
        draw: as of `verify`.
        cases: as of `verify`.

    Returns:
        The figures, which can be written as a table, as JSON and as plots.

    Raises:
        EquivalenceError: as of `verify`.
        ManifestError: as of `verify`.
        ExportError: as of `verify`.
    """
    runner = OnnxRunner(Path(path))
    manifest = runner.manifest()
    captured = recapture(model, manifest, args, draw)
    own, float64 = captured.runner(captured.copies.dtype), captured.runner(torch.float64)
    examples = {} if args is None else _examples(manifest, args)
    figures: list[CaseFigures] = []
    verification = compare(
        manifest,
        runner,
        own,
        float64,
        grid or Grid().with_windows(coarseness(model)),
        progress,
        examples=examples,
        record=figures.append,
        exact=_exact(manifest),
        neighbours=captured.neighbours,
        draws=draw,
        given=named_cases(manifest, cases),
    )
    along = errors_by_step(manifest, runner, own, float64, examples, steps) if steps else ()
    return Examination(verification, tuple(figures), along)


def _exact(manifest: Manifest) -> bool:
    return manifest.source is None or manifest.source.exact


def _examples(manifest: Manifest, args: tuple[Any, ...]) -> dict[str, Array]:
    assert manifest.source is not None
    leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    return {name: leaf.numpy() for name, leaf in zip(manifest.source.arguments, leaves, strict=True)}


def recapture(
    model: nn.Module, manifest: Manifest, args: tuple[Any, ...] | None = None, draw: Draw | None = None
) -> Captured:
    """Make the function of named tensors that a file was made from, out of the module and the file's manifest.

    Raises:
        ExportError: the manifest does not tell, or the module does not take those arguments.
    """
    if model.training:
        raise ExportError("the model is in training mode; call model.eval() before verifying")
    source = manifest.source
    if source is None:
        raise ExportError("the manifest does not tell what the file was made from")
    if args is not None:
        structure = pytree.tree_structure(args)
    elif source.structure is not None:
        structure = pytree.treespec_loads(source.structure)
    else:
        raise ExportError("the manifest cannot tell how the model's arguments are put together; pass args=(...)")
    if structure.num_leaves != len(source.arguments):
        raise ExportError(f"args hold {structure.num_leaves} tensors; the file was made from {list(source.arguments)}")
    specs = {each.name: each for each in manifest.inputs}
    states = {each.input: each for each in manifest.states}
    leaves = []
    for name in source.arguments:
        spec = specs.get(name) or states.get(name)
        if spec is None:
            raise ExportError(f"the manifest names an argument {name!r} that is neither an input nor a state")
        shape = [axis if isinstance(axis, int) else 2 for axis in spec.axes]
        rows = spec.range.maximum + 1 if isinstance(spec, InputSpec) and spec.range is not None else None
        leaves.append(Leaf(name, spec.axes, torch.zeros(shape, dtype=getattr(torch, spec.dtype)), rows))
    if args is not None:
        given = pytree.tree_leaves(args)
        leaves = [replace(leaf, example=value.detach()) for leaf, value in zip(leaves, given, strict=True)]
    leaves = with_draw(leaves, draw)
    lift = Lift(source.lifted_states, source.lifted_lengths)
    for path in (*lift.states, *lift.lengths):
        if path not in dict(model.named_modules()):
            raise ExportError(f"the file was made from a model with a cell {path!r}; this model has none")
    lifted = [name for path in lift.states for name in states if name.rpartition(".")[0] == path]
    carried = {name: each.output for name, each in states.items() if name not in (*source.arguments, *lifted)}
    if carried:
        model, leaves, structure = _streamed(model, leaves, structure, carried)
    calls, result = probe(model, leaves, structure, unlike_sizes(model, leaves))
    pairs = {name: states[name].output for name in source.arguments if name in states} | carried
    outputs = _result_order(manifest, pairs, len(results(result)))
    captured = capture(Copies(model), leaves, structure, outputs, pairs, calls, lift)
    if captured.lengths is not None and manifest.lengths is None:
        captured.lengths = None
    return captured


def _streamed(
    model: nn.Module, leaves: list[Leaf], structure: Any, carried: Mapping[str, str]
) -> tuple[nn.Module, list[Leaf], Any]:
    """The module with the states of its loop as arguments, as the file has them."""
    rolled, said = reroll(model, leaves, structure)
    found = streamed(rolled, leaves, structure) if rolled is not None else said
    if isinstance(found, str) or found.states != carried:
        raise ExportError(f"the file has the states {list(carried)}, which are none of this model's loops")
    return found.model, found.leaves, found.structure


def _result_order(manifest: Manifest, pairs: dict[str, str], count: int) -> list[str]:
    """The names of the module's own results in its own order."""
    assert manifest.source is not None
    names = list(manifest.source.results)
    if len(names) != count:
        raise ExportError(f"the file was made from a model with {len(names)} results; this model returns {count}")
    missing = set(pairs.values()) - set(names)
    if missing:
        raise ExportError(f"the manifest names state outputs {sorted(missing)} that the model does not return")
    return names
