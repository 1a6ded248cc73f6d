"""What is proved of a module before it is exported: that it may be cut in time, that padding is not read."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cellport.manifest import BATCH, TIME

from .capture import Captured
from .runs import Arrays, Contract, in_chunks, row_by_row, valid_part

_TOLERANCE = 1e-9
_STEPS = 7
_CUTS = ((0, 3, _STEPS), tuple(range(_STEPS + 1)))


def why_not_causal(captured: Captured) -> str | None:
    """Run the module in float64 whole and in chunks with carried states.

    Returns:
        None if every output is the same, else what differs.
    """
    contract = captured.contract()
    if not any(TIME in axes for axes in contract.inputs.values()):
        return "no input has an axis named 'time'"
    run = captured.runner(torch.float64)
    clean, _ = _example(captured, lengths=(_STEPS, 4, 2))
    try:
        whole = run(clean)
        for cuts in _CUTS:
            pieces = in_chunks(run, contract, clean, cuts)
            for name, value in whole.items():
                axes = contract.outputs.get(name, ())
                lengths = clean.get(contract.lengths) if contract.lengths is not None else None
                if not _close(valid_part(pieces[name], axes, lengths), valid_part(value, axes, lengths)):
                    return f"output {name!r} of a run in chunks of {cuts[1]} steps differs from that of one pass"
    except (RuntimeError, ValueError, IndexError) as error:
        return f"a run in chunks fails: {error}"
    return None


def why_padding_is_read(captured: Captured) -> str | None:
    """Run padded rows in float64 together with their lengths, and alone without padding.

    Returns:
        None if every output is the same, else what differs.
    """
    contract = captured.contract()
    assert contract.lengths is not None
    run = captured.runner(torch.float64)
    clean, garbage = _example(captured, lengths=(_STEPS, 4, 1))
    try:
        together = run(garbage)
        alone = row_by_row(run, contract, clean)
    except (RuntimeError, ValueError, IndexError) as error:
        return f"a padded run fails: {error}"
    axes_of = dict(contract.outputs) | dict(contract.states.values())
    for row, (length, single) in enumerate(zip(clean[contract.lengths], alone, strict=True)):
        for name, axes in axes_of.items():
            value = together[name]
            if BATCH in axes:
                value = np.take(value, [row], axes.index(BATCH))
            if TIME in axes:
                value = np.take(value, range(length), axes.index(TIME))
            if value.shape != single[name].shape or not _close(value, single[name]):
                return f"output {name!r} of a row of {length} steps differs when it is padded to {_STEPS}"
    return None


def _close(value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", truth: object) -> bool:
    return bool(np.allclose(value, np.asarray(truth), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))


def _example(captured: Captured, lengths: tuple[int, ...]) -> tuple[Arrays, Arrays]:
    """Random inputs, with clean padding and with garbage in it."""
    rng = np.random.default_rng(0)
    contract: Contract = captured.contract()
    sizes: Mapping[str, int] = {**captured.sizes, BATCH: len(lengths), TIME: _STEPS}
    valid = np.asarray(lengths) if contract.lengths is not None else None
    clean: Arrays = {}
    garbage: Arrays = {}
    for leaf in captured.inputs:
        if leaf.name == contract.lengths:
            clean[leaf.name] = garbage[leaf.name] = np.asarray(lengths)
            continue
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in leaf.axes)
        if leaf.example.is_floating_point():
            draw = _floats(rng)
        elif leaf.rows is not None:
            draw = _integers(rng, leaf.rows, leaf.example.numpy().dtype)
        else:
            draw = _resampled(rng, leaf.example.numpy())
        value = draw(shape)
        mask = valid_part(np.ones(shape, bool), leaf.axes, valid)
        dirty = np.full(shape, np.nan) if value.dtype.kind == "f" else draw(shape)
        clean[leaf.name] = np.where(mask, value, np.zeros((), value.dtype))
        garbage[leaf.name] = np.where(mask, value, dirty)
    for state in captured.states:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in state.axes)
        clean[state.input] = garbage[state.input] = 0.5 * rng.standard_normal(shape)
    return clean, garbage


Draw = Callable[[tuple[int, ...]], "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]


def _floats(rng: np.random.Generator) -> Draw:
    return lambda shape: rng.standard_normal(shape)


def _integers(rng: np.random.Generator, rows: int, dtype: "np.dtype[Any]") -> Draw:
    return lambda shape: rng.integers(0, rows, shape).astype(dtype)


def _resampled(rng: np.random.Generator, values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Draw:
    """Integers among those of the example: what else the module accepts is not known."""
    return lambda shape: rng.choice(values.ravel(), shape)
