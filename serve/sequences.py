"""Running sequences, and the slots of their states.

A pure table: it has no clock and no lock, and `now` is an argument. The scheduler calls it under the engine's lock.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cellport.errors import (
    InvalidRequestError,
    QueueFullError,
    SequenceEndedError,
    SequenceExistsError,
    SequenceNotFoundError,
    ServingError,
    StepNumberError,
)

from .codec import names
from .jobs import Job
from .model import Model
from .requests import Reply, SequenceId
from .settings import SequenceSettings

LaneKey = tuple[str, SequenceId]

_ENDED = "has ended"


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """The answer to a numbered step.

    Attributes:
        step: its number.
        digest: of what was asked.
        reply: what was answered; None if that was too large to be remembered.
        row: which row of the reply is the sequence's.
    """

    step: int
    digest: bytes
    reply: Reply | None
    row: int


@dataclass(kw_only=True, eq=False, slots=True)
class Lane:
    """One sequence.

    Attributes:
        key: the model's name and the sequence's id.
        model: the model that the state belongs to.
        started: when its first step was done.
        last_used: when a step was last done.
        slot: where its state is; None while not running, as before its first step is done.
        jobs: steps that wait or run, in order of arrival; only the first may run.
        answer: the last step's, if it had a number.
        known: it is in the table, and so what further steps of its id are of.
    """

    key: LaneKey
    model: Model
    started: float
    last_used: float
    slot: int | None = None
    jobs: list[Job] = field(default_factory=list)  # a deque would take more memory than most states do
    answer: Answer | None = None
    known: bool = True

    @property
    def stays(self) -> bool:
        """Whether it is kept when it has no steps to do."""
        return self.known and self.slot is not None

    @property
    def running(self) -> bool:
        """Whether a step of it is done and it has not ended."""
        return self.slot is not None

    def __repr__(self) -> str:
        state = "running" if self.running else "not running"
        return f"<Lane {self.key[1]!r} of {self.key[0]!r}: {state}, {len(self.jobs)} steps>"


class SequenceTable:
    """The running sequences of all models.

    Args:
        settings: limits.
    """

    def __init__(self, settings: SequenceSettings) -> None:
        self.settings = settings
        self._lanes: OrderedDict[LaneKey, Lane] = OrderedDict()  # least recently used first
        self._past: OrderedDict[LaneKey, tuple[str, Answer | None]] = OrderedDict()
        self._bytes = 0
        self._swept = -math.inf

    def __len__(self) -> int:
        return len(self._lanes)

    def __repr__(self) -> str:
        return f"<SequenceTable {list(self._lanes.values())}>"

    def count(self) -> Counter[Model]:
        """Return how many sequences run on each model."""
        return Counter(lane.model for lane in self._lanes.values() if lane.running)

    def get(self, model: Model, sequence_id: SequenceId) -> Lane:
        """Return the lane of an id.

        Raises:
            SequenceNotFoundError: there is none; the message says whether it never started or was evicted.
            SequenceEndedError: it has ended.
        """
        lane = self._lanes.get((model.name, sequence_id))
        if lane is None:
            raise self._not_found((model.name, sequence_id))
        return lane

    def find(self, model: Model, sequence_id: SequenceId, now: float, *, numbered: bool = False) -> Lane:
        """Return the lane of an id; for a numbered step also of a sequence whose last answer is remembered.

        Raises:
            SequenceNotFoundError: there is none; the message says whether it never started or was evicted.
            SequenceEndedError: it has ended.
        """
        key = (model.name, sequence_id)
        if numbered and key not in self._lanes and self._past.get(key, ("", None))[1] is not None:
            lane = self._lanes[key] = Lane(key=key, model=model, started=now, last_used=now)
            return lane
        return self.get(model, sequence_id)

    def holds(self, model: Model, sequence_id: SequenceId) -> bool:
        """Return whether an id is in use."""
        return (model.name, sequence_id) in self._lanes

    def open(self, model: Model, sequence_id: SequenceId, now: float) -> Lane:
        """Return the lane of an id, making one if there is none. A new lane does not run until it has states.

        Raises:
            InvalidRequestError: the model has no sequences.
            QueueFullError: there is no room, and no sequence that could be evicted.
        """
        check_recurrent(model)
        key = (model.name, sequence_id)
        lane = self._lanes.get(key)
        if lane is None:
            self._make_room(model.arena.row_bytes)
            lane = self._lanes[key] = Lane(key=key, model=model, started=now, last_used=now)
        return lane

    def begin(self, lane: Lane, model: Model, *, start: bool, given: Iterable[str]) -> int | None:
        """Return the slot that a lane's next step starts from, None for a new state; the lane does not change.

        Args:
            lane: the lane, whose earlier steps are done.
            model: the model that the step asks for.
            start: the step starts the sequence.
            given: names of the states that the step gives.

        Raises:
            SequenceNotFoundError: the sequence is not running and the step does not start it.
            SequenceEndedError: the same, because it has ended.
            SequenceExistsError: the sequence is running, the step starts it, and that is refused.
            InvalidRequestError: the step gives a state inside the sequence, or asks for another version.
        """
        if start:
            if lane.running and self.settings.on_restart == "refuse":
                raise SequenceExistsError(
                    f"sequence {lane.key[1]!r} of model {lane.key[0]!r} is running; accepted: sequence_start for an id "
                    "that is not running"
                )
            return None
        if lane.slot is None:
            raise self._not_found(lane.key)
        if model is not lane.model:
            asked = f"version {model.version} was asked for"
            if model.version == lane.model.version:
                asked = "the step is meant for the one that was loaded in its place"
            raise InvalidRequestError(
                f"sequence {lane.key[1]!r} runs on version {lane.model.version} of model {lane.key[0]!r}; {asked}"
            )
        if given:
            raise InvalidRequestError(
                f"state {names(given)} is given inside sequence {lane.key[1]!r}; accepted: with sequence_start only"
            )
        return lane.slot

    def repeated(self, lane: Lane, step: int, digest: bytes, *, start: bool) -> Answer | None:
        """Return the answer to a numbered step that was done already; None for one that is to be done.

        Args:
            lane: the lane, whose earlier steps are done.
            step: the step's number.
            digest: of what is asked.
            start: it starts the sequence, and so is the last one again only if it asks the same.

        Raises:
            StepNumberError: it is neither the next nor the last one that was done.
        """
        known = lane.answer
        if known is None and not lane.running and lane.key in self._past:
            known = self._past[lane.key][1]
        if known is None:
            return None
        what = f"step {step} of sequence {lane.key[1]!r} of model {lane.key[0]!r}"
        if step == known.step and digest == known.digest:
            if known.reply is None:
                raise StepNumberError(
                    f"{what} has been done, but its answer had more than {self.settings.answer_bytes} bytes and was "
                    "not remembered"
                )
            return known
        if start:
            return None
        if step == known.step:
            raise StepNumberError(f"{what} has been done with other inputs; accepted: {known.step + 1}")
        if step != known.step + 1:
            raise StepNumberError(
                f"{what} follows step {known.step}; accepted: {known.step + 1}, or {known.step} again"
            )
        return None

    def advance(
        self,
        lane: Lane,
        model: Model,
        slot: int,
        now: float,
        *,
        start: bool = False,
        answer: Answer | None = None,
    ) -> None:
        """Set where a lane's state is after a step; what was there before is let go of."""
        if lane.slot is not None and (lane.slot != slot or lane.model is not model):
            lane.model.free(lane.slot)
        if lane.slot is None:
            self._bytes += model.arena.row_bytes
        elif lane.model is not model:
            self._bytes += model.arena.row_bytes - lane.model.arena.row_bytes
        if start or lane.slot is None:
            lane.started = now
            if lane.known:
                self._past.pop(lane.key, None)
        lane.model = model
        lane.slot = slot
        lane.last_used = now
        lane.answer = answer
        if lane.known:
            self._lanes.move_to_end(lane.key)

    def stay(self, lanes: Sequence[Lane], now: float) -> None:
        """Take note of steps without a number that have left their states where the states before were."""
        move = self._lanes.move_to_end
        for lane in lanes:
            lane.last_used = now
            lane.answer = None
            if lane.known:
                move(lane.key)

    def model_of(self, name: str, sequence_id: SequenceId) -> Model | None:
        """Return the model that a sequence runs on, of whatever version; None if it is not running."""
        lane = self._lanes.get((name, sequence_id))
        return lane.model if lane is not None and lane.running else None

    def next_model_of(self, name: str, sequence_id: SequenceId) -> Model | None:
        """Return the model that a sequence's next step runs on, after the steps that wait; None if that is not known.

        Needs no lock: what it says may change before a step that relies on it is accepted.
        """
        lane = self._lanes.get((name, sequence_id))
        if lane is None:
            return None
        jobs = list(lane.jobs)
        if not jobs:
            return lane.model if lane.slot is not None else None
        if all(job.model is lane.model for job in jobs):
            return lane.model
        # A step of many sequences may wait here that is meant for another's model, and will be refused.
        for job in reversed(jobs):
            if any(place.start and place.lane is lane for place in job.places):
                return job.model
        return lane.model if lane.running else None

    def ready_lanes(self, model: Model, keys: Sequence[LaneKey]) -> list[Lane] | None:
        """Return the lanes of steps that go on, if nothing has to be asked of them any more.

        They run on just this model and have no steps to do. None if it is otherwise with one of them.
        """
        get = self._lanes.get
        found: list[Lane] = []
        for key in keys:
            lane = get(key)
            if lane is None or lane.jobs or lane.slot is None or lane.model is not model:
                return None
            found.append(lane)
        return found

    def check_past(self, name: str, sequence_id: SequenceId) -> None:
        """Say what became of a sequence that is remembered.

        Raises:
            SequenceNotFoundError: it was evicted, or its model was unloaded.
            SequenceEndedError: it has ended.
        """
        key = (name, sequence_id)
        if key in self._past and key not in self._lanes:
            raise self._not_found(key)

    def end(self, lane: Lane) -> None:
        """Stop a lane whose last step is done."""
        answer = lane.answer
        self._stop(lane)
        if lane.known:
            self._remember(lane.key, _ENDED, answer)
        self.release(lane)

    def end_all(self, name: str, reason: str) -> None:
        """Stop all lanes of a model's name; steps of them that have been accepted are done before.

        Args:
            name: the model's name.
            reason: what later steps are told.
        """
        for lane in [each for each in self._lanes.values() if each.key[0] == name]:
            if not lane.jobs:
                self._evict(lane, reason)
                continue
            # From now on only its steps know it, and it is stopped when they are done.
            self._forget(lane)
            self._remember(lane.key, reason)

    def release(self, lane: Lane) -> None:
        """Forget a lane that neither runs nor has steps to do."""
        if lane.jobs:
            return
        if not lane.known:
            self._stop(lane)
        elif not lane.running:
            self._forget(lane)

    def _forget(self, lane: Lane) -> None:
        lane.known = False
        del self._lanes[lane.key]

    def evict_idle(self, now: float) -> None:
        """Evict the sequences whose idle limit or lifetime has passed."""
        self._evict_old(now)
        late = []
        for lane in self._lanes.values():
            if lane.last_used + self.settings.idle_seconds > now:
                break
            if not lane.jobs:
                late.append(lane)
        for lane in late:
            self._evict(lane, f"was evicted after {self.settings.idle_seconds:g} s without a step")

    def _evict_old(self, now: float) -> None:
        limit = self.settings.lifetime_seconds
        if limit == math.inf or now < self._swept + min(1.0, limit / 10):
            return
        self._swept = now
        for lane in [each for each in self._lanes.values() if each.running and each.started + limit <= now]:
            if not lane.jobs:
                self._evict(lane, f"was evicted {limit:g} s after its start")

    def next_eviction(self) -> float | None:
        """Return the moment at which the next idle limit may pass."""
        oldest = next(iter(self._lanes.values()), None)
        if oldest is None:
            return None
        moment = oldest.last_used + self.settings.idle_seconds
        if self.settings.lifetime_seconds < math.inf:
            moment = min(moment, self._swept + 1.0)
        return moment

    def _make_room(self, size: int) -> None:
        settings = self.settings
        if len(self._lanes) >= settings.maximum:
            self._evict_one(f"at most {settings.maximum} sequences are held")
        while self._bytes and self._bytes + size > settings.state_bytes:
            self._evict_one(f"at most {settings.state_bytes} bytes of states are held")

    def _evict_one(self, limit: str) -> None:
        lane = next((each for each in self._lanes.values() if not each.jobs), None)
        if lane is None:
            raise QueueFullError(f"{len(self._lanes)} sequences are running and all have waiting steps; {limit}")
        self._evict(lane, f"was evicted to make room; {limit}")

    def _evict(self, lane: Lane, reason: str) -> None:
        self._forget(lane)
        self._stop(lane)
        self._remember(lane.key, reason)

    def _stop(self, lane: Lane) -> None:
        if lane.slot is not None:
            self._bytes -= lane.model.arena.row_bytes
            lane.model.free(lane.slot)
            lane.slot = None
        lane.answer = None

    def _remember(self, key: LaneKey, reason: str, answer: Answer | None = None) -> None:
        self._past[key] = reason, answer
        self._past.move_to_end(key)
        while len(self._past) > self.settings.remembered:
            self._past.popitem(last=False)

    def _not_found(self, key: LaneKey) -> ServingError:
        reason, _ = self._past.get(key, ("was never started", None))
        kind = SequenceEndedError if reason == _ENDED else SequenceNotFoundError
        return kind(f"sequence {key[1]!r} of model {key[0]!r} {reason}; accepted: sequence_start with its first step")


def check_recurrent(model: Model) -> None:
    """Refuse a model that cannot run sequences.

    Raises:
        InvalidRequestError: the model is not causal, or has no states.
    """
    if not model.contract.recurrent:
        reason = "has no states" if not model.manifest.states else "is not causal"
        raise InvalidRequestError(f"model {model.name!r} {reason}; accepted: requests without sequence_id")
