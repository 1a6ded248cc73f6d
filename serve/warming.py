"""The first runs of a model: no request pays for them, and the engine learns what a run costs."""

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np

from cellport.manifest import BATCH, TIME

from .codec import Array
from .contract import Contract
from .jobs import Job, Part, Tick
from .layouts import batch_first, padding
from .model import Model
from .ticks import run_tick

_log = logging.getLogger(__name__)

_PASSES = 6
_SIDE = 8
_STEPS = 16


def warm(model: Model, seconds: float) -> None:
    """Run a model with different rows and steps, and set its costs.

    A model is left as it is if it has an axis that only its users know a size for, or fails on zeros.

    Args:
        model: just loaded.
        seconds: how long that may take; a run that has begun is not broken off.
    """
    timed = any(TIME in each.axes for each in model.manifest.inputs)
    end = time.perf_counter() + seconds
    best: dict[tuple[int, int], float] = {}
    try:
        # Several times over all sizes: the first runs take memory that later ones find in place.
        for _ in range(_PASSES):
            for rows, steps in model.costs.sizes(timed=timed):
                if time.perf_counter() >= end or (rows > 1 and not (model.contract.splits and model.contract.rowwise)):
                    break
                inputs = example(model.contract, rows, steps)
                taken = None if inputs is None else _once(model, inputs, rows)
                if taken is None:
                    return
                best[rows, steps] = min(taken, best.get((rows, steps), taken))
        model.costs.measure(lambda rows, steps: best.get((rows, steps)), timed=timed)
    except Exception:
        _log.warning("%r could not be measured; its costs are guessed", model, exc_info=True)


def batch_run(model: Model) -> Callable[[], bool] | None:
    """Return what runs as many rows together as are efficient and says whether that went well; None if it cannot be."""
    rows = model.costs.enough(_STEPS) if model.contract.splits and model.contract.rowwise else 1
    inputs = example(model.contract, rows, _STEPS)
    if inputs is None or not model.costs.measured:
        return None
    return lambda: _once(model, inputs, rows) is not None


def _once(model: Model, inputs: Mapping[str, Array], rows: int) -> float | None:
    """Run a batch of requests as one of several chunks of them, with states before and after; None if it fails."""
    bounds = [
        model.contract.bind({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(rows)
    ]
    keeps = model.contract.cuts and bool(model.contract.states)
    slots = [model.slots.take() if keeps else 0 for _ in range(rows)]
    parts = []
    for bound, slot in zip(bounds, slots, strict=True):
        job = Job(model=model, bound=bound, done=lambda _: None)
        kept = [slot] if keeps else None
        parts.append(Part(job, bound, position=0, steps=job.steps, rows=None, final=True, source=None, target=kept))
    try:
        started = time.perf_counter()
        failures = run_tick(Tick(model=model, parts=parts, steps=parts[0].steps, rows=rows))
        return None if any(failures) else time.perf_counter() - started
    finally:
        for slot in slots:
            if keeps:
                model.free(slot)


def example(contract: Contract, rows: int, steps: int) -> dict[str, Array] | None:
    """Return a request of the least valid values; None if a size of it is not known."""
    arrays: dict[str, Array] = {}
    for name, spec in contract.inputs.items():
        if spec.optional or spec.role in ("lengths", "sizes"):
            continue
        shape = []
        for axis in batch_first(spec.axes):
            if isinstance(axis, int):
                shape.append(axis)
            elif axis in (BATCH, TIME):
                shape.append(rows if axis == BATCH else steps)
            elif axis in contract.joins:
                shape.append(_SIDE)
            else:
                return None
        if spec.dtype == "string":
            return None
        arrays[name] = np.full(shape, padding(spec), spec.dtype)
    return arrays
