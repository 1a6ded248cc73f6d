"""Requests that share a run are answered as if alone, and what happens to one does not happen to the others."""

import contextlib
import math
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellport.errors import (
    DeadlineExceededError,
    InternalServingError,
    InvalidRequestError,
    QueueFullError,
    RequestCancelledError,
    UnavailableError,
)
from cellport.serve import AsyncEngine, BatchSettings, Engine, EngineSettings, Model
from cellport.serve.assembly import Answer
from cellport.serve.batcher import Batch, Scheduler, Work
from cellport.serve.requests import Control, Request
from cellport.serve.running import run_batch
from cellport.serve.sequences import SequenceSettings, SequenceTable

from .wire import tokens_of


@pytest.fixture(scope="module")
def lstm(folder: Path) -> Model:
    return Model.load(folder / "lstm" / "2" / "model.onnx", name="lstm")


@pytest.fixture(scope="module")
def fussy(folder: Path) -> Model:
    return Model.load(folder / "fussy" / "1" / "model.onnx", name="fussy")


@pytest.fixture(scope="module")
def sums(folder: Path) -> Model:
    return Model.load(folder / "sums" / "1" / "model.onnx", name="sums")


def work_of(model: Model, outputs: tuple[str, ...] = (), **inputs: Any) -> Work:
    return Work(model=model, bound=model.contract.bind(inputs, outputs), done=lambda _: None)


def scheduler_of(**limits: int) -> Scheduler:
    return Scheduler(BatchSettings(**limits), SequenceTable(SequenceSettings()))


def taken(scheduler: Scheduler, now: float = 0.0) -> list[Work]:
    batch, _ = scheduler.take(now)
    return [] if batch is None else list(batch.works)


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(1, 9),
        st.booleans(),
        st.booleans(),
        st.sampled_from([(), ("tags",), ("last", "c_out")]),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_requests_of_any_lengths_are_answered_together_as_alone(lstm: Model, drawn: list[Any]) -> None:
    works = []
    for rows, time, with_lengths, with_state, outputs, seed in drawn:
        random = np.random.default_rng(seed)
        inputs: dict[str, Any] = {"tokens": random.integers(0, 50, (rows, time))}
        if with_lengths:
            inputs["lengths"] = random.integers(0, time + 1, rows)
        if with_state:
            inputs["h"] = random.normal(size=(rows, 1, 8)).astype(np.float32)
        works.append(work_of(lstm, outputs, **inputs))
    together = run_batch(Batch(model=lstm, works=works))
    for work, answer in zip(works, together, strict=True):
        [alone] = run_batch(Batch(model=lstm, works=[work]))
        assert isinstance(answer, Answer)
        assert isinstance(alone, Answer)
        assert list(answer.outputs) == list(alone.outputs)
        for name, array in alone.outputs.items():
            np.testing.assert_allclose(answer.outputs[name], array, atol=1e-5)


def test_all_compatible_requests_are_taken_together(lstm: Model, fussy: Model) -> None:
    scheduler = scheduler_of()
    works = [work_of(lstm, tokens=tokens_of(length, 0)) for length in (7, 8, 9)]
    other = work_of(fussy, tokens=np.array([[1]]))
    for work in (works[0], other, works[1], works[2]):
        scheduler.submit(work)
    assert scheduler.waiting == 4
    assert taken(scheduler) == works
    assert taken(scheduler) == [other]
    assert taken(scheduler) == []


def test_a_model_without_lengths_batches_equal_lengths_only(sums: Model) -> None:
    scheduler = scheduler_of()
    works = [work_of(sums, x=np.ones((1, length), np.float32)) for length in (3, 4, 3)]
    for work in works:
        scheduler.submit(work)
    assert taken(scheduler) == [works[0], works[2]]
    assert taken(scheduler) == [works[1]]


