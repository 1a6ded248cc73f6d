"""The first scheduler: a bounded queue from which compatible requests are taken together.

A pure state machine: it has no clock, lock or thread, and `now` is an argument. Every change returns the completions
that follow, which the engine delivers. A request is taken as soon as a worker is free: an idle engine adds no delay,
and a busy one finds in its queue what arrived during the last run.
"""

import heapq
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cellport.errors import DeadlineExceededError, QueueFullError, ServingError

from . import assembly
from .assembly import Answer, Member
from .codec import Array
from .contract import Bound
from .model import Model
from .requests import Reply
from .sequences import Lane, SequenceTable

Outcome = Reply | Exception

_SEARCH = 4
"""Requests that are passed over, for each row of a run, before the search for ones that fit is given up."""

_DROPPED = 64
"""Dropped requests that may lie in the queues beyond as many as wait, before the queues are cleared of them."""


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Limits of batching.

    Attributes:
        queue: requests that may wait; a further one is refused.
        rows: rows of one run. A request that has more runs alone.
        padding: how many times larger than the requests' own steps a run may be made by padding; so that one long
            request does not make a hundred short ones as long as itself.
        default_priority: of a request that gives none; a smaller number runs first.
    """

    queue: int = 4096
    rows: int = 64
    padding: float = 1.25
    default_priority: int = 2

    def __post_init__(self) -> None:
        for name in ("queue", "rows", "padding", "default_priority"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 1")


@dataclass(kw_only=True, eq=False)
class Work:
    """One accepted request on its way.

    Attributes:
        model: the model that runs it.
        bound: the checked request; None for the end of a sequence without a step, and once the work is done.
        deadline: moment after which it is dropped if it has not run.
        priority: a smaller number runs first.
        lane: its sequence; None outside one.
        start: it starts the sequence.
        end: it ends the sequence.
        done: called once with its outcome, outside of any lock.
        carried: the sequence's states before it, from its turn until it is done.
        phase: where it is.
    """

    model: Model
    bound: Bound | None
    done: Callable[[Outcome], None]
    deadline: float | None = None
    priority: int = 1
    lane: Lane | None = None
    start: bool = False
    end: bool = False
    carried: Mapping[str, Array] | None = None
    phase: Literal["waiting", "running", "done"] = "waiting"

    def finish(self) -> None:
        """Be done: whoever still holds the work does not hold its tensors."""
        self.phase = "done"
        self.bound = self.carried = None

    @property
    def member(self) -> Member:
        """The work as a member of a batch."""
        assert self.bound is not None
        return Member(bound=self.bound, carried=self.carried)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Works of one model that share a run."""

    model: Model
    works: Sequence[Work]


@dataclass(frozen=True, eq=False)
class Completion:
    """An outcome to deliver."""

    work: Work
    outcome: Outcome


