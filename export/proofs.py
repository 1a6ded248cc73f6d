"""What is proved of a module before it is exported: that it may be cut in time, that padding is not read."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cellport.errors import ExportError
from cellport.manifest import BATCH, TIME

from .capture import Captured, TorchRunner
from .drawing import draw, draw_state
from .image_sizes import ImageSizes
from .packing import uncut
from .runs import Array, Arrays, Contract, Runner, in_chunks, row_by_row, valid_part

_TOLERANCE = 1e-9
_STEPS = 7
_CUTS = ((0, 3, _STEPS), tuple(range(_STEPS + 1)))
_SEEDS = 4
_SHORT = (2, 2, 1)
"""Valid steps of rows so short that padding is likely to be the largest value of some feature over time."""

_FAR = (150, 70, 33, 17)
_FARTHEST, _BEYOND = 1100, 20
_ROUNDING = 1e-15
_GROWTH = 100.0


def horizon(captured: Captured) -> int:
    """The steps that proofs look over: 150, or beyond the numbers in the module's code, or as many as it runs with.

    What reaches further, such as a convolution over 200 steps behind a recurrent layer, is not seen.
    """
    if not captured.horizon:
        run = captured.runner(torch.float64).plain  # what is added to the module must run wherever it does
        sizes = {size for each in captured.module.parameters() for size in each.shape}
        named = [each for leaf in captured.inputs for each in leaf.special if _FAR[0] < each <= _FARTHEST]
        beyond = [int(each) + _BEYOND for each in named if each not in sizes]
        captured.horizon = next(
            (
                steps
                for steps in (*sorted(beyond, reverse=True)[:1], *_FAR)
                if _runs(run, _example(captured, (steps,), steps=steps)[0])
            ),
            _STEPS,
        )
    return captured.horizon


def _runs(run: Runner, feeds: Arrays) -> bool:
    try:
        run(feeds)
    except Exception:  # whatever the user's forward raises, such as at positions that it has no embedding of
        return False
    return True


def why_not_causal(captured: Captured) -> str | None:
    """Run the module in float64 whole and in chunks with carried states.

    Returns:
        None if every output is the same, else what differs.
    """
    contract = captured.contract()
    if not any(TIME in axes for axes in contract.inputs.values()):
        return "no input has an axis named 'time'"
    reason = _why_chunks_differ(captured, (_STEPS, 4, 2), _CUTS)
    for seed in range(1, _SEEDS):
        reason = reason or _why_chunks_differ(captured, (_STEPS, 4, 2), _CUTS, seed=seed)
    if reason is None and (far := horizon(captured)) > _STEPS:
        reason = _why_chunks_differ(captured, (far, far // 2, 3), ((0, 1, far // 3, far - 10, far),), chaotic=True)
    return reason


def _why_chunks_differ(
    captured: Captured,
    lengths: tuple[int, ...],
    plans: Sequence[tuple[int, ...]],
    chaotic: bool = False,
    seed: int = 0,
) -> str | None:
    """Compare one pass with runs cut as `plans` say; a chaotic module may differ by what a rounding grows to."""
    contract = captured.contract()
    run = captured.runner(torch.float64)
    clean, _ = _example(captured, lengths, seed=seed, steps=lengths[0])
    valid = clean.get(contract.lengths) if contract.lengths is not None else None
    try:
        whole = run(clean)
        for cuts in plans:
            pieces = in_chunks(run, contract, clean, cuts)
            for name, value in whole.items():
                axes = contract.outputs.get(name, ())
                parts = [valid_part(each, axes, valid) for each in (pieces[name], value)]
                if _close(*parts) or (chaotic and _distance(*parts) <= _GROWTH * _grown(run, clean, whole)):
                    continue
                return f"output {name!r} of {cuts[-1]} steps in chunks of {cuts[1]} differs from that of one pass"
    except Exception as error:  # whatever the user's forward raises
        return f"a run in chunks fails: {type(error).__name__}: {error}"
    return None


def why_padding_is_read(captured: Captured, without: Captured) -> str | None:
    """Run padded rows in float64 together with their lengths, and alone without padding.

    Args:
        captured: the module with an input of lengths.
        without: the same before lengths were added, or `captured` where the lengths are the module's own: a row alone
            is run by it, so that lengths which reach a cell over another axis cannot agree with themselves.

    Returns:
        None if every output is the same, else what differs.
    """
    reason = None
    for seed in range(_SEEDS):
        reason = reason or _why_padded_differs(captured, without, (_STEPS, 4, 1), seed=seed)
    if reason is None and (far := horizon(captured)) > _STEPS:
        reason = _why_padded_differs(captured, without, (far, far // 2, far // 6), chaotic=True)
    return reason


def _why_padded_differs(
    captured: Captured, without: Captured, rows: tuple[int, ...], chaotic: bool = False, seed: int = 0
) -> str | None:
    contract = captured.contract()
    assert contract.lengths is not None
    clean, garbage = _example(captured, rows, seed=seed, steps=rows[0])
    lengths = clean[contract.lengths]
    run = captured.runner(torch.float64)
    try:
        together = run(garbage)
        inputs = clean
        if without.lengths is None:
            inputs = {name: value for name, value in clean.items() if name != contract.lengths}
        alone = row_by_row(without.runner(torch.float64), without.contract(), inputs, lengths)
    except Exception as error:  # whatever the user's forward raises
        return f"a padded run fails: {type(error).__name__}: {error}"
    axes_of = dict(contract.outputs) | dict(contract.states.values())
    for row, (length, single) in enumerate(zip(lengths, alone, strict=True)):
        for name, axes in axes_of.items():
            value = together[name]
            if BATCH in axes:
                value = np.take(value, [row], axes.index(BATCH))
            if TIME in axes:
                value = np.take(value, range(length), axes.index(TIME))
            if value.shape == single[name].shape and (
                _close(value, single[name])
                or (chaotic and _distance(value, single[name]) <= _GROWTH * _grown(run, garbage, together))
            ):
                continue
            return f"output {name!r} of a row of {length} steps differs when it is padded to {rows[0]}"
    return None


def why_rows_meet(captured: Captured) -> str | None:
    """Run a batch in float64, and each of its rows alone.

    Returns:
        None if every output is the same, else what differs: a model whose rows see each other gives every request an
        answer that depends on what else is in its batch.
    """
    contract = captured.contract()
    if not any(BATCH in axes for axes in contract.inputs.values()):
        return None
    for seed in range(_SEEDS):
        reason = _why_rows_differ(captured, seed)
        if reason is not None:
            return reason
    return None


def _why_rows_differ(captured: Captured, seed: int) -> str | None:
    contract = captured.contract()
    run = captured.runner(torch.float64)
    clean, _ = _example(captured, lengths=(_STEPS,) * 3, seed=seed)
    lengths = np.full(3, _STEPS)
    try:
        together = run(clean)
        alone = row_by_row(run, contract, clean, lengths)
    except Exception as error:  # whatever the user's forward raises
        return f"a row alone fails: {type(error).__name__}: {error}"
    for row, single in enumerate(alone):
        for name, axes in (dict(contract.outputs) | dict(contract.states.values())).items():
            value = np.take(together[name], [row], axes.index(BATCH)) if BATCH in axes else together[name]
            if value.shape != single[name].shape or not _close(value, single[name]):
                return f"output {name!r} of a row alone differs from the same row in a batch of 3"
    return None


def why_not_the_module(captured: Captured) -> str | None:
    """Run the user's module itself in float64, and what it was captured as with states and lengths at their defaults.

    Returns:
        None if every result is the same, else what differs.
    """
    runner = captured.runner(torch.float64)
    contract = captured.contract()
    own_lengths = contract.lengths is not None and not captured.added_lengths
    for number, rows in enumerate(((_STEPS,) * 2, (_STEPS,) * 3, (5, 4, 2), _SHORT)):
        cut = max(rows) < _STEPS
        if cut and not own_lengths:
            break
        try:
            clean, plain = _that_runs(captured, runner, rows, number)
        except ExportError:
            if rows is _SHORT:  # too short for this module
                break
            raise
        given = {name: value for name, value in clean.items() if name in captured.arguments}
        before = uncut.get()
        found = runner(
            {name: value for name, value in given.items() if name != contract.lengths or not captured.added_lengths}
        )
        padded = uncut.get() > before
        for name, value in plain.items():
            if np.isnan(value).all() and value.size:
                raise ExportError(f"result {name!r} of the model is not a number on inputs like the examples")
            result = found.get(name)
            if result is not None and padded and cut and TIME in (axes := dict(captured.outputs).get(name, ())):
                result = np.take(result, range(max(rows)), axes.index(TIME))  # torch's has no more
            if result is not None and result.shape == value.shape and _close(result, value):
                continue
            if padded and (cut or not own_lengths):
                raise ExportError(
                    f"result {name!r} depends on how far pad_packed_sequence pads: torch's ends at the longest row, "
                    "which is no axis of a graph; pass it total_length=x.size(1), the size of the time axis that was "
                    "packed, and leave out by the lengths what lies after each row"
                )
            return f"result {name!r} of the captured module differs from that of the model itself"
    return None


def _that_runs(captured: Captured, runner: TorchRunner, rows: tuple[int, ...], number: int) -> tuple[Arrays, Arrays]:
    """Inputs that the user's module runs with, and its results: a drawn mask, for one, may leave nothing of a row."""
    for attempt in range(_SEEDS):
        clean, _ = _example(captured, rows, seed=number + 100 * attempt)
        try:
            return clean, runner.plain(clean)
        except Exception as error:  # whatever the user's forward raises
            failure, inputs = error, clean
    raise ExportError(_why_no_truth(captured, inputs, failure)) from failure


