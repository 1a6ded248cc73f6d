"""Runs of a model by name: whole, in chunks with carried states, and row by row."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cellport.manifest import BATCH, TIME, Axes, Manifest

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Runner = Callable[[Arrays], Arrays]
"""Maps arrays by input name to arrays by output name. States and lengths may be left out."""


@dataclass(frozen=True)
class Contract:
    """What a run in pieces has to know of a model.

    Attributes:
        inputs: axes of each input that is not a state.
        outputs: axes of each output that is not a state.
        states: output name and axes of each state, by its input's name.
        lengths: name of the input that holds the valid steps of each row.
    """

    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    states: Mapping[str, tuple[str, Axes]]
    lengths: str | None

    @classmethod
    def of(cls, manifest: Manifest) -> "Contract":
        """The contract that a manifest states."""
        return cls(
            inputs={each.name: each.axes for each in manifest.inputs},
            outputs={each.name: each.axes for each in manifest.outputs},
            states={each.input: (each.output, each.axes) for each in manifest.states},
            lengths=manifest.lengths.name if manifest.lengths is not None else None,
        )

    def steps(self, feeds: Arrays) -> int:
        """The size of the time axis in `feeds`; 1 if there is none."""
        return next((int(feeds[n].shape[a.index(TIME)]) for n, a in self.inputs.items() if TIME in a and n in feeds), 1)

    def batch(self, feeds: Arrays) -> int:
        """The size of the batch axis in `feeds`; 1 if there is none."""
        axes = {**self.inputs, **{name: axes for name, (_, axes) in self.states.items()}}
        return next((int(feeds[n].shape[a.index(BATCH)]) for n, a in axes.items() if BATCH in a and n in feeds), 1)


def in_chunks(run: Runner, contract: Contract, feeds: Arrays, boundaries: Iterable[int]) -> Arrays:
    """Run consecutive pieces of the time axis with carried states, and put the outputs together.

    An output with a time axis is concatenated. Of any other a row takes the value of the last chunk in which it has a
    valid step.

    Args:
        run: the model.
        contract: its names and axes.
        feeds: arrays by input name.
        boundaries: where the chunks begin and end, from 0 to the number of steps.
    """
    pieces: dict[str, list[Array]] = {}
    last: Arrays = {}
    lengths = feeds.get(contract.lengths) if contract.lengths is not None else None
    carried = {name: feeds[name] for name in contract.states if name in feeds}
    for start, stop in pairwise(boundaries):
        chunk = {
            name: np.take(value, range(start, stop), contract.inputs[name].index(TIME))
            for name, value in feeds.items()
            if name in contract.inputs and TIME in contract.inputs[name]
        }
        chunk |= {n: v for n, v in feeds.items() if n in contract.inputs and n not in chunk and n != contract.lengths}
        valid = None
        if lengths is not None:
            assert contract.lengths is not None
            valid = np.where(lengths < 0, stop - start, np.clip(lengths - start, 0, stop - start))
            chunk[contract.lengths] = valid
        results = run(chunk | carried)
        carried = {name: results[output] for name, (output, _) in contract.states.items()}
        for name, axes in contract.outputs.items():
            if TIME in axes:
                pieces.setdefault(name, []).append(results[name])
            elif name in last and valid is not None and BATCH in axes:
                shape = [1] * len(axes)
                shape[axes.index(BATCH)] = -1
                last[name] = np.where((valid > 0).reshape(shape), results[name], last[name])
            else:
                last[name] = results[name]
    whole = {name: np.concatenate(parts, contract.outputs[name].index(TIME)) for name, parts in pieces.items()}
    return {name: (whole | last)[name] for name in contract.outputs} | {
        output: carried[name] for name, (output, _) in contract.states.items()
    }


def row_by_row(run: Runner, contract: Contract, feeds: Arrays, lengths: Array) -> list[Arrays]:
    """Run each row of the batch alone, cut to its own length, so that there is no padding.

    Args:
        run: the model.
        contract: its names and axes.
        feeds: arrays by input name.
        lengths: steps of each row; the model is given them if it takes lengths.
    """
    rows = []
    for row, length in enumerate(lengths):
        alone = {}
        for name, value in feeds.items():
            if name == contract.lengths:
                continue
            axes = contract.inputs[name] if name in contract.inputs else contract.states[name][1]
            if BATCH in axes:
                value = np.take(value, [row], axes.index(BATCH))
            if TIME in axes:
                value = np.take(value, range(length), axes.index(TIME))
            alone[name] = value
        if contract.lengths is not None:
            alone[contract.lengths] = np.array([length])
        rows.append(run(alone))
    return rows


def crowded(run: Runner, contract: Contract, times: int) -> Runner:
    """Return what runs each row so many times side by side, and gives the results of one.

    To a model whose rows do not see each other that is the same. But products of more rows take their sums in another
    order, and so have other errors.
    """
    axes = dict(contract.inputs) | {name: each for name, (_, each) in contract.states.items()}
    results = dict(contract.outputs) | dict(contract.states.values())

    def run_all(feeds: Arrays) -> Arrays:
        rows = contract.batch(feeds)
        many = {
            name: np.concatenate([value] * times, axes[name].index(BATCH)) if BATCH in axes[name] else value
            for name, value in feeds.items()
        }
        return {
            name: np.take(value, range(rows), results[name].index(BATCH)) if BATCH in results[name] else value
            for name, value in run(many).items()
        }

    return run_all


def valid_part(value: Array, axes: Axes, lengths: Array | None) -> Array:
    """Return `value` with the padded steps of each row set to 0, so that only valid ones are compared."""
    if lengths is None or TIME not in axes or BATCH not in axes:
        return value
    steps = value.shape[axes.index(TIME)]
    valid = np.arange(steps) < np.where(lengths < 0, steps, lengths)[:, None]
    order = (axes.index(BATCH), axes.index(TIME))
    mask = valid if order[0] < order[1] else valid.T
    shape = [size if position in order else 1 for position, size in enumerate(value.shape)]
    return np.where(mask.reshape(shape), value, np.zeros((), value.dtype))
