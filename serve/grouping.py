"""Which of the jobs that wait run together."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .jobs import Job
from .model import Model
from .uniting import UnionShape

_SOONER = 4
"""How many times worse it is to end so many steps sooner than the most urgent job than to end as many later."""

_PASSED = 4
"""Runs of others after which a job is taken before those that have been passed over less, whatever is left to do."""

_FEWEST = 2
"""What an even share of rows is divided by at most, however long a run's most urgent job is."""

Item = tuple[int, float, int, Job]
"""A waiting job: its priority, when it is due, its place in the order of arrival, and itself."""


@dataclass(eq=False, slots=True)
class Group:
    """Waiting jobs that may share a run, the most urgent first; `since` is when there was first a choice to wait."""

    model: Model
    cut: bool
    heap: list[Item] = field(default_factory=list)
    since: float | None = None

    def candidates(self, most: int) -> tuple[list[Item], int]:
        """Take out so many of the most urgent jobs.

        Returns:
            The jobs in their order, and how many dropped ones lay between them and are taken out too.
        """
        if len(self.heap) <= most:
            items, self.heap = sorted(self.heap), []
            found = [item for item in items if item[-1].phase == "waiting"]
            return found, len(items) - len(found)
        found, dropped = [], 0
        while self.heap and len(found) < most:
            item = heapq.heappop(self.heap)
            if item[-1].phase == "waiting":
                found.append(item)
            else:
                dropped += 1
        return found, dropped

    def put_back(self, items: Sequence[Item]) -> None:
        """Put back what has been taken out and is not run."""
        if not self.heap:
            self.heap = [*items]
            heapq.heapify(self.heap)
            return
        for item in items:
            heapq.heappush(self.heap, item)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The size of a run: its rows, its padded axes, and what its requests fill of them."""

    rows: int = 0
    extent: tuple[int, ...] = ()
    filled: int = 0
    union: UnionShape | None = None

    def with_job(self, job: Job, rows: int) -> "_Shape":
        if job.graph:
            return _Shape(self.rows + rows, union=(self.union or UnionShape()).with_graph(job.graph))
        extent = tuple(map(max, self.extent, job.extent)) if self.extent else job.extent
        return _Shape(self.rows + rows, extent, self.filled + rows * math.prod(job.extent))

    def fits(self, padding: float) -> bool:
        """Whether padding makes the run, or any input of a union, at most so many times larger."""
        if self.union is not None:
            return self.union.fits(padding)
        return self.rows * math.prod(self.extent) <= padding * self.filled


def fitting(items: Sequence[Item], most: int, padding: float) -> tuple[list[Job], list[Item]]:
    """Choose jobs that run whole: the most urgent one, and others in their order as long as little is padded.

    Args:
        items: the most urgent first.
        most: rows; a job that has more runs alone.
        padding: how many times larger than the jobs themselves the run may be.

    Returns:
        What is chosen, and what is left.
    """
    jobs: list[Job] = []
    left: list[Item] = []
    shape = _Shape()
    for place, item in enumerate(items):
        job = item[-1]
        rows = job.rows
        if jobs and shape.rows + rows > most:
            left += items[place:]
            break
        grown = shape.with_job(job, rows)
        if jobs and not grown.fits(padding):
            left.append(item)
            continue
        shape = grown
        jobs.append(job)
    return jobs, left


def alike(items: Sequence[Item], most: int) -> tuple[list[Job], list[Item]]:
    """Choose jobs that are cut: the most urgent one, and if not all fit, those that end nearest to its end.

    So a long request runs in long chunks beside other long ones, and not in as many as short ones end. But nobody is
    passed over again and again, however long the most urgent job stays that.

    Args:
        items: the most urgent first.
        most: rows; a job that has more runs alone.

    Returns:
        What is chosen, and what is left.
    """
    if not items:
        return [], []
    priority, _, _, first = items[0]
    most = min(most, _rows_beside(first, [item[-1] for item in items], most))
    if sum([item[-1].rows for item in items]) <= most:
        return [item[-1] for item in items], []
    longest = max([item[-1] for item in items if item[0] == priority], key=_passed)
    if longest.passed >= _PASSED and first.rows + longest.rows > most:
        first = longest  # there is no room for it beside the most urgent one, however often that runs
    ends = first.remaining

    def distance(job: Job) -> int:
        # One that ends later goes on in the next run; one that ends sooner cuts this run short, or is padded.
        later = job.remaining - ends
        return later if later >= 0 else -_SOONER * later

    def rank(item: Item) -> tuple[int, bool, bool, int]:
        job = item[-1]
        passed = job.passed >= _PASSED
        return item[0], job is not first, not passed, -job.passed if passed else distance(job)

    jobs: list[Job] = []
    left: list[Item] = []
    rows = 0
    for item in sorted(items, key=rank):
        job = item[-1]
        if jobs and rows + job.rows > most:
            job.passed += 1
            left.append(item)
            continue
        rows += job.rows
        jobs.append(job)
    return jobs, left


def _passed(job: Job) -> int:
    return job.passed


def _rows_beside(first: Job, jobs: Sequence[Job], most: int) -> int:
    """Return how many rows run beside the most urgent job: fewer if it is long, so that its steps take less time.

    What it has left to do takes many runs, and the rows beside it would make each of them slower; they find others.
    """
    usual = sum([job.remaining for job in jobs]) / len(jobs)
    fewer = max(int(most * usual / first.remaining), -(-most // _FEWEST))
    return max(fewer, first.model.costs.enough(first.remaining))
