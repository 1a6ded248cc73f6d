"""The proof that an exported file computes what the PyTorch module computes.

The truth is a float64 run of the module. For every output of every case, the largest absolute error of onnxruntime
against that truth may be at most four times that of PyTorch's own float32 run, plus 1e-6 · max(1, largest absolute
truth). The bound follows the module: one that loses digits in PyTorch may lose as many in ONNX, and no more.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cellport.errors import CellportError, EquivalenceError, ExportError
from cellport.manifest import BATCH, TIME, InputSpec, Manifest, OutputFigures, Verification

from .drawing import draw, draw_state
from .drawn import Draw, draw_all
from .image_sizes import ImageSizes
from .runs import Array, Arrays, Contract, Runner, crowded, in_chunks, valid_part

_OTHER_SIZES = (2, 1, 5)
_NONE: Mapping[str, Array] = {}
FACTOR = 4.0
SLACK = 1e-6
_CROWD = 16
"""Rows from which on products take their sums as those of many rows do."""
_SAME = 1e-9
"""Of two results in float64 that are the same but for the order of sums."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        batch: rows.
        steps: size of the time axis.
        ragged: rows of different lengths, zero among them, with garbage after them.
        random_state: random instead of default initial states.
        chunk: steps of each run; None for one pass.
        seed: of the inputs.
        given: which of the user's own inputs it is, if it is one of these.
    """

    batch: int
    steps: int
    ragged: bool
    random_state: bool
    chunk: int | None
    seed: int
    given: int | None = None

    def __str__(self) -> str:
        if self.given is not None:
            return f"given case {self.given}"
        parts = [f"batch {self.batch}", f"{self.steps} steps"]
        parts.append("ragged lengths" if self.ragged else "full lengths")
        parts.append("random initial state" if self.random_state else "default initial state")
        parts.append("one pass" if self.chunk is None else f"chunks of {self.chunk}")
        return ", ".join(parts)


@dataclass(frozen=True)
class CaseFigures:
    """The figures of one output at one case.

    Attributes:
        case: the case.
        output: name of the output.
        error: largest absolute error of onnxruntime against float64; for integers, how many differ.
        torch_error: PyTorch's own.
        bound: what is allowed.
    """

    case: Case
    output: str
    error: float
    torch_error: float
    bound: float

    @property
    def share(self) -> float:
        """The error as a share of what is allowed."""
        return self.error / self.bound if self.bound else (np.inf if self.error else 0.0)


@dataclass(frozen=True)
class Grid:
    """The cases to compare: every combination of the first three fields that the model's manifest allows.

    Attributes:
        batches: numbers of rows.
        steps: sizes of the time axis.
        chunks: steps of each run; None for one pass.
        seed: of the inputs of the first case.
        others: sizes that all other axes take in turn.
    """

    batches: tuple[int, ...] = (1, 2, 7)
    steps: tuple[int, ...] = (1, 2, 13, 64)
    chunks: tuple[int | None, ...] = (None, 5, 1)
    seed: int = 0
    others: tuple[int, ...] = _OTHER_SIZES

    def with_windows(self, coarse: int) -> "Grid":
        """The grid for a model whose results have a position for `coarse` of an image: with one of them and several."""
        if coarse == 1:
            return self
        return replace(self, batches=self.batches * 2, others=(1, 2, coarse + 1, 2 * coarse + 1))

    def cases(self, manifest: Manifest) -> Iterator[Case]:
        """Enumerate the cases that make sense for a model."""
        timed = any(TIME in each.axes for each in manifest.inputs)
        steps = self.steps if timed else (1,)
        ragged = (False, True) if manifest.lengths is not None else (False,)
        random_state = (False, True) if manifest.states else (False,)
        chunks = self.chunks if manifest.causal and timed else (None,)
        combinations = itertools.product(self.batches, steps, ragged, random_state, chunks)
        for number, (batch, length, uneven, random, chunk) in enumerate(combinations):
            if chunk is None or chunk < length:
                yield Case(batch, length, uneven, random, chunk, self.seed + number)


QUICK = Grid(batches=(1, 3), steps=(1, 9), chunks=(None, 4, 1))
"""What `to_onnx` runs."""


def compare(
    manifest: Manifest,
    onnx: Runner,
    float32: Runner,
    float64: Runner,
    grid: Grid,
    progress: Callable[[int, int], None] | None = None,
    examples: Mapping[str, Array] = _NONE,
    record: Callable[[CaseFigures], None] | None = None,
    exact: bool = True,
    only: Mapping[str, Array] = _NONE,
    neighbours: Callable[[], Sequence[Runner]] = tuple,
    draws: Draw | None = None,
    given: Sequence[Arrays] = (),
) -> Verification:
    """Compare a file with the module it was made from.

    Args:
        manifest: the file's manifest.
        onnx: runs the file.
        float32: runs the module in float32.
        float64: runs the module in float64.
        grid: the cases.
        progress: called with the cases done and in all.
        examples: accepted values by input name, which random inputs are to be like.
        record: called with the figures of each case and output.
        exact: whether the rule must hold; a file with smaller weights or tables is only measured.
        only: the integers to draw for an input, instead of those of its range.
        neighbours: makes runs of the module in float32 with weights moved by a rounding, for a second look.
        draws: draws inputs that must fit each other.
        given: further inputs to compare at, each in one pass.

    Returns:
        The largest errors of each output.

    Raises:
        EquivalenceError: a case breaks the rule; the message names the worst.
        ExportError: the module or the file does not run at a case.
    """
    contract = Contract.of(manifest)
    cases = [*grid.cases(manifest), *(Case(0, 0, False, False, None, 0, number) for number in range(len(given)))]
    figures: dict[str, OutputFigures] = {}
    worst: tuple[float, str] | None = None
    looked = 0
    for number, case in enumerate(cases):
        own_feeds = None if case.given is None else given[case.given]
        drawn = (own_feeds, own_feeds) if own_feeds is not None else None
        drawn = drawn or feeds(manifest, case, examples, only, draws, grid.others)
        errors = _errors(contract, onnx, float32, float64, case, drawn)
        others: list[dict[str, tuple[float, float, float, bool]]] = []
        if exact and any(
            not error <= _bound(own, largest, integer) for error, own, largest, integer in errors.values()
        ):
            looked += 1
            same = (drawn[0], drawn[0])
            others = [_errors(contract, each, float32, float64, case, same, whole=True) for each in neighbours()]
            if (crowd := _crowd_errors(contract, float32, float64, case, same)) is not None:
                others.append(crowd)
        for name, (error, own, largest, integer) in errors.items():
            seen = figures.get(name)
            figures[name] = OutputFigures(
                name=name,
                onnx_error=max(error, seen.onnx_error if seen else 0.0),
                torch_error=max(own, seen.torch_error if seen else 0.0),
                largest_truth=max(largest, seen.largest_truth if seen else 0.0),
            )
            bound = _bound(max([own, *(each[name][0] for each in others)]), largest, integer)
            found = CaseFigures(case, name, error, own, bound)
            if record is not None:
                record(found)
            if not error <= bound and (worst is None or not found.share <= worst[0]):
                message = (
                    f"output {name!r} is off by {error:.3g} at {case}; the float64 truth allows {bound:.3g} "
                    f"(PyTorch's own float32 error is {own:.3g}, the largest value {largest:.3g})"
                )
                worst = (found.share, message)
        if progress is not None:
            progress(number + 1, len(cases))
    if worst is not None and exact:
        raise EquivalenceError(worst[1])
    return Verification(cases=len(cases), outputs=tuple(figures.values()), second_looks=looked)


def _bound(own: float, largest: float, integer: bool) -> float:
    return 0.0 if integer else FACTOR * own + SLACK * max(1.0, largest)


def _errors(
    contract: Contract,
    onnx: Runner,
    float32: Runner,
    float64: Runner,
    case: Case,
    drawn: tuple[Arrays, Arrays],
    whole: bool = False,
) -> dict[str, tuple[float, float, float, bool]]:
    """For each output: onnxruntime's error, PyTorch's, the largest truth, and whether it must be exact."""
    clean, garbage = drawn
    lengths = clean.get(contract.lengths) if contract.lengths is not None else None
    try:
        truth, own = float64(clean), float32(clean)
    except CellportError:
        raise
    except Exception as cause:  # whatever the user's forward raises
        raise ExportError(f"the model does not run at {case}: {type(cause).__name__}: {cause}") from cause
    if case.chunk is None or whole:
        found = onnx(garbage)
    else:
        boundaries = [*range(0, case.steps, case.chunk), case.steps]
        found = in_chunks(onnx, contract, garbage, boundaries)
    axes = dict(contract.outputs) | dict(contract.states.values())
    result = {}
    for name, value in truth.items():
        exact = value.dtype.kind not in "fc"
        parts = [valid_part(each[name], axes[name], lengths) for each in (truth, own, found)]
        if parts[2].shape != parts[0].shape:
            raise EquivalenceError(
                f"output {name!r} has shape {list(parts[2].shape)} at {case}; PyTorch gives {list(parts[0].shape)}"
            )
        if exact:
            # Where float32 itself decides otherwise than float64 (a tie of two classes), either answer is right.
            wrong = (parts[2] != parts[0]) & (parts[2] != parts[1])
            result[name] = (float(wrong.sum()), 0.0, 0.0, True)
        else:
            error, torch_error = _distance(parts[2], parts[0]), _distance(parts[1], parts[0])
            finite = np.abs(parts[0][np.isfinite(parts[0])])
            if value.size and np.isnan(parts[0]).all():
                raise ExportError(f"output {name!r} is not a number in PyTorch at {case}; nothing can be compared")
            result[name] = (error, torch_error, float(finite.max(initial=0.0)), False)
    return result


def _crowd_errors(
    contract: Contract, float32: Runner, float64: Runner, case: Case, drawn: tuple[Arrays, Arrays]
) -> dict[str, tuple[float, float, float, bool]] | None:
    """PyTorch's own errors where each row is run many times at once; None if that is not the same model."""
    try:
        truth, many = float64(drawn[0]), crowded(float64, contract, _CROWD)(drawn[0])
        if any(_distance(many[name], value) > _SAME * max(1.0, _size(value)) for name, value in truth.items()):
            return None
        return _errors(contract, crowded(float32, contract, _CROWD), float32, float64, case, drawn, whole=True)
    except Exception:  # whatever the user's forward raises of a batch that it was not made for
        return None


