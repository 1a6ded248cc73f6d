"""Whatever the order in which many sequences' steps come, each sequence is answered as a serial run answers it."""

import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from cellport.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    RequestCancelledError,
    SequenceEndedError,
    SequenceNotFoundError,
    ServingError,
)
from cellport.serve import BatchSettings, Engine, EngineSettings, Model, Server
from cellport.serve.requests import Control, Reply, Request
from cellport.serve.settings import SequenceSettings
from cellport.serve.versions import RepositorySettings, VersionPolicy

from . import models
from .test_engine import busy
from .wire import tokens_of, triton_input

KINDS: dict[str, tuple[Callable[..., Path], int]] = {
    **{f"lstm {seed}": (models.save_lstm, seed) for seed in range(3)},
    "gru 0": (models.save_gru, 0),
}
"""Files that replace each other: two out of three times of the same states, and always of other weights."""


@dataclass
class Event:
    """One request of the random run, of one row for each sequence, and what became of it.

    Attributes:
        current: the model that served when it was sent, by its number.
        asked: the model that its steps were meant for.
    """

    names: tuple[int, ...]
    tokens: Any
    start: bool
    end: bool
    current: int = 0
    asked: int | None = None
    outcome: Any = None


@dataclass
class Unloading:
    """The model was unloaded: its sequences end when what has been sent is done."""


class Loads:
    """The models that one name has stood for, one after another.

    Args:
        root: the folder that the engine serves.
        kinds: a file of each kind.
    """

    def __init__(self, root: Path, kinds: dict[str, Path], choose: random.Random) -> None:
        self.folder = root / "tagger"
        self.kinds = kinds
        self.models: list[Model] = []
        self.of: list[str] = []
        self._choose = choose
        self._version = 0
        self.place()

    def place(self) -> None:
        """Put a file in the place of the current version's, or into that of a new one."""
        self._version += self._choose.random() < 0.5 or not self._version
        path = self.folder / str(self._version) / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kind = self._choose.choice(sorted({*self.kinds} - {*self.of[-1:]}))
        path.with_name("next").hardlink_to(self.kinds[self._kind])
        path.with_name("next").replace(path)

    def note(self, engine: Engine) -> None:
        """Take note of the model that serves now."""
        self.models.append(engine.repository.get("tagger"))
        self.of.append(self._kind)
        assert self.models[-1].version == str(self._version)
        assert len(engine.repository.versions("tagger")) == 1

    def number(self, model: Model) -> int:
        return next(number for number in reversed(range(len(self.models))) if self.models[number] is model)


