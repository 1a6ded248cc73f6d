"""ONNX files that cellport did not export: a draft of their manifest, and a check that they may be run in chunks.

Nothing in a foreign file says which output is the next value of which input, or which axis is time. Names and shapes
suggest it. The draft says why it takes each tensor for what it does, and is to be read before it is used; the check of
a chunked run against one pass then shows whether it is true.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir

from cellport.errors import EquivalenceError, ExportError
from cellport.manifest import BATCH, TIME, Axes, InputSpec, Manifest, OutputSpec, Role, StateSpec

from .ranges import index_ranges
from .runs import Contract, in_chunks, valid_part
from .runtime import OnnxRunner
from .verification import Case, feeds

__all__ = ["ChunkFigures", "Draft", "check_chunks", "draft", "side_car"]

_BATCH_WORDS = frozenset(["batch", "batchsize", "b", "n", "bs", "bsz"])
_TIME_WORDS = frozenset(
    ["time", "seq", "sequence", "seqlen", "steps", "step", "frames", "len", "length", "t", "tokens"]
)
_LENGTH_WORDS = frozenset(["lengths", "length", "len", "lens", "seqlens", "seqlen"])
_BEFORE = frozenset(["in", "input", "prev", "previous", "past", "initial", "init", "old", "0", "last"])
_AFTER = frozenset(["out", "output", "new", "next", "present", "updated", "final", "n", "1", "t"])
_ENOUGH = 0.6
_CLOSE = 1e-5


@dataclass(frozen=True)
class Draft:
    """A manifest that was guessed, and why.

    Attributes:
        manifest: the draft.
        reasons: one sentence for each guess.
    """

    manifest: Manifest
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ChunkFigures:
    """How far the outputs of runs in chunks were from those of one pass.

    Attributes:
        cases: number of comparisons.
        differences: the largest difference of each output, by its name.
    """

    cases: int
    differences: dict[str, float]


def side_car(path: Path) -> Path:
    """Where the manifest of a foreign file is kept: ``<stem>.manifest.json`` beside it."""
    return path.with_name(f"{path.stem}.manifest.json")


def draft(path: str | Path) -> Draft:
    """Guess the manifest of an ONNX file.

    A state is an output and an input of the same element type, rank and fixed sizes whose names say the same but for
    words such as `past` and `present`, `in` and `out`, `0` and `n`. Axes are called batch and time by their names, or,
    where these say nothing, by their order.

    Raises:
        ExportError: the file cannot be read, or has an input or output without a shape.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir each raise their own
        raise ExportError(f"cannot read {str(path)!r} as ONNX: {error}") from error
    initialised = set(model.graph.initializers)
    inputs = [value for value in model.graph.inputs if value.name not in initialised]
    optional = [value for value in model.graph.inputs if value.name in initialised]
    outputs = list(model.graph.outputs)
    for value in (*inputs, *optional, *outputs):
        if value.shape is None or value.dtype is None:
            raise ExportError(f"{value.name!r} of {str(path)!r} has no shape; run ONNX shape inference first")
    reasons: list[str] = []
    pairs = _pairs([*inputs, *optional], outputs, reasons)
    names = _AxisNames(inputs, [pair[0] for pair in pairs], reasons)
    states = []
    for before, after in pairs:
        axes = names.of(before, state=True)
        if BATCH not in axes:
            reasons.append(f"{before.name!r} is left an ordinary input: no axis of {_shape(before)} can be the batch")
            continue
        required = before.name not in initialised
        state = StateSpec(input=_name(before), output=_name(after), dtype=_dtype(before), axes=axes, required=required)
        states.append(state if required else state.with_initial(_initial(before)))
    carried = {state.input for state in states} | {state.output for state in states}
    ranges = index_ranges(model)
    manifest = Manifest(
        inputs=tuple(
            _input(value, names, ranges.get(_name(value)), value in optional, reasons)
            for value in (*inputs, *optional)
            if value.name not in carried
        ),
        outputs=tuple(_output(value, names) for value in outputs if value.name not in carried),
        states=tuple(states),
    )
    return Draft(manifest, tuple(reasons))


