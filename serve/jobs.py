"""What the scheduler handles: jobs, the parts of them that one run does, and what becomes of them."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from .codec import Array
from .contract import Bound
from .generation import Generation
from .model import Model
from .requests import Control, Reply
from .uniting import shape_of

if TYPE_CHECKING:
    from .sequences import Lane, LaneKey

Outcome = Reply | Exception


# Not dataclasses, like all that is made for every row or request: those take several times as long to make.
class Place:
    """A row's place in its sequence.

    Attributes:
        lane: the sequence.
        start: the row's steps start it.
        end: they end it.
        step: their number, if they have one.
    """

    __slots__ = ("end", "lane", "start", "step")

    def __init__(self, lane: "Lane", *, start: bool = False, end: bool = False, step: int | None = None) -> None:
        self.lane = lane
        self.start = start
        self.end = end
        self.step = step


class Job:
    """One accepted request on its way.

    Attributes:
        model: the model that runs it.
        bound: the checked request; None for the end of a sequence without a step, and once the job is done.
        done: called once with its outcome, outside of any lock.
        deadline: moment after which it is dropped, if it is not done and no chunk of it runs.
        priority: a smaller number runs first.
        pinned: the request named the model's version.
        controls: what the request says of its rows' sequences.
        new: the sequence's id was chosen by the engine.
        digest: of what it asks, if its steps are numbered.
        generation: what it generates, if it does.
        partial: called with each token of a generation, outside of any lock; None if they are to be told at the end.
        going_on: see `Request`.
        lanes: for each row, its sequence, if nothing had to be asked of them (`SequenceTable.ready_lanes`); most steps
            are such, and may be of many sequences.
        places: for each row, its place in a sequence, if it has no lanes; empty outside of sequences.
        number: its place in the order of arrival.
        key: what jobs have in common that may share a run.
        size: bytes of its tensors.
        extent: its sizes along the axes that are padded where it runs whole.
        graph: of a job that is united with others, for each input its size along the axis where it is put behind the
            others, and its other sizes.
        steps: how many steps it takes, the longest of its rows; 1 if there is no time axis.
        position: how many steps of it are done.
        slots: for each row, where its state after `position` steps is; empty as long as it is where the job began.
        results: its outputs, as far as they are known.
        blocked: rows whose sequences have earlier steps to do.
        passed: how many runs have begun without it since it waits.
        dropped: why it is dropped as soon as its chunk has run.
        last: the chunk that runs is its last.
        phase: where it is.
        arrived: when it was accepted, by `time.perf_counter`; 0 before, and once it has been counted.
        spent: seconds that its runs so far have taken: gathering, running the graph, giving out; None if it had none.
    """

    # Defaults of the class: most requests are done in one run and need few of these, and there is one for each request.
    lanes: "Sequence[Lane]" = ()
    places: Sequence[Place] = ()
    number = 0
    key: Hashable = None
    size = 0
    graph: tuple[tuple[int, tuple[int, ...]], ...] = ()
    steps = 1
    position = 0
    slots: Sequence[int] = ()
    blocked = 0
    passed = 0
    dropped: Exception | None = None
    last = False
    phase: Literal["new", "waiting", "running", "done"] = "new"
    arrived = 0.0
    spent: tuple[float, float, float] | None = None

    def __init__(
        self,
        *,
        model: Model,
        bound: Bound | None,
        done: Callable[[Outcome], None],
        deadline: float | None = None,
        priority: int = 1,
        pinned: bool = False,
        controls: Sequence[Control] = (),
        new: bool = False,
        digest: bytes = b"",
        generation: Generation | None = None,
        partial: Callable[[Reply], None] | None = None,
        going_on: "Sequence[LaneKey]" = (),
    ) -> None:
        self.model = model
        self.bound = bound
        self.done = done
        self.deadline = deadline
        self.priority = priority
        self.pinned = pinned
        self.controls = controls
        self.new = new
        self.digest = digest
        self.generation = generation
        self.partial = partial
        self.going_on = going_on
        self.results: dict[str, Array] = {}
        self.extent: tuple[int, ...] = ()
        if bound is not None:
            lengths = bound.lengths
            if lengths is not None:
                self.steps = max(int(lengths.max(initial=0)), 1)
            elif bound.time is not None:
                self.steps = bound.time
            contract = model.contract
            joins = contract.joins
            self.extent = tuple([bound.sizes[axis] for axis in joins]) if joins else (self.steps,)
            if contract.unites:
                self.graph = shape_of(contract, bound)
            self.size = bound.size

    @property
    def rows(self) -> int:
        """Rows that have steps left to do."""
        bound = self.bound
        assert bound is not None
        if bound.rows == 1 or bound.lengths is None or not self.position:
            return bound.rows
        return int((bound.lengths > self.position).sum())

    @property
    def sequences(self) -> "Sequence[Lane]":
        """The sequences that its rows are steps of."""
        return self.lanes or [place.lane for place in self.places]

    @property
    def remaining(self) -> int:
        """Steps left to do."""
        return self.steps - self.position

    def alive(self) -> list[int] | None:
        """Return which rows have steps left to do; None for all. In the first chunk all take part."""
        bound = self.bound
        assert bound is not None
        if bound.rows == 1 or bound.lengths is None or not self.position:
            return None
        found: list[int] = np.flatnonzero(bound.lengths > self.position).tolist()
        return None if len(found) == bound.rows else found

    def finish(self) -> None:
        """Be done: whoever still holds the job does not hold its tensors."""
        self.phase = "done"
        self.bound = None
        self.results = {}

    def __repr__(self) -> str:
        return f"<Job {self.number} of {self.model.name!r}: {self.phase}, {self.position} of {self.steps} steps>"


class Part:
    """What one run does of one job.

    Attributes:
        job: the job.
        bound: its request.
        position: the first step.
        steps: how many; 0 steps are valid of a row that is shorter still.
        rows: which rows; None for all.
        final: the job is done with it.
        source: slots of the states that the rows start from; None for the initial values, or the request's own.
        target: slots that the states are written to afterwards; None if nobody wants them.
        count: how many rows.
    """

    __slots__ = ("bound", "count", "final", "job", "position", "rows", "source", "steps", "target")

    def __init__(
        self,
        job: Job,
        bound: Bound,
        *,
        position: int,
        steps: int,
        rows: Sequence[int] | None,
        final: bool,
        source: Sequence[int] | None,
        target: Sequence[int] | None,
    ) -> None:
        self.job = job
        self.bound = bound
        self.position = position
        self.steps = steps
        self.rows = rows
        self.final = final
        self.source = source
        self.target = target
        self.count = bound.rows if rows is None else len(rows)


# A tuple, since it is made in every run, and an object takes five times as long to make.
Run = tuple[Sequence[Part], int, int, float, float, float, float]
"""A run that went well: what was run of each job, the size of the time axis, rows; and by `time.perf_counter` when it
began, when its tensors were gathered, when the graph had run, and when each job had its own."""


@dataclass(kw_only=True, eq=False, slots=True)
class Tick:
    """One run that is to be.

    Attributes:
        model: what is run.
        parts: what is run of each job.
        steps: size of the time axis.
        rows: how many rows.
        runs: what became of it: one run, or if that failed, those of its parts that went well alone.
        brief: it is expected to take so little time that others may wait for it.
    """

    model: Model
    parts: Sequence[Part]
    steps: int
    rows: int
    runs: list[Run] = field(default_factory=list)
    brief: bool = False


@dataclass(eq=False, slots=True)
class Completion:
    """An outcome to deliver, or the next token of a generation, which is `partial`."""

    job: Job
    outcome: Outcome
    partial: bool = False
