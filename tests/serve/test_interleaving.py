"""Whatever the order in which many sequences' steps come, each sequence is answered as a serial run answers it."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from cellport.errors import RequestCancelledError, SequenceEndedError, SequenceNotFoundError
from cellport.serve import Engine, Server
from cellport.serve.requests import Control, Reply, Request

from .wire import tokens_of, triton_input


@dataclass
class Event:
    """One request of the random run, and what became of it."""

    tokens: Any
    start: bool
    end: bool
    outcome: Any = None


def submit(engine: Engine, name: int, event: Event, left: threading.Semaphore) -> Any:
    def done(outcome: Any) -> None:
        event.outcome = outcome
        left.release()

    control = Control(id=name, start=event.start, end=event.end)
    try:
        return engine.submit(Request(model="lstm", inputs={"tokens": event.tokens}, control=control), done)
    except (SequenceEndedError, SequenceNotFoundError) as error:
        done(error)
        return None


def check(engine: Engine, events: list[Event]) -> int:
    """Compare one sequence's outcomes with a serial run; return how many steps were done."""
    history: Any = None
    steps = 0
    for event in events:
        if isinstance(event.outcome, RequestCancelledError):
            continue
        if event.start:
            history = np.zeros((1, 0), np.int64)
        if history is None:
            assert isinstance(event.outcome, SequenceEndedError | SequenceNotFoundError)
            continue
        assert isinstance(event.outcome, Reply), event.outcome
        history = np.concatenate([history, event.tokens], axis=1)
        expected = engine.infer("lstm", {"tokens": history})
        np.testing.assert_allclose(event.outcome.outputs["last"], expected["last"], atol=1e-5)
        ours = event.outcome.outputs["tags"]
        np.testing.assert_allclose(ours, expected["tags"][:, -ours.shape[1] :], atol=1e-5)
        steps += 1
        if event.end:
            history = None
    return steps


@pytest.mark.parametrize("seed", range(4))
def test_random_interleavings_of_start_step_cancel_and_end_equal_a_serial_run(folder: Path, seed: int) -> None:
    choose = random.Random(seed)
    log: dict[int, list[Event]] = {name: [] for name in range(1, 13)}
    left = threading.Semaphore(0)
    with Engine(folder / "lstm") as engine:
        for number in range(600):
            name = choose.randrange(1, 13)
            event = Event(
                tokens=tokens_of(choose.choice([1, 1, 1, 2, 5]), seed=number),
                start=choose.random() < 0.15,
                end=choose.random() < 0.1,
            )
            log[name].append(event)
            ticket = submit(engine, name, event, left)
            if ticket is not None and choose.random() < 0.1:
                ticket.cancel(RequestCancelledError("cancelled"))
        assert all(left.acquire(timeout=60) for _ in range(600))
        done = sum(check(engine, events) for events in log.values())
        running = sum(
            next((not each.end for each in reversed(events) if isinstance(each.outcome, Reply)), False)
            for events in log.values()
        )
        # No lane outlives its sequence, and none that runs is lost.
        assert repr(engine).count("<Lane") == running
    assert done > 200


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
