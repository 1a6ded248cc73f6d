"""What smaller weights and tables cost and gain: bytes, errors against the truth, the task's metric, speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from cellport.errors import ExportError

from .runs import Arrays, Runner
from .runtime import OnnxRunner
from .writing import external_data

__all__ = ["Metric", "Variant", "compare_variants", "largest_errors", "measure", "size_of"]

Metric = Callable[[Runner], float]
"""A number for a model that maps arrays by input name to arrays by output name, such as its accuracy on a test set."""

ROUNDS = 15


@dataclass(frozen=True)
class Variant:
    """The figures of one file, and how it compares with the first of its series.

    Attributes:
        name: what it is called, such as ``"int8"``.
        bytes: size of the file, external data included.
        errors: largest absolute error of each output against the float64 truth.
        largest: largest absolute value of each output of the truth.
        metric: the task's metric; None if none was given.
        speed: how many times faster than the first file it is, by batch size; below 1, it is slower.
        baseline: name of the first file.
    """

    name: str
    bytes: int
    errors: Mapping[str, float]
    largest: Mapping[str, float]
    metric: float | None
    speed: Mapping[int, float]
    baseline: str

    @property
    def notes(self) -> list[str]:
        """A sentence for each batch size, on the machine that it was measured on."""
        told = []
        for batch, ratio in self.speed.items():
            if self.name == self.baseline:
                continue
            word, factor = ("faster", ratio) if ratio >= 1 else ("slower", 1 / ratio)
            told.append(f"{self.name} is {factor:.2f} times {word} than {self.baseline} at batch {batch} here")
        return told

    def __str__(self) -> str:
        """One line of figures."""
        errors = ", ".join(f"{name} {error:.1e} of {self.largest[name]:.1e}" for name, error in self.errors.items())
        speed = ", ".join(f"{ratio:.2f} at batch {batch}" for batch, ratio in self.speed.items())
        metric = "" if self.metric is None else f"; metric {self.metric:.4g}"
        return f"{self.name}: {self.bytes / 2**20:.2f} MiB; error {errors}; speed {speed}{metric}"


def compare_variants(
    variants: Mapping[str, Path],
    truth: Runner,
    feeds_by_batch: Mapping[int, Arrays],
    *,
    metric: Metric | None = None,
    rounds: int = ROUNDS,
) -> list[Variant]:
    """Measure files of one model.

    Args:
        variants: files by name; speeds are relative to the first.
        truth: the model in float64. Its inputs are those of the files, floats in float64.
        feeds_by_batch: what to run, by batch size: arrays by input name.
        metric: the task's metric.
        rounds: interleaved timed runs of each file and batch size.

    Returns:
        The figures of each file, in the order of `variants`.

    Raises:
        ExportError: there is nothing to measure, or a file cannot be loaded or run.
    """
    _check(variants, feeds_by_batch, rounds)
    runners = {name: OnnxRunner(path, threads=1) for name, path in variants.items()}
    truths = [(feeds, truth(_double(feeds))) for feeds in feeds_by_batch.values()]
    largest = {name: max(float(np.abs(results[name]).max(initial=0)) for _, results in truths) for name in truths[0][1]}
    speeds = measure(runners, feeds_by_batch, rounds=rounds)
    return [
        Variant(
            name=name,
            bytes=size_of(variants[name]),
            errors=largest_errors(runner, truths),
            largest=largest,
            metric=None if metric is None else float(metric(runner)),
            speed=speeds[name],
            baseline=next(iter(variants)),
        )
        for name, runner in runners.items()
    ]


def largest_errors(runner: Runner, truths: Sequence[tuple[Arrays, Arrays]]) -> dict[str, float]:
    """The largest absolute error of each output.

    Args:
        runner: the model.
        truths: feeds, and what should come out of them.

    Returns:
        Errors by the name of the output, for the outputs of the truth.
    """
    errors: dict[str, float] = {}
    for feeds, expected in truths:
        results = runner(feeds)
        for name, value in expected.items():
            off = np.abs(results[name].astype(np.float64) - value)
            errors[name] = max(errors.get(name, 0.0), float(off.max(initial=0)))
    return errors


def measure(
    models: Mapping[str, Path | Runner],
    feeds_by_batch: Mapping[int, Arrays],
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[int, float]]:
    """How many times faster than the first each model is.

    In each round every model runs once, so that what slows the machine down slows all of them down, and times of the
    same round are compared; every other round goes through the models backwards. A run of each comes before the first
    round. On a shared machine, where the ratio of the medians of two equal files was off by up to 64 % in 15 rounds of
    milliseconds, the median of the ratios was off by up to 8 %.

    Args:
        models: files, which onnxruntime runs with one thread, or runners, by name.
        feeds_by_batch: arrays by input name, by batch size.
        rounds: timed runs of each model and batch size.
        clock: seconds.

    Returns:
        The time of the first model over that of each in the same round, the median of all rounds, by name and batch
        size.

    Raises:
        ExportError: there is nothing to measure, or a file cannot be loaded or run.
    """
    _check(models, feeds_by_batch, rounds)
    runners = [each if callable(each) else OnnxRunner(each, threads=1) for each in models.values()]
    ratios: dict[str, dict[int, float]] = {name: {} for name in models}
    for batch, feeds in feeds_by_batch.items():
        times: list[list[float]] = [[] for _ in runners]
        for runner in runners:
            runner(feeds)
        for number in range(rounds):
            turns = list(zip(runners, times, strict=True))
            for runner, found in turns if number % 2 == 0 else reversed(turns):
                started = clock()
                runner(feeds)
                found.append(clock() - started)
        for name, own in zip(models, times, strict=True):
            ratios[name][batch] = median(first / each for first, each in zip(times[0], own, strict=True))
    return ratios


def size_of(path: Path) -> int:
    """Bytes of a model file and of the external data beside it."""
    beside = external_data(path)
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _check(models: Mapping[str, Path | Runner] | Mapping[str, Path], feeds: Mapping[int, Arrays], rounds: int) -> None:
    if not models or not feeds or rounds < 1:
        raise ExportError(
            f"{len(models)} models, {len(feeds)} batch sizes and {rounds} rounds; accepted: at least one of each"
        )


def _double(feeds: Arrays) -> Arrays:
    return {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in feeds.items()}
