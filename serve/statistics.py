"""What a model has done since it was loaded: requests, runs, and where their time went.

`Counters` are fed once a run, on the thread that has run it, with what the run knows anyway; `ModelStatistics` are the
figures at one moment. The first of them are those of Triton's statistics extension, the others this server's own.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .jobs import Job, Part, Run, Tick

_EXACT = 1024
"""Rows up to which runs are told apart; a larger one counts as one of the next power of two, to bound the memory."""

_TOGETHER = 256
"""Runs of one request that are counted at once."""

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

    __slots__ = ("infer", "input", "output", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self.input = self.infer = self.output = 0.0


class Counters:
    """Counts what a model does. Thread-safe.

    Seconds are those of `time.perf_counter`, of which a run and a turn of the event loop take note anyway.
    """

    __slots__ = (
        "_alone",
        "_batches",
        "_chunks",
        "_ended",
        "_failed",
        "_infer",
        "_inferences",
        "_input",
        "_lanes",
        "_last",
        "_lock",
        "_lost",
        "_output",
        "_queue",
        "_ran",
        "_steps",
        "_unrun",
        "_wanted",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = 0.0
        self._last: tuple[float, int] = (0.0, 0)
        self._inferences = self._ran = self._unrun = self._failed = 0
        self._queue = self._input = self._infer = self._output = self._lost = 0.0
        self._alone: deque[tuple[float, int, int, float, float, float, float]] = deque()
        self._batches: dict[int, _Batch] = {}
        self._lanes = self._steps = self._wanted = 0
        self._chunks = [0] * (_LONGEST + 1)

    def record(self, tick: "Tick") -> None:
        """Count what went well of a tick, before its jobs are completed."""
        joins = tick.model.contract.joins
        for run in tick.runs:
            part = run[0][0]
            job, bound = part.job, part.job.bound
            assert bound is not None
            if (
                len(run[0]) > 1
                or not part.final
                or job.spent is not None
                or job.generation is not None
                or bound.lengths is not None
                or joins
            ):
                with self._lock:
                    self._count(run, bool(joins))
                continue
            # One request as a whole. After onnxruntime has run, a processor's caches hold nothing of this, so that
            # counting many such runs at once takes a fraction of the time.
            self._alone.append((job.arrived, *run[1:]))
            job.arrived = 0.0
            if len(self._alone) >= _TOGETHER:
                with self._lock:
                    self._catch_up()

    def _catch_up(self) -> None:
        """Count the requests that ran alone."""
        alone = self._alone
        while alone:
            arrived, steps, rows, started, fed, ran, ended = alone.popleft()
            took = fed - started, ran - fed, ended - ran
            self._add_run(steps, rows, took, ended)
            self._steps += rows * steps
            self._wanted += rows * steps
            self._ran += 1
            self._inferences += rows
            self._queue += started - arrived
            self._add(took)

    def _add_run(self, steps: int, rows: int, took: tuple[float, float, float], ended: float) -> None:
        if ended > self._ended:
            self._ended = ended
        self._lanes += rows
        self._chunks[(steps - 1).bit_length()] += 1
        size = rows if rows <= _EXACT else 1 << (rows - 1).bit_length()
        batch = self._batches.get(size)
        if batch is None:
            batch = self._batches[size] = _Batch()
        batch.runs += 1
        batch.input += took[0]
        batch.infer += took[1]
        batch.output += took[2]

    def _count(self, run: "Run", joins: bool) -> None:
        parts, steps, rows, started, fed, ran, ended = run
        took_input, took_infer, took_output = took = fed - started, ran - fed, ended - ran
        self._add_run(steps, rows, took, ended)
        self._steps += rows * steps * _largest(parts) if joins else rows * steps
        done = inferences = wanted = 0
        waited = 0.0
        for part in parts:
            job = part.job
            bound = job.bound
            assert bound is not None
            if joins or bound.lengths is not None or part.rows is not None:
                wanted += _asked(part)
            else:
                wanted += bound.rows * part.steps
            if part.final and (job.generation is None or job.generation.finish is not None):
                done += 1
                inferences += bound.rows
                waited += started - job.arrived
                job.arrived = 0.0
                if job.spent is not None:
                    self._add(job.spent)
                    waited -= sum(job.spent)
            else:
                before = job.spent or (0.0, 0.0, 0.0)
                job.spent = (before[0] + took_input, before[1] + took_infer, before[2] + took_output)
        self._wanted += wanted
        if done:
            self._ran += done
            self._inferences += inferences
            self._queue += waited
            self._add((done * took_input, done * took_infer, done * took_output))

    def _add(self, seconds: tuple[float, float, float]) -> None:
        self._input += seconds[0]
        self._infer += seconds[1]
        self._output += seconds[2]

    def settle(self, job: "Job", *, failed: bool) -> None:
        """Count a request that was accepted and is done otherwise than by a run: failed, or answered without one."""
        with self._lock:
            waited = time.perf_counter() - job.arrived
            job.arrived = 0.0
            if failed:
                self._failed += 1
                self._lost += waited
            else:
                self._unrun += 1
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
            self._catch_up()
            queue = Duration(count=self._ran + self._unrun, ns=_ns(self._queue))
            parts = [Duration(count=self._ran, ns=_ns(each)) for each in (self._input, self._infer, self._output)]
            return ModelStatistics(
                name=name,
                version=version,
                last_inference=self._last_inference(),
                inference_count=self._inferences,
                execution_count=sum(batch.runs for batch in self._batches.values()),
                # By its parts, so that rounding cannot make them more than the whole.
                success=Duration(count=queue.count, ns=queue.ns + sum(each.ns for each in parts)),
                fail=Duration(count=self._failed, ns=_ns(self._lost)),
                queue=queue,
                compute_input=parts[0],
                compute_infer=parts[1],
                compute_output=parts[2],
                batches=tuple(
                    BatchStatistics(
                        batch_size=size,
                        compute_input=Duration(count=batch.runs, ns=_ns(batch.input)),
                        compute_infer=Duration(count=batch.runs, ns=_ns(batch.infer)),
                        compute_output=Duration(count=batch.runs, ns=_ns(batch.output)),
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


def _asked(part: "Part") -> int:
    """Return how many of a part's steps, or of the places that its axes have, its request asked for."""
    job, bound = part.job, part.job.bound
    assert bound is not None
    places = math.prod(job.extent) if job.model.contract.joins else 1
    lengths = bound.lengths
    if lengths is None:
        return part.count * part.steps * places
    if bound.rows == 1:
        return part.steps * places if lengths[0] else 0
    if part.rows is not None:
        lengths = lengths[part.rows]
    return int(np.clip(lengths - part.position, 0, part.steps).sum()) * places


def _largest(parts: "Sequence[Part]") -> int:
    """Return how many places a row has when its axes are as large as the largest request's."""
    return math.prod(map(max, zip(*[part.job.extent for part in parts], strict=True)))


def _ns(seconds: float) -> int:
    return max(int(seconds * 1e9), 0)