@dataclass(eq=False)
class _Queue:
    model: Model
    heap: list[tuple[int, int, Work]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """The size of a run: its rows, its longest time, and the steps that its requests gave."""

    rows: int = 0
    longest: int = 0
    steps: int = 0

    def with_request(self, bound: Bound) -> "_Shape":
        time = bound.time or 1
        return _Shape(
            rows=self.rows + bound.rows, longest=max(self.longest, time), steps=self.steps + bound.rows * time
        )


class Scheduler:
    """The waiting requests of all models.

    Args:
        settings: limits.
        sequences: the running sequences.
    """

    def __init__(self, settings: BatchSettings, sequences: SequenceTable) -> None:
        self.settings = settings
        self.sequences = sequences
        self._queues: dict[Hashable, _Queue] = {}
        self._waiting = 0
        self._dropped = 0
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        """Requests that have been accepted and not been taken."""
        return self._waiting

    def __repr__(self) -> str:
        return f"<Scheduler {self._waiting} waiting in {len(self._queues)} queues, {self.sequences!r}>"

    def check_room(self) -> None:
        """Refuse a request that would be one too many.

        Raises:
            QueueFullError: as many requests wait as are accepted.
        """
        if self._waiting >= self.settings.queue:
            raise QueueFullError(f"{self._waiting} requests are waiting; accepted: at most {self.settings.queue}")

    def submit(self, work: Work) -> list[Completion]:
        """Accept a request.

        Raises:
            QueueFullError: as many requests wait as are accepted.
        """
        self.check_room()
        self._waiting += 1
        if work.lane is None:
            self._push(work)
            return []
        work.lane.steps.append(work)
        return self._turn(work.lane) if len(work.lane.steps) == 1 else []

    def cancel(self, work: Work, error: Exception) -> list[Completion]:
        """Drop a request that has not been taken; one that has is left alone."""
        if work.phase != "waiting":
            return []
        if work.lane is None or work.lane.steps[0] is work:  # a later step of a lane is in no queue yet
            self._dropped += 1
        completions = self._drop(work, error)
        if self._dropped > self._waiting + _DROPPED:
            self._clear()
        return completions

    def cancel_all(self, error: Exception) -> list[Completion]:
        """Drop every request that has not been taken."""
        completions = []
        for work in [each for queue in self._queues.values() for _, _, each in queue.heap]:
            completions += self.cancel(work, error)
            if work.lane is not None:
                for step in list(work.lane.steps):
                    completions += self.cancel(step, error)
        return completions

    def take(self, now: float) -> tuple[Batch | None, list[Completion]]:
        """Take the most urgent request and all that can share its run, up to the limit of rows."""
        completions: list[Completion] = []
        while (key := self._most_urgent()) is not None:
            queue = self._queues[key]
            works: list[Work] = []
            left: list[tuple[int, int, Work]] = []
            shape = _Shape()
            while queue.heap:
                work = queue.heap[0][2]
                if work.phase != "waiting":
                    self._pop_dropped(queue)
                    continue
                if work.deadline is not None and work.deadline <= now:
                    heapq.heappop(queue.heap)
                    completions += self._drop(work, DeadlineExceededError("the deadline passed before the run"))
                    continue
                assert work.bound is not None
                grown = shape.with_request(work.bound)
                if (works and grown.rows > self.settings.rows) or len(left) >= _SEARCH * self.settings.rows:
                    break
                if works and grown.rows * grown.longest > self.settings.padding * grown.steps:
                    left.append(heapq.heappop(queue.heap))
                else:
                    heapq.heappop(queue.heap)
                    works.append(work)
                    shape = grown
            for item in left:
                heapq.heappush(queue.heap, item)
            if not queue.heap:
                del self._queues[key]
            for work in works:
                work.phase = "running"
            if works:
                self._waiting -= len(works)
                return Batch(model=queue.model, works=works), completions
        return None, completions

    def finish(self, batch: Batch, answers: Sequence[Answer | Exception], now: float) -> list[Completion]:
        """Record what a run gave; a step that failed leaves its sequence where it was."""
        completions = []
        for work, answer in zip(batch.works, answers, strict=True):
            work.finish()
            lane = work.lane
            if isinstance(answer, Exception):
                completions.append(Completion(work, answer))
            else:
                reply = Reply(model=work.model.name, version=work.model.version, outputs=answer.outputs)
                completions.append(Completion(work, reply))
                if lane is not None:
                    self.sequences.advance(lane, work.model, answer.states, now)
                    if work.end:
                        self.sequences.end(lane)
            if lane is not None:
                completions += self._turn(lane)
        return completions

    def _turn(self, lane: Lane) -> list[Completion]:
        """Queue the next step of a lane whose earlier steps are done."""
        completions = []
        while lane.steps:
            work = lane.steps[0]
            if work.phase == "waiting":
                try:
                    given = work.bound.states if work.bound is not None else {}
                    work.carried = self.sequences.begin(lane, work.model, start=work.start, given=given)
                except ServingError as error:
                    self._leave(work)
                    completions.append(Completion(work, error))
                else:
                    if work.bound is not None:
                        self._push(work)
                        return completions
                    self._leave(work)
                    self.sequences.end(lane)
                    reply = Reply(model=work.model.name, version=work.model.version, outputs={})
                    completions.append(Completion(work, reply))
            lane.steps.popleft()
        self.sequences.release(lane)
        return completions

    def _drop(self, work: Work, error: Exception) -> list[Completion]:
        self._leave(work)
        completions = [Completion(work, error)]
        if work.lane is not None and work.lane.steps[0] is work:
            completions += self._turn(work.lane)
        elif work.lane is not None:
            work.lane.steps.remove(work)
        return completions

    def _leave(self, work: Work) -> None:
        work.finish()
        self._waiting -= 1

    def _pop_dropped(self, queue: _Queue) -> None:
        heapq.heappop(queue.heap)
        self._dropped -= 1

    def _clear(self) -> None:
        """Take the dropped requests out of all queues; each is paid for by its own cancellation."""
        for key, queue in list(self._queues.items()):
            queue.heap = [item for item in queue.heap if item[2].phase == "waiting"]
            heapq.heapify(queue.heap)
            if not queue.heap:
                del self._queues[key]
        self._dropped = 0

    def _push(self, work: Work) -> None:
        common = assembly.key(work.model.contract, work.member)
        # Works that share no run with any other get a queue of their own.
        key = (id(work.model), common) if common is not None else (id(work),)
        queue = self._queues.setdefault(key, _Queue(work.model))
        heapq.heappush(queue.heap, (work.priority, next(self._numbers), work))

    def _most_urgent(self) -> Hashable | None:
        best: tuple[int, int] | None = None
        found: Hashable | None = None
        for key, queue in list(self._queues.items()):
            while queue.heap and queue.heap[0][2].phase != "waiting":
                self._pop_dropped(queue)
            if not queue.heap:
                del self._queues[key]
            elif best is None or queue.heap[0][:2] < best:
                best, found = queue.heap[0][:2], key
        return found
