"""How many runs of a model there are at a time, and on how many threads each: measured when models are loaded.

A step of a recurrent network is mostly too small to be shared out among cores, so that they are better used by as many
runs; but where memory is what runs wait for, further ones only get in each other's way, and a model that is large
enough runs faster on all cores at once than several times beside itself.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence

from .model import Model
from .warming import batch_run

_SECONDS = 0.04
"""Seconds of one measurement."""

_MODELS = 2
"""Models that are asked how many runs at a time are best: those whose runs take longest."""

_SHORTEST = 100e-6
"""Seconds of a step that is too short to be shared out: handing it to other threads takes a tenth of that."""

_GAIN = 1.1
"""How many times more must get done for more runs, or more threads of one, to be worth it."""


def cores() -> int:
    """Return how many processors this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def choose_workers(models: Sequence[Model], available: int) -> int:
    """Return how many runs at a time get the most done on `available` processors, the fewest of about as good ones."""
    runs = [run for run in map(batch_run, sorted(models, key=_weight, reverse=True)[:_MODELS]) if run is not None]
    if not runs:
        return available
    chosen, reached = 1, 0.0
    for count in _counts(available):
        found = min(_rate(run, count) / max(_rate(run, 1), 1e-9) for run in runs) if count > 1 else 1.0
        if found > _GAIN * reached:
            chosen, reached = count, found
    return chosen


def choose_threads(load: Callable[[int], Model], available: int) -> Model:
    """Return a model loaded with as many threads for a run as get the most done, if all processors are used either way.

    Args:
        load: loads the model, with so many threads, and measures its costs.
        available: processors.
    """
    one = load(1)
    if available == 1 or one.costs.step_seconds(one.costs.enough(1)) < _SHORTEST:
        return one
    # A second session takes the memory of its weights, for as long as this lasts.
    all_of_them = load(available)
    apart, together = batch_run(one), batch_run(all_of_them)
    if apart is None or together is None or _rate(together, 1) <= _GAIN * _rate(apart, available):
        return one
    return all_of_them


def _counts(available: int) -> list[int]:
    found = [1]
    while found[-1] < available:
        found.append(min(2 * found[-1], available))
    return found


def _weight(model: Model) -> float:
    return model.costs.step_seconds(1)


def _rate(run: Callable[[], bool], workers: int) -> float:
    """Return the runs a second that so many threads get done beside each other; 0 if a run fails."""
    end = time.perf_counter() + _SECONDS
    counts = [0] * workers
    failed = False

    def work(number: int) -> None:
        nonlocal failed
        while time.perf_counter() < end and not failed:
            if not run():
                failed = True
            counts[number] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(1, workers)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    return 0.0 if failed else sum(counts) / (time.perf_counter() - started)