def _size(value: Array) -> float:
    return float(np.abs(value[np.isfinite(value)]).max(initial=0.0)) if value.dtype.kind in "fc" else 0.0


def _distance(value: Array, truth: Array) -> float:
    """The largest absolute difference; infinite where only one of both is not a number."""
    if value.size == 0:
        return 0.0
    value = value.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(value == truth, 0.0, np.abs(value - truth))
    difference = np.where(np.isnan(value) & np.isnan(truth), 0.0, difference)
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def named_cases(manifest: Manifest, cases: Sequence[Mapping[str, Array]]) -> list[Arrays]:
    """The user's own inputs, if they have the names, types and axes of the file's.

    Raises:
        ExportError: they have not.
    """
    found = []
    for number, case in enumerate(cases):
        sizes: dict[str, int] = {}
        arrays = {name: np.asarray(value) for name, value in case.items()}
        specs = {each.name: each for each in manifest.inputs}
        missing = [name for name, each in specs.items() if not each.optional and name not in arrays]
        if missing:
            raise ExportError(f"case {number} has no input {missing[0]!r}; the inputs are {list(specs)}")
        for name, value in arrays.items():
            if name in {each.input for each in manifest.states}:
                continue
            if name not in specs:
                raise ExportError(f"case {number} has an input {name!r}; the inputs are {list(specs)}")
            axes, dtype = specs[name].axes, specs[name].dtype
            fits = len(axes) == value.ndim and all(
                size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
                for axis, size in zip(axes, value.shape, strict=True)
            )
            if not fits or str(value.dtype) != dtype:
                raise ExportError(
                    f"case {number} has {name!r} {value.dtype} {list(value.shape)}; accepted is {dtype} {list(axes)}"
                )
        found.append(arrays)
    return found