def _pairs(
    inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], reasons: list[str]
) -> list[tuple[ir.Value, ir.Value]]:
    """Outputs that are the next value of an input, in the order of the inputs."""
    scored = sorted(
        (
            (-_likeness(_name(before), _name(after)), i, j)
            for i, before in enumerate(inputs)
            for j, after in enumerate(outputs)
            if _fits(before, after)
        ),
    )
    taken: dict[int, int] = {}
    for score, i, j in scored:
        if -score < _ENOUGH or i in taken or j in taken.values():
            continue
        taken[i] = j
        told = f"{_name(outputs[j])!r} is taken for the next value of {_name(inputs[i])!r}"
        reasons.append(f"{told}: both are {_dtype(inputs[i])} {_shape(inputs[i])}, names alike to {-score:.0%}")
    return [(inputs[i], outputs[j]) for i, j in sorted(taken.items())]


def _fits(before: ir.Value, after: ir.Value) -> bool:
    """Whether two tensors can be one state at two times."""
    if before.dtype != after.dtype or len(before.shape or ()) != len(after.shape or ()) or not before.shape:
        return False
    dimensions = [*before.shape, *(after.shape or ())]
    if any(_words(_symbol(each)) & _TIME_WORDS for each in dimensions):
        return False
    return all(
        a == b if isinstance(a, int) and isinstance(b, int) else isinstance(a, int) == isinstance(b, int)
        for a, b in zip(before.shape, after.shape or (), strict=True)
    )


def _likeness(before: str, after: str) -> float:
    """1 if two names are the same but for words of before and after, else how alike their rests are, below 0.9."""
    left, right = _rest(before, _BEFORE | _AFTER), _rest(after, _BEFORE | _AFTER)
    if left == right and before != after:
        return 1.0
    return 0.9 * SequenceMatcher(None, "".join(left), "".join(right)).ratio()


def _rest(name: str, marks: frozenset[str]) -> list[str]:
    parts = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    if len(parts) == 1 and len(parts[0]) == 2 and parts[0][1] in "nt":
        parts = list(parts[0])  # hn, cn
    kept = [part for part in parts if part not in marks]
    return kept or parts


class _AxisNames:
    """What each dynamic axis is called in the manifest."""

    def __init__(self, inputs: Sequence[ir.Value], states: Sequence[ir.Value], reasons: list[str]) -> None:
        self._known: dict[str, str] = {}
        symbols = dict.fromkeys(symbol for value in (*inputs, *states) for symbol in map(_symbol, value.shape or ()))
        for symbol in filter(None, symbols):
            words = _words(symbol)
            if words & _BATCH_WORDS and BATCH not in self._known.values():
                self._known[symbol] = BATCH
            elif words & _TIME_WORDS and TIME not in self._known.values():
                self._known[symbol] = TIME
        for value in states:
            dynamic = [_symbol(each) for each in value.shape or () if not isinstance(each, int)]
            if len(dynamic) == 1 and dynamic[0] and BATCH not in self._known.values():
                self._known[dynamic[0]] = BATCH
        for value in inputs:
            free = [each for each in map(_symbol, value.shape or ()) if each and each not in self._known]
            for wanted in (BATCH, TIME):
                if free and wanted not in self._known.values():
                    self._known[free.pop(0)] = wanted
        for symbol, name in self._known.items():
            if symbol != name:
                reasons.append(f"the axis {symbol!r} is taken for {name!r}")

    def of(self, value: ir.Value, *, state: bool = False) -> Axes:
        """The axes of a tensor."""
        axes: list[int | str] = []
        for position, each in enumerate(value.shape or ()):
            symbol = _symbol(each)
            if isinstance(each, int):
                axes.append(each)
            elif symbol:
                axes.append(self._known.get(symbol, symbol))
            else:
                axes.append(f"{_name(value)}_axis_{position}")
        dynamic = [position for position, axis in enumerate(axes) if isinstance(axis, str)]
        if BATCH not in axes and len(dynamic) == 1 and state:
            axes[dynamic[0]] = BATCH
        if BATCH not in axes and not state and dynamic and _unnamed(value, dynamic[0]):
            axes[dynamic[0]] = BATCH
            if TIME not in axes and len(dynamic) > 1 and _unnamed(value, dynamic[1]):
                axes[dynamic[1]] = TIME
        return tuple(axes)


