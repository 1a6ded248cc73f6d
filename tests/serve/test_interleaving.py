"""Whatever the order in which many sequences' steps come, each sequence is answered as a serial run answers it."""

import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from cellport.errors import (
    DeadlineExceededError,
    QueueFullError,
    RequestCancelledError,
    SequenceEndedError,
    SequenceNotFoundError,
    ServingError,
)
from cellport.serve import BatchSettings, Engine, EngineSettings, Model, Server
from cellport.serve.requests import Control, Reply, Request
from cellport.serve.sequences import SequenceSettings

from .wire import tokens_of, triton_input


@dataclass
class Event:
    """One request of the random run, of one row for each sequence, and what became of it."""

    names: tuple[int, ...]
    tokens: Any
    start: bool
    end: bool
    outcome: Any = None


class Serial:
    """The same requests, one after another and each alone, by onnxruntime itself: the states that each leaves."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._states: dict[int, Any] = {}
        self.steps = self.evicted = 0

    @property
    def running(self) -> set[int]:
        return set(self._states)

    def check(self, event: Event) -> None:
        """Compare what became of a request with what had to become of it, and go on."""
        outcome = event.outcome
        if isinstance(outcome, RequestCancelledError | DeadlineExceededError | QueueFullError):
            return
        if isinstance(outcome, SequenceEndedError | SequenceNotFoundError):
            assert not event.start
            found = re.search(r"sequence (\d+) of model 'lstm' (was never started|has ended|was evicted)", str(outcome))
            assert found, outcome
            name = int(found[1])
            assert name in event.names
            if found[2] == "was evicted":
                self.evicted += self._states.pop(name, None) is not None
            assert name not in self._states
            return
        assert isinstance(outcome, Reply), outcome
        for row, name in enumerate(event.names):
            feeds = {"tokens": event.tokens[row : row + 1]}
            if not event.start:
                assert name in self._states
                feeds |= self._states[name]
            results = self._model.run(feeds, ["tags", "last", "h_out", "c_out"])
            for output in ("tags", "last"):
                np.testing.assert_allclose(outcome.outputs[output][row : row + 1], results[output], atol=1e-5)
            self._states[name] = {"h": results["h_out"], "c": results["c_out"]}
            if event.end:
                del self._states[name]
        self.steps += len(event.names)


def drawn_event(choose: random.Random, names: int, number: int) -> Event:
    rows = choose.choice([1, 1, 1, 1, 1, 2, 5])
    return Event(
        names=tuple(choose.sample(range(1, names + 1), rows)),
        tokens=tokens_of(choose.choice([1, 1, 1, 2, 5, 40]), seed=number, rows=rows),
        start=choose.random() < 0.2,
        end=choose.random() < 0.1,
    )


@pytest.mark.parametrize(
    ("events", "names", "seed"),
    [(1500, 40, 0), (1500, 300, 1), pytest.param(100_000, 300, 2, marks=pytest.mark.slow)],
)
def test_random_interleavings_equal_a_serial_run(folder: Path, events: int, names: int, seed: int) -> None:
    """Starts, steps of one and of many sequences, ends, cancellations, deadlines, evictions by age and for room."""
    choose = random.Random(seed)
    now = [0.0]
    sequences = SequenceSettings(maximum=names // 2, idle_seconds=50.0, lifetime_seconds=400.0)
    settings = EngineSettings(batch=BatchSettings(run_seconds=1e-5, queue=500), sequences=sequences)
    log: list[Event] = []
    left = threading.Semaphore(0)
    with Engine(folder / "lstm", settings, clock=lambda: now[0]) as engine:
        for number in range(events):
            event = drawn_event(choose, names, number)
            log.append(event)
            if choose.random() < 0.02:
                now[0] += choose.choice([1.0, 5.0, 20.0])
            submit(engine, event, left, choose)
            if number % 200 == 199:  # so that not everything waits at once
                assert all(left.acquire(timeout=60) for _ in range(200))
        assert all(left.acquire(timeout=60) for _ in range(events % 200))
        serial = Serial(engine.repository.get("lstm"))
        for event in log:
            serial.check(event)
        held = {int(name) for name in re.findall(r"<Lane (\d+) of 'lstm': running", repr(engine))}
        # No lane outlives its sequence, none that runs is lost, and no slot is.
        assert held <= serial.running
        assert repr(engine).count("<Lane") == len(held)
        assert engine.repository.get("lstm").slots.used == len(held)
    assert serial.steps > events // 4
    assert serial.evicted > events // 200


def submit(engine: Engine, event: Event, left: threading.Semaphore, choose: random.Random) -> None:
    def done(outcome: Any) -> None:
        event.outcome = outcome
        left.release()

    controls = [Control(id=name, start=event.start, end=event.end) for name in event.names]
    deadline = engine.clock() + choose.choice([0.5, 3.0]) if choose.random() < 0.1 else None
    request = Request(model="lstm", inputs={"tokens": event.tokens}, control=controls, deadline=deadline)
    try:
        ticket = engine.submit(request, done)
    except ServingError as error:
        done(error)
        return
    if choose.random() < 0.1:
        ticket.cancel(RequestCancelledError("cancelled"))


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
