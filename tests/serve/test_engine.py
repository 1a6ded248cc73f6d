"""What the engine promises its callers: limits, deadlines, cancellation, an end."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellport.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
    RequestCancelledError,
    UnavailableError,
)
from cellport.serve import AsyncEngine, BatchSettings, Engine, EngineSettings
from cellport.serve.requests import Control, Reply, Request
from cellport.serve.settings import SequenceSettings

from .wire import tokens_of


@contextlib.contextmanager
def busy(engine: Engine) -> Iterator[None]:
    """Keep the engine's only worker busy while the context begins; on exit wait for it."""
    done = threading.Event()
    engine.submit(Request(model="slow", inputs={"x": np.ones((1, 1), np.float32)}), lambda _: done.set())
    while engine.waiting:
        pass
    yield
    assert done.wait(60)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, EngineSettings(batch=BatchSettings(queue=3), workers=1)) as running:
        yield running


def test_a_full_engine_refuses_and_answers_those_it_accepted(engine: Engine) -> None:
    outcomes: list[Any] = []
    arrived = threading.Semaphore(0)

    def done(outcome: Any) -> None:
        outcomes.append(outcome)
        arrived.release()

    request = Request(model="lstm", inputs={"tokens": np.array([[1]])})
    with busy(engine):
        for _ in range(3):
            engine.submit(request, done)
        with pytest.raises(QueueFullError, match="3 requests are waiting; accepted: at most 3"):
            engine.submit(request, done)
    assert all(arrived.acquire(timeout=30) for _ in range(3))
    assert [outcome.outputs["last"].shape for outcome in outcomes] == [(1, 4)] * 3


def test_a_cancelled_request_is_dropped_and_a_cancelled_step_does_not_advance(engine: Engine) -> None:
    expected = engine.infer("lstm", {"tokens": np.array([[1, 2]])})["last"]
    outcomes: list[Any] = []
    sequence = engine.open_sequence("lstm")
    sequence.step({"tokens": np.array([1])})
    with busy(engine):
        ticket = engine.submit(sequence.request({"tokens": np.array([9])}, None, None), outcomes.append)
        error = RequestCancelledError("cancelled")
        assert ticket.cancel(error)
        assert not ticket.cancel(error)
    assert outcomes == [error]
    np.testing.assert_allclose(sequence.step({"tokens": np.array([2])})["last"], expected, atol=1e-6)


def test_a_deadline_that_passes_while_the_request_waits_is_reported_without_a_run(engine: Engine) -> None:
    with busy(engine), pytest.raises(DeadlineExceededError, match="before the request ran"):
        engine.infer("lstm", {"tokens": np.array([[1]])}, deadline=engine.clock() + 0.001)
    with pytest.raises(DeadlineExceededError):
        engine.infer("lstm", {"tokens": np.array([[1]])}, deadline=engine.clock())
    assert engine.waiting == 0


@pytest.mark.parametrize("deadline", [None, 1e300, math.inf])
async def test_a_deadline_that_never_comes_is_no_deadline(engine: Engine, deadline: float | None) -> None:
    shared = AsyncEngine(engine)
    inputs = {"tokens": np.array([[1]])}
    assert engine.infer("lstm", inputs, deadline=deadline)["last"].shape == (1, 4)
    assert (await shared.infer("lstm", inputs, deadline=deadline))["last"].shape == (1, 4)
    sequence = engine.open_sequence("lstm")
    assert sequence.step({"tokens": np.array([1])}, deadline=deadline)["last"].shape == (1, 4)
    sequence.end()


def test_a_deadline_that_is_no_moment_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="deadline is nan; accepted: a moment on the engine's clock"):
        engine.infer("lstm", {"tokens": np.array([[1]])}, deadline=math.nan)


def test_an_engine_whose_sequences_are_never_idle_for_too_long_goes_on_working(folder: Path) -> None:
    settings = EngineSettings(sequences=SequenceSettings(idle_seconds=math.inf), workers=1)
    with Engine(folder / "lstm", settings) as engine, engine.open_sequence("lstm") as sequence:
        for _ in range(3):
            sequence.step({"tokens": np.array([1])})
            pause = threading.Event()
            pause.wait(0.05)  # the worker waits for the next moment at which it could evict