class Serial:
    """The same requests, one after another and each alone, by onnxruntime itself: the states that each leaves.

    Each sequence is run on the file that served when it began.
    """

    def __init__(self, loads: Loads) -> None:
        self._loads = loads
        self._truths = {kind: Model.load(path) for kind, path in loads.kinds.items()}
        self._states: dict[int, tuple[int, Any]] = {}
        self._dropped: set[int] = set()
        self.steps = self.evicted = self.moved = self.refused = 0

    @property
    def running(self) -> dict[int, int]:
        """The sequences, and the number of each one's model."""
        return {name: number for name, (number, _) in self._states.items()}

    def check(self, event: Event | Unloading) -> None:
        """Compare what became of a request with what had to become of it, and go on."""
        if isinstance(event, Unloading):
            self._states.clear()
            return
        outcome = event.outcome
        if event.start:
            if isinstance(outcome, Reply):
                self._dropped.difference_update(event.names)
            else:
                self._dropped.update(event.names)
        if isinstance(outcome, RequestCancelledError | DeadlineExceededError | QueueFullError):
            return
        if isinstance(outcome, SequenceEndedError | SequenceNotFoundError):
            self._check_gone(event)
        elif isinstance(outcome, InvalidRequestError):
            self._check_refused(event)
        else:
            assert isinstance(outcome, Reply), outcome
            self._check_reply(event, outcome)

    def _check_gone(self, event: Event) -> None:
        assert not event.start
        found = re.search(
            r"sequence (\d+) of model 'tagger' (was never started|has ended|was evicted|was ended when)",
            str(event.outcome),
        )
        assert found, event.outcome
        name = int(found[1])
        assert name in event.names
        if found[2] == "was evicted":
            self.evicted += self._states.pop(name, None) is not None
        assert name not in self._states

    def _check_refused(self, event: Event) -> None:
        """Steps of one message run on one model; and a step is not run on another than that of the start before it."""
        found = re.search(r"sequence (\d+) runs on version (\d+) of model 'tagger'; ", str(event.outcome))
        assert found, event.outcome
        number, _ = self._states[int(found[1])]
        assert self._loads.models[number].version == found[2]
        assert event.asked != number
        assert len(event.names) > 1 or self._dropped.issuperset(event.names)
        self.refused += 1

    def _check_reply(self, event: Event, reply: Reply) -> None:
        numbers = {event.current} if event.start else {self._states[name][0] for name in event.names}
        [number] = numbers
        assert event.asked == number
        assert reply.version == self._loads.models[number].version
        model = self._truths[self._loads.of[number]]
        pairs = {each.input: each.output for each in model.manifest.states}
        for row, name in enumerate(event.names):
            feeds = {"tokens": event.tokens[row : row + 1]}
            if not event.start:
                feeds |= self._states[name][1]
            results = model.run(feeds, ["tags", "last", *pairs.values()])
            for output in ("tags", "last"):
                np.testing.assert_allclose(reply.outputs[output][row : row + 1], results[output], atol=1e-5)
            self._states[name] = number, {before: results[after] for before, after in pairs.items()}
            if event.end:
                del self._states[name]
        self.steps += len(event.names)
        self.moved += len(event.names) * (event.current != number)


def drawn_event(choose: random.Random, names: int, number: int) -> Event:
    rows = choose.choice([1, 1, 1, 1, 1, 2, 5])
    return Event(
        names=tuple(choose.sample(range(1, names + 1), rows)),
        tokens=tokens_of(choose.choice([1, 1, 1, 2, 5, 40]), seed=number, rows=rows),
        start=choose.random() < 0.2,
        end=choose.random() < 0.1,
    )


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    return {kind: save(root / f"{kind}.onnx", seed=seed) for kind, (save, seed) in KINDS.items()}


