"""The scheduler: which requests run next, together, and for how many steps.

A pure state machine: it has no clock, lock, thread or arithmetic on tensors, and `now` is an argument. Every change
returns the completions that follow, which the engine delivers. The engine asks for a `Tick`, runs it, and says what
came of it; between two ticks jobs join, leave, and are cut (docs/decisions/0017-cells-and-chunks.md).
"""

import heapq
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from cellport.errors import DeadlineExceededError, QueueFullError, ServingError, StepNumberError

from .costs import best_chunk
from .generation import TOKENS, Generation
from .grouping import Group, Item, alike, fitting
from .jobs import Completion, Job, Part, Place, Tick
from .model import Model
from .requests import Reply
from .sequences import Answer, SequenceTable
from .settings import BatchSettings
from .slots import INITIAL
from .ticks import group_key

_SEARCH = 4
"""Jobs that are looked at for a run, for each row that one may have."""

_DROPPED = 64
"""Dropped requests that may lie in the queues beyond as many as wait, before the queues are cleared of them."""

_EXPECTED = 1.5
"""How many times more rows the runs before must have had for more to be expected."""

PATIENCE = 0.001
"""Seconds that a request is made to wait for others at most."""

_WEIGHT = 0.1
_SOONEST, _LATEST = 0.001, 5.0
"""Seconds that a refused request is told to wait, at least and at most."""