def _unnamed(value: ir.Value, position: int) -> bool:
    return not _symbol((value.shape or ())[position])


def _input(value: ir.Value, names: _AxisNames, range_: object, optional: bool, reasons: list[str]) -> InputSpec:
    axes = names.of(value)
    role: Role = "sequence" if TIME in axes else "static"
    if axes == (BATCH,) and _dtype(value) == "int64" and _words(_name(value)) & _LENGTH_WORDS:
        role = "lengths"
        reasons.append(f"{_name(value)!r} is taken for the valid steps of each row")
    spec = InputSpec(name=_name(value), dtype=_dtype(value), axes=axes, role=role, optional=optional)
    return replace(spec, range=range_) if range_ is not None else spec  # type: ignore[arg-type]


def _output(value: ir.Value, names: _AxisNames) -> OutputSpec:
    axes = names.of(value)
    chunking = "concatenate" if TIME in axes else "last"
    return OutputSpec(name=_name(value), dtype=_dtype(value), axes=axes, chunking=chunking)  # type: ignore[arg-type]


def _initial(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _words(name: str | None) -> set[str]:
    lowered = (name or "").lower()
    return set(re.findall(r"[a-z]{2,}", lowered)) | {re.sub(r"[^a-z]", "", lowered)}


def _symbol(dimension: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dimension, int) else dimension.value


def _name(value: ir.Value) -> str:
    return cast(str, value.name)


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy())


def _shape(value: ir.Value) -> str:
    return (
        "["
        + ", ".join(str(each) if isinstance(each, int) else _symbol(each) or "?" for each in value.shape or ())
        + "]"
    )


def check_chunks(path: str | Path, manifest: Manifest) -> ChunkFigures:
    """Run a file in one pass and in chunks with carried states, and compare.

    The file itself is the truth: batches of 1, 2 and 7 rows, 2, 13 and 64 steps, random initial states, chunks of 5
    steps and step by step, ragged lengths if there is an input of lengths.

    Raises:
        EquivalenceError: an output differs by more than 1e-5 · max(1, its largest value); the message names the worst.
        ExportError: the manifest has no state or no time axis, or the file does not run.
    """
    contract = Contract.of(manifest)
    if not manifest.states:
        raise ExportError("the manifest names no state, so there is nothing that a chunk could hand to the next")
    if not any(TIME in each.axes for each in manifest.inputs):
        raise ExportError("no input of the manifest has an axis 'time', so there is nothing to cut")
    run = OnnxRunner(path)
    differences: dict[str, float] = {}
    worst: tuple[float, str] | None = None
    cases = 0
    for number, (batch, steps, chunk) in enumerate(
        (b, t, c) for b in (1, 2, 7) for t in (2, 13, 64) for c in (5, 1) if c < t
    ):
        case = Case(batch, steps, manifest.lengths is not None and number % 2 == 1, True, chunk, number)
        clean, _ = feeds(manifest, case)
        lengths = clean.get(contract.lengths) if contract.lengths is not None else None
        whole = run(clean)
        pieces = in_chunks(run, contract, clean, [*range(0, steps, chunk), steps])
        cases += 1
        for name, axes in (dict(contract.outputs) | dict(contract.states.values())).items():
            truth, found = (valid_part(each[name], axes, lengths) for each in (whole, pieces))
            if truth.shape != found.shape:
                raise EquivalenceError(
                    f"output {name!r} has shape {list(found.shape)} in chunks, {list(truth.shape)} in one pass"
                )
            difference = float(np.abs(found.astype(np.float64) - truth).max(initial=0.0))
            differences[name] = max(difference, differences.get(name, 0.0))
            bound = _CLOSE * max(1.0, float(np.abs(truth).max(initial=0.0)))
            if not difference <= bound and (worst is None or difference / bound > worst[0]):
                worst = (
                    difference / bound,
                    f"output {name!r} differs by {difference:.3g} at {case}; {bound:.3g} is allowed",
                )
    if worst is not None:
        raise EquivalenceError(worst[1])
    return ChunkFigures(cases, differences)