def feeds(
    manifest: Manifest,
    case: Case,
    examples: Mapping[str, Array] = _NONE,
    only: Mapping[str, Array] = _NONE,
    draws: Draw | None = None,
    other_sizes: Sequence[int] = _OTHER_SIZES,
) -> tuple[Arrays, Arrays]:
    """Draw the inputs of a case. Axes other than batch and time take the `other_sizes` in turn.

    Returns:
        The inputs with clean padding, and the same with garbage in it (NaN, or other valid integers).
    """
    rng = np.random.default_rng(case.seed)
    sizes: dict[str, int] = {BATCH: case.batch, TIME: case.steps}
    others = dict.fromkeys(axis for each in manifest.inputs for axis in each.axes if isinstance(axis, str))
    for number, axis in enumerate(others):
        sizes.setdefault(axis, other_sizes[(case.seed + number) % len(other_sizes)])
    clean: Arrays = {}
    garbage: Arrays = {}
    drawn: Arrays = {}
    if draws is not None:
        specs = {each.name: (each.axes, each.dtype) for each in manifest.inputs}
        drawn, sizes = draw_all(draws, rng, sizes, specs, exact=False)
    lengths = None
    if case.ragged and manifest.lengths is not None:
        lengths = rng.integers(0, case.steps + 1, case.batch)
        lengths[rng.integers(case.batch)] = case.steps
        clean[manifest.lengths.name] = garbage[manifest.lengths.name] = lengths
    for spec in manifest.inputs:
        if spec.role == "lengths":
            if lengths is None and not spec.optional:
                clean[spec.name] = garbage[spec.name] = np.full(case.batch, case.steps)
            continue
        if spec.name in drawn:
            clean[spec.name] = garbage[spec.name] = drawn[spec.name]
            continue
        shape = tuple(axis if isinstance(axis, int) else sizes.setdefault(axis, 2) for axis in spec.axes)
        value = _draw(rng, spec, shape, examples, only)
        if spec.axes == (BATCH,) and spec.range is None and value.dtype.kind in "iu":
            value = np.minimum(value, case.steps).astype(value.dtype)  # these may be lengths
        clean[spec.name] = valid_part(value, spec.axes, lengths)
        dirty = (
            np.full(shape, np.nan, spec.dtype) if value.dtype.kind == "f" else _draw(rng, spec, shape, examples, only)
        )
        valid = valid_part(np.ones(shape, bool), spec.axes, lengths)
        garbage[spec.name] = np.where(valid, value, dirty)
    inputs = {spec.name: spec.axes for spec in manifest.inputs}
    if images := ImageSizes.among(inputs):
        images.draw(rng, inputs, clean, garbage)
    for state in manifest.states:
        shape = tuple(axis if isinstance(axis, int) else sizes.setdefault(axis, 2) for axis in state.axes)
        if case.random_state:
            value = draw_state(rng, shape, state.dtype)
            clean[state.input] = garbage[state.input] = value
        elif state.required:
            clean[state.input] = garbage[state.input] = np.broadcast_to(state.initial_value(), shape).copy()
    return clean, garbage


def _draw(
    rng: np.random.Generator,
    spec: InputSpec,
    shape: tuple[int, ...],
    examples: Mapping[str, Array],
    only: Mapping[str, Array],
) -> Array:
    if spec.name in only:
        return rng.choice(only[spec.name], shape).astype(spec.dtype)
    bounds = None if spec.range is None else (spec.range.minimum, spec.range.maximum)
    return draw(rng, shape, spec.dtype, bounds, examples.get(spec.name))
