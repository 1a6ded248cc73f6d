"""Carrying out what the scheduler says, on threads of its own and on those of callers."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from cellport.errors import UnavailableError

from .checking import wait_of
from .jobs import Completion, Job, Tick
from .requests import Reply
from .scheduler import Scheduler
from .sequences import SequenceTable
from .threads import name_thread
from .ticks import run_tick

_log = logging.getLogger(__name__)


class Runner:
    """Runs what waits.

    Args:
        scheduler: says what runs next.
        sequences: the running sequences.
        clock: tells the time.
        workers: how many runs there may be at a time.

    Attributes:
        changed: the lock around the scheduler and the sequences; workers wait for its news.
        closed: nothing more is accepted.
        workers: how many runs there may be at a time.
        runs: how many runs have begun.
        holding: a worker waits for more requests before it runs those that wait.
        unwatched: no worker waits for a sequence's idle limit, since there was none.
    """

    def __init__(
        self, scheduler: Scheduler, sequences: SequenceTable, clock: Callable[[], float], workers: int
    ) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self.workers = workers
        self.runs = 0
        self.holding = False
        self.unwatched = False
        self._clock = clock
        self._scheduler = scheduler
        self._sequences = sequences
        self._threads = [
            threading.Thread(target=self._work, name=f"cellport-engine-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self, seconds: float | None) -> None:
        """Refuse what waits and wait for what runs, but not longer than `seconds` for each worker."""
        with self.changed:
            self.closed = True
            completions = self._scheduler.cancel_all(_closed_error())
            self.changed.notify_all()
        deliver(completions)
        for thread in self._threads:
            thread.join(seconds)

    def run_alone(self, job: Job, limit: float) -> bool:
        """Accept a prepared request and run it on this thread, if that is to take no longer than `limit` seconds.

        Nothing is done, and False is returned, if it takes longer, or if anything else waits or runs.
        """
        with self.changed:
            if self.closed or job.phase != "new" or job.controls:
                return False
            job.arrived = time.perf_counter()
            tick = self._scheduler.start(job, self._clock(), limit)
            if tick is None:
                return False
            self.runs += 1
        self._run(tick)
        self._leave_waiting()
        return True

    def run_waiting(self) -> bool:
        """Run what is waiting, once, on this thread; return whether there was anything.

        Nothing is run if as many runs take place as there are workers.
        """
        with self.changed:
            if self._scheduler.running >= self.workers:
                return False
            tick, completions = self._schedule(self._clock(), 1)
        deliver(completions)
        if tick is not None:
            self._run(tick)
        return tick is not None

    def run_here(self) -> None:
        """Run what this thread has brought; what it does not get to is a worker's."""
        self.run_waiting()
        self._leave_waiting()

    def _leave_waiting(self) -> None:
        """Leave what came while this thread ran something to a worker, who may have found no room for it."""
        with self.changed:
            if self.can_run() or (self.unwatched and len(self._sequences)):
                self.changed.notify()

    def _schedule(self, now: float, idle: int | None = None) -> tuple[Tick | None, list[Completion]]:
        """Ask for a run, with the lock held.

        Args:
            now: this moment.
            idle: among how many runs to share out what waits; None for as many as there could be.
        """
        self._sequences.evict_idle(now)
        tick, completions = self._scheduler.schedule(now, idle or self.workers - self._scheduler.running)
        if tick is not None:
            self.runs += 1
            if self.can_run():
                self.changed.notify()
        return tick, completions

    def can_run(self) -> bool:
        """Whether a worker would find something to run, with the lock held.

        If none is free, then whoever ends a run looks again.
        """
        return self._scheduler.running < self.workers and self._scheduler.ready

    def _run(self, tick: Tick) -> None:
        failures = run_tick(tick)
        tick.model.statistics.record(tick)
        with self.changed:
            completions = self._scheduler.complete(tick, failures, self._clock())
            if self.closed:  # chunks and steps that waited behind the one that ran
                completions += self._scheduler.cancel_all(_closed_error())
        deliver(completions)

    def _work(self) -> None:
        """Run what is waiting until the engine is closed; the body of every worker thread."""
        name_thread("cellport-run")
        waited = False
        tick: Tick | None
        completions: list[Completion]
        while True:
            tick, completions = None, []  # while this waits, it holds nothing of the last run
            with self.changed:
                closed = self.closed
                tick, completions, waited = self._next(waited)
            if tick is None and not completions:
                if closed:
                    return
                continue
            deliver(completions)
            if tick is not None:
                self._run(tick)

    def _next(self, waited: bool) -> tuple[Tick | None, list[Completion], bool]:
        """Take what is to be run next, or wait for news, with the lock held.

        Args:
            waited: further requests have just been waited for, and are not waited for again.

        Returns:
            The run, what is to be delivered, and whether further requests have been waited for.
        """
        now = self._clock()
        if self._scheduler.running < self.workers:
            seconds = 0.0 if self.closed or waited else self._scheduler.patience(now)
            if seconds and not self.holding:
                self.holding = True
                self.changed.wait(seconds)
                self.holding = False
                return None, [], True
            if not seconds:
                tick, completions = self._schedule(now)
                if tick is not None or completions:
                    return tick, completions, False
        if not self.closed:
            moment = self._sequences.next_eviction()
            self.unwatched = moment is None
            self.changed.wait(None if moment is None else max(wait_of(moment - now), 0.1))
        return None, [], False


def _closed_error() -> UnavailableError:
    """Return the error of a request that waited when the engine was closed."""
    return UnavailableError("the engine was closed before the request ran")


def deliver(completions: Iterable[Completion]) -> None:
    """Tell outcomes and tokens to those who wait for them; without the lock."""
    for each in completions:
        try:
            if each.partial:
                assert each.job.partial is not None
                assert isinstance(each.outcome, Reply)
                each.job.partial(each.outcome)
            else:
                if each.job.arrived:
                    each.job.model.statistics.settle(each.job, failed=isinstance(each.outcome, Exception))
                each.job.done(each.outcome)
        except Exception:
            _log.exception("delivering an answer failed")