@pytest.mark.parametrize(
    ("events", "names", "reloads", "seed"),
    [
        (1500, 40, 0.01, 0),
        (1500, 300, 0.005, 1),
        (1500, 40, 0.0, 3),
        pytest.param(100_000, 300, 0.002, 2, marks=pytest.mark.slow),
    ],
)
def test_random_interleavings_equal_a_serial_run(
    tmp_path: Path, kinds: dict[str, Path], events: int, names: int, reloads: float, seed: int
) -> None:
    """Starts, steps of one and of many sequences, ends, cancellations, deadlines, evictions by age and for room.

    Meanwhile the model is loaded again and again, from other files, of the same version and of newer ones.
    """
    choose = random.Random(seed)
    ahead = [0.0]
    settings = EngineSettings(
        batch=BatchSettings(run_seconds=1e-5, queue=500),
        sequences=SequenceSettings(maximum=names // 2, idle_seconds=50.0, lifetime_seconds=400.0),
        repository=RepositorySettings(control="explicit", load=("*",), versions=VersionPolicy(latest=1)),
        warm_seconds=0.02,
    )
    log: list[Event | Unloading] = []
    left = threading.Semaphore(0)
    loads = Loads(tmp_path, kinds, choose)
    with Engine(tmp_path, settings, clock=lambda: time.monotonic() + ahead[0]) as engine:
        loads.note(engine)
        for number in range(events):
            if choose.random() < reloads:
                if choose.random() < 0.1:
                    log.append(Unloading())
                    engine.unload("tagger")
                loads.place()
                engine.load("tagger")
                loads.note(engine)
            event = drawn_event(choose, names, number)
            log.append(event)
            if choose.random() < 0.02:
                ahead[0] += choose.choice([1.0, 5.0, 20.0])
            submit(engine, event, loads, left, choose)
            if number % 200 == 199:  # so that not everything waits at once
                assert all(left.acquire(timeout=60) for _ in range(200))
        assert all(left.acquire(timeout=60) for _ in range(events % 200))
        serial = Serial(loads)
        for each in log:
            serial.check(each)
        held = {int(name) for name in re.findall(r"<Lane (\d+) of 'tagger': running", repr(engine))}
        # No lane outlives its sequence, none that runs is lost, and no slot is, in whichever model it is.
        assert held <= {*serial.running}
        assert repr(engine).count("<Lane") == len(held)
        for number, model in enumerate(loads.models):
            assert model.slots.used == sum(serial.running[name] == number for name in held)
    assert serial.steps > events // 4
    assert serial.evicted > events // 200
    assert serial.moved >= events * reloads


def submit(
    engine: Engine, event: Event, loads: Loads, left: threading.Semaphore, choose: random.Random, *, spare: bool = False
) -> None:
    """Send a request, and cancel it at once now and then, unless all are to be spared that."""

    def done(outcome: Any) -> None:
        event.outcome = outcome
        left.release()

    controls = [Control(id=name, start=event.start, end=event.end) for name in event.names]
    deadline = engine.clock() + choose.choice([0.5, 3.0]) if choose.random() < 0.1 and not spare else None
    request = Request(model="tagger", inputs={"tokens": event.tokens}, control=controls, deadline=deadline)
    event.current = len(loads.models) - 1
    try:
        job = engine.prepare(request, done)
        for _, error in engine.accept([job]):
            raise error
    except ServingError as error:
        done(error)
        return
    event.asked = loads.number(job.model)
    if choose.random() < 0.1 and not spare:
        engine.cancel(job, RequestCancelledError("cancelled"))


def test_a_step_is_not_refused_for_one_of_many_sequences_that_waits_before_it(
    tmp_path: Path, kinds: dict[str, Path]
) -> None:
    """The message has steps on two models, and is refused; the step after it is on its own sequence's."""
    choose = random.Random(0)
    loads = Loads(tmp_path, kinds, choose)
    models.save_slow(tmp_path / "slow" / "1" / "model.onnx", loops=100)
    repository = RepositorySettings(control="explicit", load=("*",), versions=VersionPolicy(latest=1))
    with Engine(tmp_path, EngineSettings(workers=1, warm_seconds=0.02, repository=repository)) as engine:
        loads.note(engine)
        old = engine.open_sequence("tagger", sequence_id=1)
        loads.place()
        engine.load("tagger")
        loads.note(engine)
        engine.open_sequence("tagger", sequence_id=2)
        tokens, left = tokens_of(3, seed=0), threading.Semaphore(0)
        expected = engine.infer("tagger", {"tokens": np.concatenate([tokens, tokens], axis=1)})["last"]
        with busy(engine):
            events = [Event(names, np.repeat(tokens, len(names), 0), False, False) for names in ((2,), (1, 2), (2,))]
            for event in events:
                submit(engine, event, loads, left, choose, spare=True)
        assert all(left.acquire(timeout=60) for _ in events)
        assert isinstance(events[1].outcome, InvalidRequestError)
        np.testing.assert_allclose(events[2].outcome.outputs["last"], expected, atol=1e-5)
        old.end()


def test_sequences_of_many_clients_at_once_do_not_mix(server: Server) -> None:
    def run(name: int) -> float:
        client = triton_grpc.InferenceServerClient(server.address)
        tokens = tokens_of(15, seed=name)
        for step in range(15):
            answer = client.infer(
                "lstm",
                [triton_input("tokens", tokens[:, step])],
                sequence_id=f"client {name}",
                sequence_start=step == 0,
                sequence_end=step == 14,
            )
        whole = client.infer("lstm", [triton_input("tokens", tokens)])
        client.close()
        return float(np.abs(answer.as_numpy("last") - whole.as_numpy("last")).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(run, range(32))) < 1e-5