def _why_no_truth(captured: Captured, feeds: Arrays, error: Exception) -> str:
    """What to say of a module that does not run in float64: perhaps it does not run with these sizes at all."""
    said = f"{type(error).__name__}: {error}"
    contract = captured.contract()
    if not _runs(captured.runner(captured.copies.dtype).plain, feeds):
        sizes = f"batch {contract.batch(feeds)} and {contract.steps(feeds)} steps"
        return f"the model does not run on inputs like the examples with {sizes}: {said}"
    return (
        f"the model does not run in float64, which the proof of its file needs: {said}; "
        "forward may name float32 where it makes a tensor; take the dtype of an input, as in zeros(..., dtype=x.dtype)"
    )


def _grown(run: TorchRunner, feeds: Arrays, found: Arrays) -> float:
    """How much a change of the inputs by a rounding changes a module's answers."""
    moved = {
        name: value * (1 + _ROUNDING * np.sign(np.sin(np.arange(value.size))).reshape(value.shape))
        if value.dtype.kind == "f"
        else value
        for name, value in feeds.items()
    }
    again = run(moved)
    return max((_distance(again[name], value) for name, value in found.items() if value.dtype.kind == "f"), default=0.0)


def _distance(value: Array, truth: Array) -> float:
    """The largest absolute difference; infinite where one of both is not a number or they differ as integers."""
    if value.dtype.kind != "f":
        return 0.0 if np.array_equal(value, truth) else np.inf
    if not value.size:
        return 0.0
    difference = np.where(np.isnan(value) & np.isnan(truth), 0.0, np.abs(value - truth))
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def _close(value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", truth: object) -> bool:
    return bool(np.allclose(value, np.asarray(truth), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))


def _example(captured: Captured, lengths: tuple[int, ...], seed: int = 0, steps: int = _STEPS) -> tuple[Arrays, Arrays]:
    """Random inputs, with clean padding and with garbage in it."""
    rng = np.random.default_rng(seed)
    contract: Contract = captured.contract()
    sizes: Mapping[str, int] = {**captured.sizes, BATCH: len(lengths), TIME: steps}
    valid = np.asarray(lengths) if contract.lengths is not None else None
    clean: Arrays = {}
    garbage: Arrays = {}
    for leaf in captured.inputs:
        if leaf.name == contract.lengths:
            clean[leaf.name] = garbage[leaf.name] = np.asarray(lengths)
            continue
        if leaf.drawn is not None:
            clean[leaf.name] = garbage[leaf.name] = leaf.drawn(sizes, seed).numpy()
            continue
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in leaf.axes)
        example = leaf.example.numpy()
        bounds = None if leaf.rows is None else (0, leaf.rows - 1)
        value = draw(rng, shape, str(example.dtype), bounds, example, leaf.special)
        if leaf.axes == (BATCH,) and leaf.rows is None and value.dtype.kind in "iu":
            value = np.minimum(value, steps).astype(value.dtype)  # these may be lengths
        mask = valid_part(np.ones(shape, bool), leaf.axes, valid)
        dirty = (
            np.full(shape, np.nan)
            if value.dtype.kind == "f"
            else draw(rng, shape, str(example.dtype), bounds, example, leaf.special)
        )
        clean[leaf.name] = np.where(mask, value, np.zeros((), value.dtype))
        garbage[leaf.name] = np.where(mask, value, dirty)
    if images := ImageSizes.among(contract.inputs):
        images.draw(rng, contract.inputs, clean, garbage)
    for state in captured.states:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in state.axes)
        clean[state.input] = garbage[state.input] = draw_state(rng, shape, str(state.initial.numpy().dtype))
    return clean, garbage
