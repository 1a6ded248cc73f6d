"""The first runs of a model: no request pays for them, and the engine learns what a run costs."""

import logging
import time

import numpy as np

from cellport.manifest import BATCH, TIME

from .codec import Array
from .contract import Contract, batch_first, padding
from .jobs import Job, Part, Tick
from .model import Model
from .ticks import run_tick

_log = logging.getLogger(__name__)

_REPEATS = 3


def warm(model: Model, seconds: float) -> None:
    """Run a model with different rows and steps, and set its costs.

    A model is left as it is if it has an axis that only its users know a size for, or fails on zeros.

    Args:
        model: just loaded.
        seconds: how long that may take; a run that has begun is not broken off.
    """
    timed = any(TIME in each.axes for each in model.manifest.inputs)
    end = time.perf_counter() + seconds

    def run(rows: int, steps: int) -> float | None:
        inputs = example(model.contract, rows, steps)
        if inputs is None:
            return None
        best: float | None = None
        for _ in range(_REPEATS):
            if time.perf_counter() >= end:
                break
            job = Job(model=model, bound=model.contract.bind(inputs), done=lambda _: None)
            part = Part(job=job, position=0, steps=job.steps, rows=None, final=True, source=None, target=None)
            started = time.perf_counter()
            if run_tick(Tick(model=model, parts=[part], steps=job.steps, rows=rows)) != [None]:
                return None
            taken = time.perf_counter() - started
            best = taken if best is None else min(best, taken)
        return best

    try:
        model.costs.measure(run, timed=timed)
    except Exception:
        _log.warning("%r could not be measured; its costs are guessed", model, exc_info=True)


def example(contract: Contract, rows: int, steps: int) -> dict[str, Array] | None:
    """Return a request of the least valid values; None if a size of it is not known."""
    arrays: dict[str, Array] = {}
    for name, spec in contract.inputs.items():
        if spec.optional or spec.role == "lengths":
            continue
        shape = []
        for axis in batch_first(spec.axes):
            if isinstance(axis, str) and axis not in (BATCH, TIME):
                return None
            shape.append(axis if isinstance(axis, int) else rows if axis == BATCH else steps)
        if spec.dtype == "string":
            return None
        arrays[name] = np.full(shape, padding(spec), spec.dtype)
    return arrays
