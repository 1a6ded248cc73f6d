"""Running sequences, and the slots of their states.

A pure table: it has no clock and no lock, and `now` is an argument. The scheduler calls it under the engine's lock.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from cellport.errors import (
    InvalidRequestError,
    QueueFullError,
    SequenceEndedError,
    SequenceExistsError,
    SequenceNotFoundError,
    ServingError,
)

from .codec import names
from .jobs import Job
from .model import Model
from .requests import SequenceId

LaneKey = tuple[str, SequenceId]

_ENDED = "has ended"


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """Limits on running sequences.

    Attributes:
        maximum: sequences held at once; a further start evicts the one that was used least recently.
        idle_seconds: a sequence without a step for so long is evicted.
        on_restart: what a start of a running id does: ``restart`` drops the old state, as Triton does; ``refuse``
            answers ALREADY_EXISTS.
        remembered: ids of past sequences that are kept, so that a late step is told what happened.
    """

    maximum: int = 10_000
    idle_seconds: float = 600.0
    on_restart: Literal["restart", "refuse"] = "restart"
    remembered: int = 10_000

    def __post_init__(self) -> None:
        if self.maximum < 1:
            raise ValueError(f"maximum is {self.maximum}; accepted: at least 1")
        if not self.idle_seconds > 0:
            raise ValueError(f"idle_seconds is {self.idle_seconds}; accepted: more than 0")
        if self.on_restart not in ("restart", "refuse"):
            raise ValueError(f"on_restart is {self.on_restart!r}; accepted: 'restart', 'refuse'")
        if self.remembered < 0:
            raise ValueError(f"remembered is {self.remembered}; accepted: at least 0")


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
    """

    key: LaneKey
    model: Model
    started: float
    last_used: float
    slot: int | None = None
    jobs: list[Job] = field(default_factory=list)  # a deque would take more memory than most states do

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
        self._past: OrderedDict[LaneKey, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lanes)

    def __repr__(self) -> str:
        return f"<SequenceTable {list(self._lanes.values())}>"

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
            self._make_room()
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
            raise InvalidRequestError(
                f"sequence {lane.key[1]!r} runs on version {lane.model.version} of model {lane.key[0]!r}; "
                f"version {model.version} was asked for"
            )
        if given:
            raise InvalidRequestError(
                f"state {names(given)} is given inside sequence {lane.key[1]!r}; accepted: with sequence_start only"
            )
        return lane.slot

    def advance(self, lane: Lane, model: Model, slot: int, now: float, *, start: bool = False) -> None:
        """Set where a lane's state is after a step; what was there before is let go of."""
        if lane.slot is not None and (lane.slot != slot or lane.model is not model):
            lane.model.free(lane.slot)
        if start or lane.slot is None:
            lane.started = now
            self._past.pop(lane.key, None)
        lane.model = model
        lane.slot = slot
        lane.last_used = now
        self._lanes.move_to_end(lane.key)

    def end(self, lane: Lane) -> None:
        """Stop a lane whose last step is done."""
        self._stop(lane)
        self._remember(lane.key, _ENDED)
        self.release(lane)

    def release(self, lane: Lane) -> None:
        """Forget a lane that neither runs nor has steps to do."""
        if not lane.running and not lane.jobs and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    def evict_idle(self, now: float) -> None:
        """Evict the sequences whose idle limit has passed."""
        late = []
        for lane in self._lanes.values():
            if lane.last_used + self.settings.idle_seconds > now:
                break
            if not lane.jobs:
                late.append(lane)
        for lane in late:
            self._evict(lane, f"was evicted after {self.settings.idle_seconds:g} s without a step")

    def next_eviction(self) -> float | None:
        """Return the moment at which the next idle limit may pass."""
        oldest = next(iter(self._lanes.values()), None)
        return None if oldest is None else oldest.last_used + self.settings.idle_seconds

    def _make_room(self) -> None:
        if len(self._lanes) < self.settings.maximum:
            return
        lane = next((each for each in self._lanes.values() if not each.jobs), None)
        if lane is None:
            raise QueueFullError(
                f"{len(self._lanes)} sequences are running and all have waiting steps; accepted: at most "
                f"{self.settings.maximum} sequences"
            )
        self._evict(lane, f"was evicted to make room; at most {self.settings.maximum} sequences are held")

    def _evict(self, lane: Lane, reason: str) -> None:
        del self._lanes[lane.key]
        self._stop(lane)
        self._remember(lane.key, reason)

    def _stop(self, lane: Lane) -> None:
        if lane.slot is not None:
            lane.model.free(lane.slot)
            lane.slot = None

    def _remember(self, key: LaneKey, reason: str) -> None:
        self._past[key] = reason
        self._past.move_to_end(key)
        while len(self._past) > self.settings.remembered:
            self._past.popitem(last=False)

    def _not_found(self, key: LaneKey) -> ServingError:
        reason = self._past.get(key, "was never started")
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
