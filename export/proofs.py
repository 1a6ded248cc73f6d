"""What is proved of a module before it is exported: that it may be cut in time, that padding is not read."""

from collections.abc import Mapping

import numpy as np
import torch

from cellport.errors import ExportError
from cellport.manifest import BATCH, TIME

from .capture import Captured
from .drawing import draw
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
    contract = captured.contract()
    assert contract.lengths is not None
    clean, garbage = _example(captured, lengths=(_STEPS, 4, 1))
    lengths = clean[contract.lengths]
    try:
        together = captured.runner(torch.float64)(garbage)
        if without.lengths is None:
            clean = {name: value for name, value in clean.items() if name != contract.lengths}
        alone = row_by_row(without.runner(torch.float64), without.contract(), clean, lengths)
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
            if value.shape != single[name].shape or not _close(value, single[name]):
                return f"output {name!r} of a row of {length} steps differs when it is padded to {_STEPS}"
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
    run = captured.runner(torch.float64)
    clean, _ = _example(captured, lengths=(_STEPS,) * 3)
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
    for number, batch in enumerate((2, 3)):
        clean, _ = _example(captured, lengths=(_STEPS,) * batch, seed=number)
        try:
            plain = runner.plain(clean)
        except Exception as error:  # whatever the user's forward raises
            raise ExportError(
                f"the model does not run in float64, which the proof of its file needs: {type(error).__name__}: {error}"
            ) from error
        given = {name: value for name, value in clean.items() if name in captured.arguments}
        found = runner(
            {name: value for name, value in given.items() if name != contract.lengths or not captured.added_lengths}
        )
        for name, value in plain.items():
            if name not in found or found[name].shape != value.shape or not _close(found[name], value):
                return f"result {name!r} of the captured module differs from that of the model itself"
            if np.isnan(value).all() and value.size:
                raise ExportError(f"result {name!r} of the model is not a number on inputs like the examples")
    return None


def _close(value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", truth: object) -> bool:
    return bool(np.allclose(value, np.asarray(truth), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))


def _example(captured: Captured, lengths: tuple[int, ...], seed: int = 0) -> tuple[Arrays, Arrays]:
    """Random inputs, with clean padding and with garbage in it."""
    rng = np.random.default_rng(seed)
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
        example = leaf.example.numpy()
        bounds = None if leaf.rows is None else (0, leaf.rows - 1)
        value = draw(rng, shape, str(example.dtype), bounds, example)
        if leaf.axes == (BATCH,) and leaf.rows is None and value.dtype.kind in "iu":
            value = np.minimum(value, _STEPS).astype(value.dtype)  # these may be lengths
        mask = valid_part(np.ones(shape, bool), leaf.axes, valid)
        dirty = (
            np.full(shape, np.nan) if value.dtype.kind == "f" else draw(rng, shape, str(example.dtype), bounds, example)
        )
        clean[leaf.name] = np.where(mask, value, np.zeros((), value.dtype))
        garbage[leaf.name] = np.where(mask, value, dirty)
    for state in captured.states:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in state.axes)
        clean[state.input] = garbage[state.input] = 0.5 * rng.standard_normal(shape)
    return clean, garbage