def test_a_closed_engine_refuses_what_waits_and_what_comes(folder: Path) -> None:
    engine = Engine(folder, EngineSettings(workers=1))
    outcomes: list[Any] = []
    sequence = engine.open_sequence("lstm")
    with busy(engine):
        engine.submit(Request(model="lstm", inputs={"tokens": np.array([[1]])}), outcomes.append)
        for _ in range(3):
            engine.submit(sequence.request({"tokens": np.array([1])}, None, None), outcomes.append)
        engine.close()
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 4
    with pytest.raises(UnavailableError, match="closed"):
        engine.infer("lstm", {"tokens": np.array([[1]])})


async def test_the_async_engine_answers_many_awaited_requests_and_sequences(folder: Path) -> None:
    import asyncio

    async with AsyncEngine(folder) as engine:
        tokens = tokens_of(7, seed=4)
        answers = await asyncio.gather(*(engine.infer("gru", {"tokens": tokens[:, :n]}) for n in range(1, 8)))
        async with await engine.open_sequence("gru") as sequence:
            for step in range(7):
                answer = await sequence.step({"tokens": tokens[:, step]})
                np.testing.assert_allclose(answer["last"], answers[step]["last"], atol=1e-5)
            fork = await sequence.fork()
            np.testing.assert_array_equal((await fork.state())["h"], (await sequence.state())["h"])
            await fork.end()
        with pytest.raises(InvalidRequestError, match="'tokens' is missing"):
            await engine.infer("gru", {})
        with pytest.raises(DeadlineExceededError):
            await engine.infer("gru", {"tokens": tokens}, deadline=engine.engine.clock())


async def test_cancelling_the_task_that_waits_drops_the_request(engine: Engine) -> None:
    import asyncio

    shared = AsyncEngine(engine)
    with busy(engine):
        task = asyncio.create_task(shared.infer("lstm", {"tokens": np.array([[1]])}))
        while not engine.waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.waiting == 0


def test_a_start_that_the_queue_refuses_evicts_nobody(folder: Path) -> None:
    settings = EngineSettings(batch=BatchSettings(queue=1), sequences=SequenceSettings(maximum=1), workers=1)
    with Engine(folder, settings) as engine:
        sequence = engine.open_sequence("lstm")
        with busy(engine):
            engine.submit(Request(model="affine", inputs={"x": np.ones((1, 3), np.float32)}), lambda _: None)
            start = Request(model="lstm", inputs={"tokens": np.array([[1]])}, control=Control(id=9, start=True))
            with pytest.raises(QueueFullError):
                engine.submit(start, lambda _: None)
        while engine.waiting:
            time.sleep(0.001)
        sequence.step({"tokens": np.array([1])})


def test_requests_that_are_made_to_wait_for_more_run_though_the_engines_clock_stands(folder: Path) -> None:
    with Engine(folder, EngineSettings(workers=1), clock=lambda: 0.0) as engine:
        costs = engine.repository.get("lstm").costs
        for _ in range(3):
            costs.usual = 60.0
            request = Request(model="lstm", inputs={"tokens": tokens_of(3, 0)})
            future: Future[object] = Future()
            engine.submit(request, future.set_result)
            assert isinstance(future.result(10.0), Reply)


def test_a_sequence_that_is_opened_in_an_idle_engine_is_evicted_without_any_further_request(folder: Path) -> None:
    settings = EngineSettings(sequences=SequenceSettings(idle_seconds=0.2), warm_seconds=0, workers=1)
    with Engine(folder / "lstm", settings) as engine:
        slots = engine.repository.get("lstm").slots
        time.sleep(0.05)  # until the worker waits
        engine.open_sequence("lstm")
        assert slots.used == 1
        end = time.monotonic() + 5
        while slots.used and time.monotonic() < end:
            time.sleep(0.05)
        assert not slots.used


def test_only_models_that_are_cut_run_once_at_a_time_and_only_while_event_loops_ask_for_it(engine: Engine) -> None:
    """The sizes of others tell little of the time that a run takes, and threads need no loop that answers them."""
    inputs = {"lstm": {"tokens": tokens_of(3, 1)}, "affine": {"x": np.ones((1, 3), np.float32)}}
    models = {name: engine.repository.get(name) for name in inputs}
    for name, given in inputs.items():
        engine.infer(name, given)
        models[name].costs.usual_seconds = 0.0
        job = engine.prepare(Request(model=name, inputs=given), lambda outcome: None)
        engine.accept([job], single=True)
    assert {name: model.single for name, model in models.items()} == {"lstm": True, "affine": False}
    engine.infer("lstm", inputs["lstm"])
    assert not models["lstm"].single