def test_a_model_whose_axes_are_unknown_runs_one_request_at_a_time(tmp_path: Path) -> None:
    import onnx
    import onnx.parser

    text = '<ir_version: 9, opset_import: ["" : 20]> sorts (float[length] x) => (float[length] y) { y = Neg(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "sorts.onnx")
    model = Model.load(tmp_path / "sorts.onnx")
    scheduler = scheduler_of()
    works = [work_of(model, x=np.ones(2, np.float32)) for _ in range(2)]
    for work in works:
        scheduler.submit(work)
    assert [taken(scheduler), taken(scheduler)] == [[works[0]], [works[1]]]


def test_rows_are_bounded_and_a_larger_request_runs_alone(lstm: Model) -> None:
    scheduler = scheduler_of(rows=4)
    works = [work_of(lstm, tokens=tokens_of(2, 0, rows)) for rows in (3, 1, 1, 9, 2)]
    for work in works:
        scheduler.submit(work)
    assert [taken(scheduler) for _ in range(4)] == [works[:2], works[2:3], works[3:4], works[4:]]


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.sampled_from([1.0, 1.5, 4.0]))
def test_a_run_is_never_made_more_than_the_set_times_larger_by_padding(
    lstm: Model, lengths: list[int], padding: float
) -> None:
    scheduler = Scheduler(BatchSettings(padding=padding), SequenceTable(SequenceSettings()))
    for length in lengths:
        scheduler.submit(work_of(lstm, tokens=np.zeros((1, length), np.int64)))
    found: list[int] = []
    while works := taken(scheduler):
        run = [work.bound.time for work in works if work.bound is not None and work.bound.time is not None]
        assert len(run) * max(run) <= padding * sum(run)
        found += run
    assert sorted(found) == sorted(lengths)
    assert scheduler.waiting == 0


def test_a_start_that_the_queue_refuses_evicts_nobody(folder: Path) -> None:
    settings = EngineSettings(batch=BatchSettings(queue=1), sequences=SequenceSettings(maximum=1), workers=1)
    with Engine(folder, settings) as engine:
        sequence = engine.open_sequence("lstm")
        with busy(engine):
            engine.submit(Request(model="affine", inputs={"x": np.ones((1, 3), np.float32)}), lambda _: None)
            start = Request(model="lstm", inputs={"tokens": np.array([[1]])}, control=Control(id=9, start=True))
            with pytest.raises(QueueFullError):
                engine.submit(start, lambda _: None)
        sequence.step({"tokens": np.array([1])})


def test_urgent_requests_run_first_and_others_in_order_of_arrival(lstm: Model, fussy: Model) -> None:
    scheduler = scheduler_of(rows=1)
    works = [work_of(lstm, tokens=np.array([[1]])) for _ in range(3)] + [work_of(fussy, tokens=np.array([[1]]))]
    for work, priority in zip(works, (2, 1, 2, 1), strict=True):
        work.priority = priority
        scheduler.submit(work)
    assert [taken(scheduler)[0] for _ in range(4)] == [works[1], works[3], works[0], works[2]]


def test_a_full_queue_refuses_and_has_room_again_after_a_run(lstm: Model) -> None:
    scheduler = scheduler_of(queue=2)
    for _ in range(2):
        scheduler.submit(work_of(lstm, tokens=np.array([[1]])))
    with pytest.raises(QueueFullError, match="2 requests are waiting; accepted: at most 2"):
        scheduler.submit(work_of(lstm, tokens=np.array([[1]])))
    assert len(taken(scheduler)) == 2
    scheduler.submit(work_of(lstm, tokens=np.array([[1]])))
    assert repr(scheduler) == "<Scheduler 1 waiting in 1 queues, <SequenceTable []>>"


