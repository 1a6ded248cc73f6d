"""What a model has done since it was loaded: requests, runs, and where their time went.

`Counters` are fed once a run, on the thread that has run it, with what the run knows anyway; `ModelStatistics` are the
figures at one moment. The first of them are those of Triton's statistics extension, the others this server's own.
"""

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .jobs import Job, Part, Run, Tick

_EXACT = 1024
"""Rows up to which runs are told apart; a larger one counts as one of the next power of two, to bound the memory."""

_LONGEST = 63
"""Powers of two by which the steps of runs are counted."""


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How often something took place, and how long that took together, in nanoseconds."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """The runs of so many rows.

    Attributes:
        batch_size: rows of a run; above 1,024 the next power of two.
        compute_input: gathering the rows and states.
        compute_infer: running the graph.
        compute_output: writing the states and giving each request its own.
    """

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, kw_only=True)
class ChunkStatistics:
    """How many runs there were of at most so many steps, and of more than half of that."""

    steps: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """What one version of a model has done since it was loaded.

    A request's time is counted when it is done: of its `success`, `queue` is when nothing of it ran, and the others are
    the runs that it took part in, each in full.

    Attributes:
        name: the model's name.
        version: its version.
        last_inference: when the last run ended, in milliseconds since 1970; 0 if there was none.
        inference_count: rows of the requests that were answered; a step of a sequence is a row, and so is a generation.
        execution_count: runs of the graph that went well.
        success: requests that were answered.
        fail: requests that fitted the model and were not answered: refused by the queue or their sequence, late,
            cancelled, or failed in a run.
        queue: of the answered requests, what they waited.
        compute_input: of those that ran, gathering rows and states.
        compute_infer: of the same, running the graph.
        compute_output: of the same, writing states and giving each request its own.
        batches: the runs by their rows.
        lanes: rows of all runs. A request that is run in three chunks has three.
        steps: rows times steps of all runs; where other axes than time are padded, rows times their sizes.
        padding_steps: how many of those nobody had asked for.
        chunks: the runs by their steps.
        sequences: running sequences.
        state_bytes: bytes of the states that are held, of sequences and of requests between two chunks.
    """

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    batches: tuple[BatchStatistics, ...]
    lanes: int
    steps: int
    padding_steps: int
    chunks: tuple[ChunkStatistics, ...]
    sequences: int
    state_bytes: int

    @property
    def padding(self) -> float:
        """Which part of the steps that were run nobody had asked for, 0 to 1."""
        return self.padding_steps / self.steps if self.steps else 0.0


class _Batch:
    """The runs of one size: how many, and seconds of their three parts."""

    __slots__ = ("count", "infer", "input", "output")

    def __init__(self) -> None:
        self.count = 0
        self.input = self.infer = self.output = 0.0


class Counters:
    """Counts what a model does. Thread-safe.

    Seconds are those of `time.perf_counter`, of which a run and a turn of the event loop take note anyway.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = 0.0
        self._last: tuple[float, int] = (0.0, 0)
        self._inferences = self._executions = 0
        self._answered = self._ran = self._failed = 0
        self._queue = self._input = self._infer = self._output = self._lost = 0.0
        self._batches: dict[int, _Batch] = {}
        self._lanes = self._steps = self._wanted = 0
        self._chunks = [0] * (_LONGEST + 1)

    def record(self, tick: "Tick") -> None:
        """Count what went well of a tick, before its jobs are completed."""
        with self._lock:
            for run in tick.runs:
                self._record(run)

    def _record(self, run: "Run") -> None:
        ended = run.ended
        took_input, took_infer, took_output = run.fed - run.started, run.ran - run.fed, ended - run.ran
        rows, steps = run.rows, run.steps
        self._ended = max(self._ended, ended)
        self._executions += 1
        self._lanes += rows
        self._chunks[(steps - 1).bit_length()] += 1
        size = rows if rows <= _EXACT else 1 << (rows - 1).bit_length()
        batch = self._batches.get(size)
        if batch is None:
            batch = self._batches[size] = _Batch()
        batch.count += 1
        batch.input += took_input
        batch.infer += took_infer
        batch.output += took_output
        joins = run.parts[0].job.model.contract.joins
        extents = [part.job.extent for part in run.parts] if joins else None
        done = wanted = 0
        for part in run.parts:
            job = part.job
            bound = job.bound
            assert bound is not None
            asked = (bound.rows if part.rows is None else len(part.rows)) * part.steps
            if bound.lengths is not None:
                asked = _valid(part)
            wanted += asked * math.prod(job.extent) if joins else asked
            spent = job.spent
            if not part.final or (job.generation is not None and job.generation.finish is None):
                before = spent or (0.0, 0.0, 0.0)
                job.spent = (before[0] + took_input, before[1] + took_infer, before[2] + took_output)
                continue
            done += 1
            self._inferences += bound.rows
            self._queue += run.started - job.arrived
            job.arrived = 0.0
            if spent is not None:
                self._queue -= sum(spent)
                self._input += spent[0]
                self._infer += spent[1]
                self._output += spent[2]
        self._answered += done
        self._ran += done
        self._input += done * took_input
        self._infer += done * took_infer
        self._output += done * took_output
        self._wanted += wanted
        self._steps += rows * steps * (math.prod(map(max, zip(*extents, strict=True))) if extents else 1)

    def settle(self, job: "Job", *, failed: bool) -> None:
        """Count a request that was accepted and is done otherwise than by a run: failed, or answered without one."""
        with self._lock:
            waited = time.perf_counter() - job.arrived
            job.arrived = 0.0
            if failed:
                self._failed += 1
                self._lost += waited
            else:
                self._answered += 1
                self._queue += waited

    def read(self, name: str, version: str, *, sequences: int, state_bytes: int) -> ModelStatistics:
        """Return the figures of this moment.

        Args:
            name: the model's name.
            version: its version.
            sequences: its running sequences.
            state_bytes: bytes of their states.
        """
        with self._lock:
            queue = Duration(count=self._answered, ns=_ns(self._queue))
            parts = [Duration(count=self._ran, ns=_ns(each)) for each in (self._input, self._infer, self._output)]
            return ModelStatistics(
                name=name,
                version=version,
                last_inference=self._last_inference(),
                inference_count=self._inferences,
                execution_count=self._executions,
                # By its parts, so that rounding cannot make them more than the whole.
                success=Duration(count=self._answered, ns=queue.ns + sum(each.ns for each in parts)),
                fail=Duration(count=self._failed, ns=_ns(self._lost)),
                queue=queue,
                compute_input=parts[0],
                compute_infer=parts[1],
                compute_output=parts[2],
                batches=tuple(
                    BatchStatistics(
                        batch_size=size,
                        compute_input=Duration(count=batch.count, ns=_ns(batch.input)),
                        compute_infer=Duration(count=batch.count, ns=_ns(batch.infer)),
                        compute_output=Duration(count=batch.count, ns=_ns(batch.output)),
                    )
                    for size, batch in sorted(self._batches.items())
                ),
                lanes=self._lanes,
                steps=self._steps,
                padding_steps=self._steps - self._wanted,
                chunks=tuple(
                    ChunkStatistics(steps=1 << index, runs=runs) for index, runs in enumerate(self._chunks) if runs
                ),
                sequences=sequences,
                state_bytes=state_bytes,
            )

    def _last_inference(self) -> int:
        """Return when the last run ended; kept, so that it does not move while nothing runs."""
        if self._ended and self._ended != self._last[0]:
            self._last = self._ended, int((time.time() - (time.perf_counter() - self._ended)) * 1000)
        return self._last[1]


def _valid(part: "Part") -> int:
    """Return how many of a part's steps are within its rows' lengths."""
    bound = part.job.bound
    assert bound is not None
    assert bound.lengths is not None
    lengths = bound.lengths if part.rows is None else bound.lengths[part.rows]
    return int(np.clip(lengths - part.position, 0, part.steps).sum())


def _ns(seconds: float) -> int:
    return max(int(seconds * 1e9), 0)