class Scheduler:
    """The waiting requests of all models.

    Args:
        settings: limits.
        sequences: the running sequences.
        brief_seconds: what a run takes at most that others of its model wait for, if that is to run once at a time.
    """

    def __init__(self, settings: BatchSettings, sequences: SequenceTable, brief_seconds: float = 0.0) -> None:
        self.settings = settings
        self.sequences = sequences
        self._groups: dict[Hashable, Group] = {}
        self._waiting = 0
        self._bytes = 0
        self._dropped = 0
        self._running = 0
        self._rows: dict[int, int] = {}  # that run, by the model
        self._brief: dict[int, int] = {}  # runs that are brief, by the model
        self._brief_seconds = brief_seconds
        self._numbers = itertools.count()
        self._pace: float | None = None
        self._completed: float | None = None

    @property
    def waiting(self) -> int:
        """Requests that have been accepted, are not done, and of which nothing runs."""
        return self._waiting

    @property
    def ready(self) -> bool:
        """Whether there is something to run, if there is a thread for it."""
        if not self._waiting:
            return False
        return any(
            not self._held(group) and any(item[-1].phase == "waiting" for item in group.heap)
            for group in self._groups.values()
        )

    @property
    def running(self) -> int:
        """Runs that have been scheduled and not been completed."""
        return self._running

    def __repr__(self) -> str:
        return (
            f"<Scheduler {self._waiting} waiting in {len(self._groups)} groups, {self._running} runs, "
            f"{self.sequences!r}>"
        )

    def check_room(self, size: int = 0) -> None:
        """Refuse a request of `size` bytes that would be one too many.

        Raises:
            QueueFullError: as many requests or bytes wait as are accepted.
        """
        if self._waiting >= self.settings.queue:
            raise self._full(f"{self._waiting} requests are waiting; accepted: at most {self.settings.queue}")
        if self._waiting and self._bytes + size > self.settings.queue_bytes:
            raise self._full(
                f"{self._bytes} bytes of requests are waiting and {size} came; accepted: at most "
                f"{self.settings.queue_bytes}"
            )

    def _full(self, text: str) -> QueueFullError:
        """Return the error of a request too many, with the time in which a quarter of what waits will be done."""
        error = QueueFullError(text)
        pace = self._pace if self._pace is not None else _SOONEST
        error.retry_after = min(max(pace * self._waiting / 4, _SOONEST), _LATEST)
        return error

    def submit(self, job: Job) -> list[Completion]:
        """Accept a request.

        Raises:
            QueueFullError: as many requests wait as are accepted.
        """
        self.check_room(job.size)
        self._count(job)
        if not job.places:
            self._push(job)
            return []
        for place in job.places:
            if place.lane.jobs:
                job.blocked += 1
            place.lane.jobs.append(job)
        return [] if job.blocked else self._begin(job)

    def submit_ready(self, job: Job) -> None:
        """Accept steps of sequences that `SequenceTable.ready_lanes` has nothing to ask of; there is room for them."""
        self._count(job)
        for lane in job.lanes:
            lane.jobs.append(job)
        self._push(job)

    def _count(self, job: Job) -> None:
        job.number = next(self._numbers)
        self._classify(job)
        job.phase = "waiting"
        self._waiting += 1
        self._bytes += job.size

    def start(self, job: Job, now: float, limit: float = math.inf) -> Tick | None:
        """Accept a request and take it for a run of its own at once, which spares it the queue.

        None, and nothing is done, unless nothing else waits or runs, and the request is neither a step of a sequence
        nor a prompt and takes no longer than the longest run, and than `limit` seconds.
        """
        steps = job.steps
        if (
            self._running
            or self._waiting
            or job.places
            or job.bound is None
            or job.generation is not None
            or (job.deadline is not None and job.deadline <= now)
        ):
            return None
        seconds = job.model.costs.seconds(job.rows, steps)
        if seconds > self.settings.run_seconds or seconds > limit:
            return None
        job.number = next(self._numbers)
        job.phase = "running"
        part = self._part(job, steps)
        return self._begun(Tick(model=job.model, parts=[part], steps=steps, rows=part.count), seconds)

    def cancel(self, job: Job, error: Exception) -> tuple[bool, list[Completion]]:
        """Drop a request that has not run to its end; return whether it will end with `error`.

        One of which a chunk runs is dropped when the chunk is done; if that is its last, it is left alone.
        """
        if job.phase == "running" and not job.last and job.dropped is None:
            job.dropped = error
            return True, []
        if job.phase != "waiting":
            return False, []
        if not job.blocked:  # a later step of a sequence is in no queue yet
            self._dropped += 1
        completions = self._drop(job, error)
        if self._dropped > self._waiting + _DROPPED:
            self._clear()
        return True, completions

    def cancel_all(self, error: Exception) -> list[Completion]:
        """Drop every request that has not run to its end."""
        completions: list[Completion] = []
        # A step of several sequences that is dropped may free one that is not in any queue yet.
        while found := [each for group in self._groups.values() for *_, each in group.heap if each.phase == "waiting"]:
            for job in found:
                for lane in job.sequences:  # the last first: one that is free to begin would be queued again
                    for step in reversed(lane.jobs):
                        completions += self.cancel(step, error)[1]
                completions += self.cancel(job, error)[1]
        return completions

    def patience(self, now: float) -> float:
        """Return for how many seconds it pays to wait before the next run, 0 for not at all.

        A run of few rows takes hardly less time than one of many. Where the runs before had more rows, more requests
        are about to come; they are waited for, but never longer than a run of one row would take.
        """
        key = self._most_urgent()
        if key is None:
            return 0.0
        group = self._groups[key]
        job, costs = group.heap[0][-1], group.model.costs
        rows = len(group.heap) * job.rows
        if job.position or costs.usual < _EXPECTED * rows or rows >= costs.enough(job.remaining):
            return 0.0
        limit = min(costs.seconds(1, job.remaining), PATIENCE)
        if group.since is None:
            group.since = now
        if job.deadline is not None and job.deadline < now + 2 * limit + costs.seconds(rows, job.remaining):
            return 0.0
        return max(0.0, group.since + limit - now)

    def schedule(self, now: float, idle: int = 1) -> tuple[Tick | None, list[Completion]]:
        """Take the most urgent request and what can share its run.

        Args:
            now: this moment.
            idle: how many runs could begin now; the waiting requests are shared out among them.
        """
        completions: list[Completion] = []
        while (key := self._most_urgent()) is not None:
            group = self._groups[key]
            jobs = self._take(group, now, idle, completions)
            if not group.heap:
                del self._groups[key]
            if jobs:
                return self._tick(group, jobs, now), completions
        return None, completions

    def complete(self, tick: Tick, failures: Sequence[Exception | None], now: float) -> list[Completion]:
        """Record what became of each part of a run; a step that failed leaves its sequence where it was."""
        self._running -= 1
        key = id(tick.model)
        self._rows[key] -= tick.rows
        if not self._rows[key]:
            del self._rows[key]
        if tick.brief:
            self._brief[key] -= 1
            if not self._brief[key]:
                del self._brief[key]
        self._measure(sum(part.final for part in tick.parts), now)
        completions: list[Completion] = []
        for part, failure in zip(tick.parts, failures, strict=True):
            job = part.job
            job.position += part.steps
            generation = job.generation
            goes_on = not part.final or (generation is not None and failure is None and generation.finish is None)
            error = failure or (job.dropped if goes_on else None)
            if error is None and part.final and generation is not None:
                if job.partial is not None:
                    completions.append(Completion(job, _token(job, generation), partial=True))
                job.position, job.steps = 0, 1
                self._classify(job)
            if error is None and goes_on:
                job.phase = "waiting"
                self._waiting += 1
                self._bytes += job.size
                self._push(job)
                continue
            if error is None:
                reply = _reply(job)
                if job.lanes:
                    self._go_on(job, now)
                elif job.places:
                    self._advance(job, reply, now)
                completions.append(Completion(job, reply))
            else:
                completions.append(Completion(job, error))
            completions += self._leave(job)
        return completions

    def _measure(self, done: int, now: float) -> None:
        """Follow how long a request takes to be done, with the others, while there are some waiting."""
        if self._completed is not None and self._waiting:
            pace = (now - self._completed) / max(done, 1)
            self._pace = pace if self._pace is None else self._pace + _WEIGHT * (pace - self._pace)
        self._completed = now

    def _take(self, group: Group, now: float, idle: int, completions: list[Completion]) -> list[Job]:
        """Take jobs for one run out of a group."""
        most = self._share(group, idle)
        alive: list[Item] = []
        candidates, dropped = group.candidates(_SEARCH * self.settings.rows)
        self._dropped -= dropped
        for item in candidates:
            job = item[-1]
            if job.deadline is not None and job.deadline <= now:
                completions += self._drop(job, _late(job))  # and a step that waited for it may be pushed
            else:
                alive.append(item)
        jobs, left = alike(alive, most) if group.cut else fitting(alive, most, self.settings.padding)
        group.put_back(left)
        return jobs

    def _share(self, group: Group, idle: int) -> int:
        """Return how many rows a run takes.

        If nothing runs, that is an even share for each of the `idle` runs that could begin. If others run, the answers
        of those will come back as new requests, so that everything that runs or waits is shared out among all runs and
        one more: what then waits is there when a run ends, and no run waits for the loop to answer and to read. No run
        is made too small to pay.
        """
        waiting = len(group.heap)
        if group.model.single:
            return self.settings.rows
        if self._running:
            running = self._rows.get(id(group.model), 0)
            even = -(-(waiting + running) // (self._running + idle + 1))
        elif idle <= 1:
            return self.settings.rows
        else:
            even = -(-waiting // idle)
        return max(1, min(self.settings.rows, max(even, group.model.costs.enough(group.heap[0][-1].remaining))))

    def _tick(self, group: Group, jobs: list[Job], now: float) -> Tick:
        model = group.model
        if group.cut:
            chunk = self._chunk(model, jobs, now)
        else:
            chunk = max(job.steps for job in jobs)
        parts = []
        count = 0
        for job in jobs:
            job.phase = "running"
            job.passed = 0
            self._waiting -= 1
            self._bytes -= job.size
            part = self._part(job, min(chunk, job.remaining))
            count += part.count
            parts.append(part)
        return self._begun(Tick(model=model, parts=parts, steps=chunk, rows=count), model.costs.seconds(count, chunk))

    def _begun(self, tick: Tick, seconds: float) -> Tick:
        """Count a run that begins, and is expected to take so long."""
        key = id(tick.model)
        self._running += 1
        self._rows[key] = self._rows.get(key, 0) + tick.rows
        tick.brief = seconds <= self._brief_seconds
        if tick.brief:
            self._brief[key] = self._brief.get(key, 0) + 1
        return tick

    def _held(self, group: Group) -> bool:
        """Whether jobs wait for a brief run of their model, which is to run once at a time."""
        return group.model.single and id(group.model) in self._brief

    def _chunk(self, model: Model, jobs: Sequence[Job], now: float) -> int:
        """Return for how many steps jobs of a model that can be cut run together."""
        if all([job.remaining == 1 for job in jobs]):
            return 1
        remaining = [(job.rows, job.remaining) for job in jobs]
        chunk = best_chunk(remaining, model.costs, limit=self.settings.run_seconds)
        if not model.contract.pads:
            # Nothing masks the padding, so nothing may be padded.
            chunk = min(chunk, min(steps for _, steps in remaining))
        rows = sum(count for count, _ in remaining)
        for job in jobs:
            # The chunk ends with the job, if the job would otherwise wait for it beyond its deadline.
            if (
                job.deadline is not None
                and job.remaining < chunk
                and now + model.costs.seconds(rows, chunk) > job.deadline
            ):
                chunk = job.remaining
        return chunk

    def _part(self, job: Job, steps: int) -> Part:
        """Return what the next run does of a job, with slots for the states that it leaves."""
        bound = job.bound
        assert bound is not None
        rows = job.alive()
        final = steps == job.remaining
        source: Sequence[int] | None = None
        if job.slots:
            source = job.slots if rows is None else [job.slots[row] for row in rows]
        elif job.lanes:
            source = [slot for lane in job.lanes if (slot := lane.slot) is not None]
        elif job.places and not all([place.start for place in job.places]):
            source = [INITIAL if place.start else _slot(place) for place in job.places]
        target: Sequence[int] | None = None
        if not final or job.lanes or job.places or job.generation is not None:
            if not job.slots:
                if final and source is not None and (job.lanes or INITIAL not in source):
                    target = source
                else:
                    job.slots = [job.model.slots.take() for _ in range(bound.rows)]
            if target is None:
                target = job.slots if rows is None else [job.slots[row] for row in rows]
        job.last = final and job.generation is None
        return Part(
            job, bound, position=job.position, steps=steps, rows=rows, final=final, source=source, target=target
        )

    def _go_on(self, job: Job, now: float) -> None:
        """Move the sequences of a job that has lanes to the states after it."""
        if not job.slots:
            self.sequences.stay(job.lanes, now)
            return
        for lane, slot in zip(job.lanes, job.slots, strict=True):
            self.sequences.advance(lane, job.model, slot, now)
        job.slots = ()

    def _advance(self, job: Job, reply: Reply, now: float) -> None:
        """Move the sequences of a job that has places to the states after it."""
        places = job.places
        slots = job.slots or [_slot(place) for place in places]
        job.slots = ()
        kept: Reply | None = None
        if any([place.step is not None for place in places]):
            size = sum(array.nbytes for array in reply.outputs.values())
            if size <= self.sequences.settings.answer_bytes * len(places):
                # Views would keep the results of the whole run.
                outputs = {name: array.copy() for name, array in reply.outputs.items()}
                kept = replace(reply, outputs=outputs)
        for row, (place, slot) in enumerate(zip(places, slots, strict=True)):
            answer = None if place.step is None else Answer(place.step, job.digest, kept, row)
            self.sequences.advance(place.lane, job.model, slot, now, start=place.start, answer=answer)
            if place.end:
                self.sequences.end(place.lane)

    def _begin(self, job: Job) -> list[Completion]:
        """Queue a job whose sequences have done their earlier steps, unless it needs no run."""
        given = job.bound.states if job.bound is not None else ()
        try:
            reply = self._repeated(job)
            if reply is None:
                for place in job.places:
                    self.sequences.begin(place.lane, job.model, start=place.start, given=given)
        except ServingError as error:
            self._uncount(job)
            return [Completion(job, error), *self._leave(job)]
        if reply is None:
            if job.bound is not None:
                self._push(job)
                return []
            for place in job.places:
                self.sequences.end(place.lane)
            reply = _reply(job)
        self._uncount(job)
        return [Completion(job, reply), *self._leave(job)]

    def _repeated(self, job: Job) -> Reply | None:
        """Return the reply to a job whose numbered steps have been done already; None if they have not.

        Raises:
            StepNumberError: a step is neither the next nor the last that was done, or some are and some are not.
        """
        if all([place.step is None for place in job.places]):
            return None
        known = [
            None
            if place.step is None
            else self.sequences.repeated(place.lane, place.step, job.digest, start=place.start)
            for place in job.places
        ]
        if all(each is None for each in known):
            return None
        replies = {id(each.reply) if each is not None else None for each in known}
        first = known[0]
        if (
            len(replies) > 1
            or first is None
            or [each.row for each in known if each is not None] != [*range(len(known))]
        ):
            raise StepNumberError(
                "some of the request's steps have been done in another request; accepted: a request as it was sent, or "
                "one of steps that follow"
            )
        return first.reply

    def _drop(self, job: Job, error: Exception) -> list[Completion]:
        """Drop a job that waits."""
        self._uncount(job)
        return [Completion(job, error), *self._leave(job)]

    def _uncount(self, job: Job) -> None:
        self._waiting -= 1
        self._bytes -= job.size

    def _leave(self, job: Job) -> list[Completion]:
        """Take a job that is done out of its sequences, and let those go on."""
        for slot in job.slots:
            job.model.free(slot)
        job.slots = ()
        job.finish()
        freed: list[Job] = []
        for lane in job.sequences:
            jobs = lane.jobs
            first = jobs[0] is job
            jobs.remove(job)
            if not jobs:
                if not lane.stays:
                    self.sequences.release(lane)
            elif first:
                jobs[0].blocked -= 1
                if not jobs[0].blocked:
                    freed.append(jobs[0])
        job.lanes = job.places = ()
        completions = []
        for each in freed:
            if each.phase == "waiting" and not each.blocked:
                completions += self._begin(each)
        return completions

    def _classify(self, job: Job) -> None:
        """Set which jobs a job may share a run with."""
        if job.bound is not None:
            cut = self.settings.cut and job.model.contract.cuts
            job.key = group_key(job.model, job.bound, cut=cut, stateful=bool(job.lanes or job.places or job.slots))

    def _pop_dropped(self, group: Group) -> None:
        heapq.heappop(group.heap)
        self._dropped -= 1

    def _clear(self) -> None:
        """Take the dropped requests out of all queues; each is paid for by its own cancellation."""
        for key, group in list(self._groups.items()):
            group.heap = [item for item in group.heap if item[-1].phase == "waiting"]
            heapq.heapify(group.heap)
            if not group.heap:
                del self._groups[key]
        self._dropped = 0

    def _push(self, job: Job) -> None:
        cut = self.settings.cut and job.model.contract.cuts
        # A job that shares no run with any other has a group of its own.
        key = (id(job.model), job.key) if job.key is not None else (id(job),)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(job.model, cut)
        heapq.heappush(group.heap, (job.priority, job.arrived - self._head_start(job, group), job.number, job))

    def _head_start(self, job: Job, group: Group) -> float:
        """Return how many seconds earlier a job counts as having come, since it has more left to do.

        All jobs are to be done in about the same time, whatever they ask for; what takes many runs has to begin sooner.
        But nothing is put behind what comes much later.
        """
        if not group.cut or job.steps == 1:
            return 0.0
        costs = job.model.costs
        return min(job.remaining * costs.step_seconds(math.ceil(costs.usual)), self.settings.run_seconds)

    def _most_urgent(self) -> Hashable | None:
        best: tuple[int, float, int] | None = None
        found: Hashable | None = None
        for key, group in list(self._groups.items()):
            while group.heap and group.heap[0][-1].phase != "waiting":
                self._pop_dropped(group)
            if not group.heap:
                del self._groups[key]
            elif self._held(group):
                continue
            elif best is None or group.heap[0][:3] < best:
                best, found = group.heap[0][:3], key
        return found


def _reply(job: Job) -> Reply:
    chosen = job.controls[0].id if job.new else None
    if job.generation is not None:
        tokens = np.array([job.generation.tokens], np.int64)
        finish = job.generation.finish
        return Reply(model=job.model.name, version=job.model.version, outputs={TOKENS: tokens}, finish=finish)
    return Reply(model=job.model.name, version=job.model.version, outputs=job.results, sequence_id=chosen)


def _token(job: Job, generation: Generation) -> Reply:
    """Return the reply of the last token alone."""
    token = np.array([generation.tokens[-1:]], np.int64)
    finish = generation.finish
    return Reply(model=job.model.name, version=job.model.version, outputs={TOKENS: token}, finish=finish)


def _slot(place: Place) -> int:
    assert place.lane.slot is not None
    return place.lane.slot


def _late(job: Job) -> DeadlineExceededError:
    if job.generation is not None and job.generation.tokens:
        return DeadlineExceededError(f"the deadline passed after {len(job.generation.tokens)} tokens")
    if job.position:
        return DeadlineExceededError(f"the deadline passed after {job.position} of {job.steps} steps")
    return DeadlineExceededError("the deadline passed before the run")