def test_a_request_whose_deadline_has_passed_is_dropped_when_its_turn_comes(lstm: Model) -> None:
    scheduler = scheduler_of()
    late, good = (work_of(lstm, tokens=np.array([[1]])) for _ in range(2))
    late.deadline = 5.0
    scheduler.submit(late)
    scheduler.submit(good)
    batch, completions = scheduler.take(now=5.0)
    assert batch is not None
    assert list(batch.works) == [good]
    assert [each.work for each in completions] == [late]
    assert isinstance(completions[0].outcome, DeadlineExceededError)


def test_what_leaves_the_scheduler_holds_its_tensors_no_longer(lstm: Model) -> None:
    """Whichever way it leaves, and wherever in its sequence it stood; its caller may hold it for longer."""
    table = SequenceTable(SequenceSettings())
    scheduler = Scheduler(BatchSettings(), table)
    lane = table.open(lstm, 1, 0.0)
    table.advance(lane, lstm, {}, 0.0)
    ran, late, alone, *steps = (work_of(lstm, tokens=np.array([[1]])) for _ in range(6))
    late.deadline = 0.0
    for step in steps:
        step.lane = lane
    for work in (ran, late, *steps):
        scheduler.submit(work)
    scheduler.cancel(steps[1], RequestCancelledError("cancelled"))
    assert list(lane.steps) == [steps[0], steps[2]]
    scheduler.cancel(steps[0], RequestCancelledError("cancelled"))
    batch, _ = scheduler.take(now=0.0)
    assert batch is not None
    assert list(batch.works) == [ran, steps[2]]
    scheduler.finish(batch, run_batch(batch), now=0.0)
    scheduler.submit(alone)
    scheduler.cancel_all(UnavailableError("closed"))
    assert [(each.bound, each.carried) for each in (ran, late, alone, *steps)] == [(None, None)] * 6
    assert (
        repr(scheduler) == "<Scheduler 0 waiting in 1 queues, <SequenceTable [<Lane 1 of 'lstm': running, 0 steps>]>>"
    )
    assert taken(scheduler) == []


def test_cancelled_requests_behind_one_that_waits_are_forgotten(lstm: Model) -> None:
    scheduler = scheduler_of()
    first = work_of(lstm, tokens=np.array([[1]]))
    scheduler.submit(first)
    kept = []
    for _ in range(1000):
        work = work_of(lstm, tokens=np.array([[1]]))
        kept.append(weakref.ref(work))
        scheduler.submit(work)
        scheduler.cancel(work, RequestCancelledError("cancelled"))
        del work
    assert sum(each() is not None for each in kept) < 100
    assert taken(scheduler) == [first]


def test_a_request_that_fails_its_run_does_not_fail_those_it_shared_it_with(fussy: Model) -> None:
    values = [[1, 2], [9, 9], [3, 4, 4]]
    works = [work_of(fussy, tokens=np.array([each])) for each in values]
    answers = run_batch(Batch(model=fussy, works=[works[0], works[1]]))
    assert isinstance(answers[0], Answer)
    np.testing.assert_array_equal(answers[0].outputs["values"], [[10, 20]])
    assert isinstance(answers[1], InternalServingError)


def test_values_outside_the_range_are_accepted_in_the_padding_and_never_reach_the_graph(lstm: Model) -> None:
    tokens = np.array([[1, 2, 77], [3, -5, -5]])
    lengths = np.array([2, 1])
    clean = np.where(tokens > 49, 0, np.maximum(tokens, 0))
    answers = run_batch(
        Batch(model=lstm, works=[work_of(lstm, tokens=each, lengths=lengths) for each in (tokens, clean)])
    )
    assert isinstance(answers[0], Answer)
    assert isinstance(answers[1], Answer)
    np.testing.assert_allclose(answers[0].outputs["last"], answers[1].outputs["last"], atol=1e-6)
    np.testing.assert_array_equal(answers[0].outputs["tags"][1, 1:], 0)
    with pytest.raises(InvalidRequestError, match=r"-5 at \[1, 1\]; accepted: 0 to 49"):
        work_of(lstm, tokens=tokens, lengths=np.array([2, 2]))


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
