"""The scheduler alone: what runs together, for how many steps, and in which order; and what it forgets."""

import itertools
import weakref
from collections.abc import Callable
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
from cellport.serve import BatchSettings, Model
from cellport.serve.costs import LONGER, CostModel, best_chunk
from cellport.serve.jobs import Job, Outcome, Place, Tick
from cellport.serve.requests import Reply
from cellport.serve.scheduler import Scheduler
from cellport.serve.sequences import SequenceTable
from cellport.serve.settings import SequenceSettings
from cellport.serve.ticks import run_tick

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


def job_of(model: Model, outputs: tuple[str, ...] = (), *, sequences: int = 0, **inputs: Any) -> Job:
    return Job(model=model, bound=model.contract.bind(inputs, outputs, sequences=sequences), done=lambda _: None)


def scheduler_of(**limits: Any) -> Scheduler:
    return Scheduler(BatchSettings(**limits), SequenceTable(SequenceSettings()))


def taken(scheduler: Scheduler, now: float = 0.0, idle: int = 1) -> list[Job]:
    tick, _ = scheduler.schedule(now, idle)
    return [] if tick is None else [part.job for part in tick.parts]


def finish(scheduler: Scheduler, tick: Tick) -> dict[Job, Outcome]:
    """Run a tick and return the outcomes that follow, by job."""
    return {each.job: each.outcome for each in scheduler.complete(tick, run_tick(tick), 0.0)}


def drain(scheduler: Scheduler) -> tuple[dict[Job, Outcome], list[Tick]]:
    """Run all that waits; return the outcomes and the runs."""
    outcomes: dict[Job, Outcome] = {}
    ticks = []
    while True:
        tick, completions = scheduler.schedule(0.0)
        outcomes.update({each.job: each.outcome for each in completions})
        if tick is None:
            return outcomes, ticks
        ticks.append(tick)
        outcomes.update(finish(scheduler, tick))


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(1, 30),
        st.booleans(),
        st.booleans(),
        st.sampled_from([(), ("tags",), ("last", "c_out"), ("last",)]),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=6,
)


def drawn_job(model: Model, drawn: tuple[Any, ...]) -> Job:
    rows, time, with_lengths, with_state, outputs, seed = drawn
    random = np.random.default_rng(seed)
    inputs: dict[str, Any] = {"tokens": random.integers(0, 50, (rows, time))}
    if with_lengths:
        inputs["lengths"] = random.integers(0, time + 1, rows)
    if with_state:
        inputs["h"] = random.normal(size=(rows, 1, 8)).astype(np.float32)
    return job_of(model, outputs, **inputs)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.booleans())
def test_requests_of_any_lengths_are_answered_together_as_alone(lstm: Model, drawn: list[Any], cut: bool) -> None:
    """Cut or whole: outputs, states asked for, rows that end early, rows without a step, and states given."""
    used = lstm.slots.used
    scheduler = scheduler_of(cut=cut, rows=5, run_seconds=1e-9)
    lstm.costs = CostModel()
    jobs = [drawn_job(lstm, each) for each in drawn]
    for job in jobs:
        scheduler.submit(job)
    together, _ = drain(scheduler)
    for job, each in zip(jobs, drawn, strict=True):
        whole = scheduler_of(cut=False)
        alone = drawn_job(lstm, each)
        whole.submit(alone)
        expected, got = drain(whole)[0][alone], together[job]
        assert isinstance(expected, Reply)
        assert isinstance(got, Reply)
        assert list(got.outputs) == list(expected.outputs)
        for name, array in expected.outputs.items():
            np.testing.assert_allclose(got.outputs[name], array, atol=1e-5, err_msg=name)
    assert scheduler.waiting == scheduler.running == 0
    assert lstm.slots.used == used


def test_a_long_request_is_cut_and_others_join_and_leave_in_between(lstm: Model) -> None:
    scheduler = scheduler_of(run_seconds=1e-9)
    lstm.costs = CostModel()
    long = job_of(lstm, tokens=tokens_of(40, 0))
    scheduler.submit(long)
    first, _ = scheduler.schedule(0.0)
    assert first is not None
    assert first.steps < 40
    short = job_of(lstm, tokens=tokens_of(3, 1))
    scheduler.submit(short)
    assert finish(scheduler, first) == {}
    second, _ = scheduler.schedule(0.0)
    assert second is not None
    assert [part.job for part in second.parts] == [long, short]
    assert [part.position for part in second.parts] == [first.steps, 0]
    outcomes = finish(scheduler, second)
    assert set(outcomes) == ({short} if second.steps >= 3 else set())
    outcomes.update(drain(scheduler)[0])
    assert set(outcomes) == {long, short}


def test_requests_of_one_length_run_whole(lstm: Model) -> None:
    scheduler = scheduler_of()
    for seed in range(5):
        scheduler.submit(job_of(lstm, tokens=tokens_of(12, seed)))
    _, ticks = drain(scheduler)
    assert [(tick.rows, tick.steps) for tick in ticks] == [(5, 12)]


def test_a_model_without_lengths_is_cut_where_the_shortest_ends(sums: Model) -> None:
    scheduler = scheduler_of()
    jobs = [job_of(sums, x=np.ones((1, length), np.float32)) for length in (3, 5, 3)]
    for job in jobs:
        scheduler.submit(job)
    outcomes, ticks = drain(scheduler)
    assert [(tick.rows, tick.steps) for tick in ticks] == [(3, 3), (1, 2)]
    for job, length in zip(jobs, (3, 5, 3), strict=True):
        reply = outcomes[job]
        assert isinstance(reply, Reply)
        np.testing.assert_array_equal(next(iter(reply.outputs.values())).ravel()[-1:], [length])


def test_a_model_that_cannot_be_cut_batches_what_hardly_pads(folder: Path) -> None:
    model = Model.load(folder / "acausal" / "1" / "model.onnx")
    scheduler = scheduler_of()
    jobs = [job_of(model, tokens=tokens_of(length, 0)) for length in (10, 50, 11)]
    for job in jobs:
        scheduler.submit(job)
    _, ticks = drain(scheduler)
    assert [[part.job for part in tick.parts] for tick in ticks] == [[jobs[0], jobs[2]], [jobs[1]]]


def test_all_compatible_requests_are_taken_together(lstm: Model, fussy: Model) -> None:
    scheduler = scheduler_of()
    jobs = [job_of(lstm, tokens=tokens_of(length, 0)) for length in (7, 8, 9)]
    other = job_of(fussy, tokens=np.array([[1]]))
    for job in (jobs[0], other, jobs[1], jobs[2]):
        scheduler.submit(job)
    assert scheduler.waiting == 4
    assert taken(scheduler) == jobs[::-1], "what has more left to do comes first"
    assert taken(scheduler) == [other]
    assert taken(scheduler) == []


def costs_of(seconds: Callable[[int, int], float]) -> CostModel:
    costs = CostModel()
    costs.measure(seconds, timed=True)
    return costs


def test_what_waits_is_shared_out_among_idle_workers(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * rows * steps)  # more rows make no run more efficient
    scheduler = scheduler_of()
    for seed in range(40):
        scheduler.submit(job_of(lstm, tokens=tokens_of(4, seed)))
    first, _ = scheduler.schedule(0.0, 2)
    assert first is not None
    assert first.rows == 20
    # Beside a run, so many are left waiting that there are some when it ends.
    second, _ = scheduler.schedule(0.0, 1)
    assert second is not None
    assert second.rows == 14
    assert scheduler.waiting == 6
    scheduler.complete(first, [None] * 20, 0.0)
    scheduler.complete(second, [None] * 14, 0.0)
    assert len(taken(scheduler, idle=1)) == 6


def test_a_model_whose_axes_are_unknown_runs_one_request_at_a_time(tmp_path: Path) -> None:
    import onnx
    import onnx.parser

    text = '<ir_version: 9, opset_import: ["" : 20]> sorts (float[length] x) => (float[length] y) { y = Neg(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "sorts.onnx")
    model = Model.load(tmp_path / "sorts.onnx")
    scheduler = scheduler_of()
    jobs = [job_of(model, x=np.ones(2, np.float32)) for _ in range(2)]
    for job in jobs:
        scheduler.submit(job)
    assert [taken(scheduler), taken(scheduler)] == [[jobs[0]], [jobs[1]]]


def test_rows_are_bounded_and_a_larger_request_runs_alone(lstm: Model) -> None:
    scheduler = scheduler_of(rows=4)
    jobs = [job_of(lstm, tokens=tokens_of(2, 0, rows)) for rows in (3, 1, 1, 9, 2)]
    for job in jobs:
        scheduler.submit(job)
    assert [taken(scheduler) for _ in range(3)] == [jobs[:2], [jobs[2], jobs[4]], [jobs[3]]]


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.sampled_from([1.0, 1.5, 4.0]))
def test_a_run_of_whole_requests_is_never_made_more_than_the_set_times_larger_by_padding(
    lstm: Model, lengths: list[int], padding: float
) -> None:
    scheduler = scheduler_of(padding=padding, cut=False)
    for length in lengths:
        scheduler.submit(job_of(lstm, tokens=np.zeros((1, length), np.int64)))
    found: list[int] = []
    while jobs := taken(scheduler):
        run = [job.steps for job in jobs]
        assert len(run) * max(run) <= padding * sum(run)
        found += run
    assert sorted(found) == sorted(lengths)
    assert scheduler.waiting == 0


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 200)), min_size=1, max_size=20),
    st.floats(1e-6, 1.0),
)
def test_the_longest_chunk_is_taken_that_does_nearly_as_many_wanted_steps_in_a_second_as_any(
    remaining: list[tuple[int, int]], limit: float
) -> None:
    costs = CostModel()
    rows = sum(each[0] for each in remaining)

    def speed(chunk: int) -> float:
        wanted = sum(count * min(steps, chunk) for count, steps in remaining)
        return wanted / costs.seconds(rows, chunk)

    chunk = best_chunk(remaining, costs, limit=limit)
    longest = max(steps for _, steps in remaining)
    assert 1 <= chunk <= longest
    fixed = costs.seconds(rows, 0)
    allowed = [
        each for each in range(1, longest + 1) if costs.seconds(rows, each) - fixed <= max(limit - fixed, 4 * fixed)
    ]
    least = LONGER * max(speed(each) for each in [1, *allowed])
    assert speed(chunk) >= least * (1 - 1e-9)
    ends = {steps for _, steps in remaining}
    assert not [each for each in ends.intersection(allowed) if each > chunk and speed(each) > least * (1 + 1e-9)]


def test_costs_are_corrected_by_the_runs_that_take_place() -> None:
    costs = CostModel()
    before = costs.seconds(8, 10)
    for _ in range(100):
        costs.observe(8, 10, 3 * before)
    assert costs.seconds(8, 10) == pytest.approx(3 * before, rel=0.05)
    assert costs.seconds(64, 10) == CostModel().seconds(64, 10)


def test_short_runs_and_long_ones_together_tell_the_fixed_time_from_that_of_the_steps() -> None:
    costs = CostModel()
    for number in range(1000):
        steps = 1 + number % 40
        costs.observe(8, steps, 1e-3 + steps * 2e-5)
    assert costs.seconds(8, 0) == pytest.approx(1e-3, rel=0.15)
    assert costs.step_seconds(8) == pytest.approx(2e-5, rel=0.15)


def test_costs_are_measured_at_some_rows_and_carried_on_to_more() -> None:
    costs = CostModel(16)
    costs.measure(lambda rows, steps: None if rows > 4 else 1e-4 + steps * 1e-5 * rows, timed=True)
    assert costs.seconds(4, 9) == pytest.approx(1e-4 + 9 * 4e-5)
    assert costs.seconds(3, 9) == pytest.approx(1e-4 + 9 * 3e-5)
    assert costs.seconds(16, 9) == pytest.approx(1e-4 + 9 * 16e-5)
    assert costs.enough(17) == 2


def test_a_run_that_would_not_pay_when_it_is_shared_out_is_not(lstm: Model) -> None:
    """Ten rows take as long as one, and more than ten in proportion."""
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * max(rows, 16) * steps)
    scheduler = scheduler_of()
    for seed in range(20):
        scheduler.submit(job_of(lstm, tokens=tokens_of(4, seed)))
    assert [len(taken(scheduler, idle=2)), len(taken(scheduler, idle=1))] == [16, 4]


def test_enough_rows_depend_on_the_steps() -> None:
    """Of one step, the fixed time is what counts; of many, the time of a step."""
    costs = costs_of(lambda rows, steps: 1e-3 + 1e-5 * rows * steps)
    assert costs.enough(1) == 64
    assert costs.enough(1000) == 1


def test_enough_rows_are_what_was_measured_alone() -> None:
    """Runs beside others look slow, the more of them there are: that must not make one at a time look better."""
    costs = costs_of(lambda rows, steps: 1e-5 * max(rows, 4) * steps)
    for _ in range(100):
        costs.observe(16, 10, 10 * costs.seconds(16, 10))
        costs.observe(64, 10, 0.1 * costs.seconds(64, 10))
    assert costs.enough(10) == 4


def test_a_few_requests_are_made_to_wait_for_more_only_if_more_are_usual(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * max(rows, 16) * steps)
    scheduler = scheduler_of()
    assert scheduler.patience(0.0) == 0.0
    scheduler.submit(job_of(lstm, tokens=tokens_of(4, 0)))
    assert scheduler.patience(5.0) == 0.0
    for _ in range(100):
        lstm.costs.observe(20, 1, lstm.costs.seconds(20, 1))
    assert scheduler.patience(5.0) == pytest.approx(0.001)
    assert scheduler.patience(5.0004) == pytest.approx(0.0006)
    assert scheduler.patience(5.002) == 0.0
    assert len(taken(scheduler)) == 1
    for seed in range(15):
        scheduler.submit(job_of(lstm, tokens=tokens_of(4, seed)))
    assert scheduler.patience(6.0) == 0.0, "more than half of the usual rows are there"
    assert len(taken(scheduler)) == 15


def test_a_request_whose_deadline_is_near_is_not_made_to_wait(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * max(rows, 16) * steps)
    for _ in range(100):
        lstm.costs.observe(20, 1, lstm.costs.seconds(20, 1))
    scheduler = scheduler_of()
    job = job_of(lstm, tokens=tokens_of(4, 0))
    job.deadline = 1.0
    scheduler.submit(job)
    assert scheduler.patience(0.5) > 0
    assert scheduler.patience(0.9935) == 0.0


def test_a_chunk_ends_with_the_request_whose_deadline_is_near(lstm: Model) -> None:
    lstm.costs = CostModel()
    jobs = [job_of(lstm, tokens=tokens_of(length, 0)) for length in (100, 4, 100, 100)]
    scheduler = scheduler_of(run_seconds=10.0)
    for job in jobs:
        scheduler.submit(job)
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    assert tick.steps == 100
    scheduler = scheduler_of(run_seconds=10.0)
    again = [job_of(lstm, tokens=tokens_of(length, 0)) for length in (100, 4, 100, 100)]
    again[1].deadline = lstm.costs.seconds(4, 50)
    for job in again:
        scheduler.submit(job)
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    assert tick.steps == 4


def test_urgent_requests_run_first_and_others_in_order_of_arrival(lstm: Model, fussy: Model) -> None:
    scheduler = scheduler_of(rows=1)
    jobs = [job_of(lstm, tokens=np.array([[1]])) for _ in range(3)] + [job_of(fussy, tokens=np.array([[1]]))]
    for job, priority in zip(jobs, (2, 1, 2, 1), strict=True):
        job.priority = priority
        scheduler.submit(job)
    assert [taken(scheduler)[0] for _ in range(4)] == [jobs[1], jobs[3], jobs[0], jobs[2]]


def test_an_urgent_request_runs_between_the_chunks_of_a_long_one(lstm: Model, fussy: Model) -> None:
    scheduler = scheduler_of(run_seconds=1e-9)
    lstm.costs = CostModel()
    long, urgent = job_of(lstm, tokens=tokens_of(100, 0)), job_of(fussy, tokens=np.array([[1]]))
    urgent.priority = 1
    long.priority = 2
    scheduler.submit(long)
    tick, _ = scheduler.schedule(0.0)
    scheduler.submit(urgent)
    assert tick is not None
    assert finish(scheduler, tick) == {}
    assert taken(scheduler) == [urgent]


def test_a_full_queue_refuses_and_has_room_again_after_a_run(lstm: Model) -> None:
    scheduler = scheduler_of(queue=2)
    for _ in range(2):
        scheduler.submit(job_of(lstm, tokens=np.array([[1]])))
    with pytest.raises(QueueFullError, match="2 requests are waiting; accepted: at most 2"):
        scheduler.submit(job_of(lstm, tokens=np.array([[1]])))
    assert len(taken(scheduler)) == 2
    scheduler.submit(job_of(lstm, tokens=np.array([[1]])))
    assert repr(scheduler) == "<Scheduler 1 waiting in 1 groups, 1 runs, <SequenceTable []>>"


def test_waiting_bytes_are_bounded_but_a_request_alone_is_taken(lstm: Model) -> None:
    scheduler = scheduler_of(queue_bytes=100)
    scheduler.submit(job_of(lstm, tokens=np.zeros((1, 50), np.int64)))
    with pytest.raises(QueueFullError, match="400 bytes of requests are waiting and 8 came; accepted: at most 100"):
        scheduler.submit(job_of(lstm, tokens=np.array([[1]])))
    drain(scheduler)
    scheduler.submit(job_of(lstm, tokens=np.array([[1]])))


def test_a_request_whose_deadline_has_passed_is_dropped_when_its_turn_comes(lstm: Model) -> None:
    scheduler = scheduler_of()
    late, good = (job_of(lstm, tokens=np.array([[1]])) for _ in range(2))
    late.deadline = 5.0
    scheduler.submit(late)
    scheduler.submit(good)
    tick, completions = scheduler.schedule(now=5.0)
    assert tick is not None
    assert [part.job for part in tick.parts] == [good]
    assert [each.job for each in completions] == [late]
    assert isinstance(completions[0].outcome, DeadlineExceededError)


def test_deadlines_and_cancellation_take_effect_between_chunks_and_leave_nothing(lstm: Model) -> None:
    used = lstm.slots.used
    scheduler = scheduler_of(run_seconds=1e-9)
    lstm.costs = CostModel()
    late, left = (job_of(lstm, tokens=tokens_of(100, seed)) for seed in range(2))
    late.deadline = 1.0
    for job in (late, left):
        scheduler.submit(job)
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    error = RequestCancelledError("gone")
    assert scheduler.cancel(left, error) == (True, [])
    assert finish(scheduler, tick) == {left: error}
    tick, completions = scheduler.schedule(2.0)
    assert tick is None
    assert f"after {late.position} of 100 steps" in str(completions[0].outcome)
    assert (scheduler.waiting, lstm.slots.used) == (0, used)


def test_what_leaves_the_scheduler_holds_its_tensors_no_longer(lstm: Model) -> None:
    """Whichever way it leaves, and wherever in its sequence it stood; its caller may hold it for longer."""
    table = SequenceTable(SequenceSettings())
    scheduler = Scheduler(BatchSettings(), table)
    lane = table.open(lstm, 1, 0.0)
    slot = lstm.slots.take()
    lstm.arena.write(slot, {})
    table.advance(lane, lstm, slot, 0.0)
    ran, late, alone, *steps = (job_of(lstm, tokens=np.array([[1]])) for _ in range(6))
    late.deadline = 0.0
    for step in steps:
        step.places = [Place(lane)]
    for job in (ran, late, *steps):
        scheduler.submit(job)
    scheduler.cancel(steps[1], RequestCancelledError("cancelled"))
    assert lane.jobs == [steps[0], steps[2]]
    scheduler.cancel(steps[0], RequestCancelledError("cancelled"))
    tick, _ = scheduler.schedule(now=0.0)
    assert tick is not None
    assert [part.job for part in tick.parts] == [ran, steps[2]]
    finish(scheduler, tick)
    scheduler.submit(alone)
    scheduler.cancel_all(UnavailableError("closed"))
    assert [each.bound for each in (ran, late, alone, *steps)] == [None] * 6
    assert "<Scheduler 0 waiting" in repr(scheduler)
    assert "[<Lane 1 of 'lstm': running, 0 steps>]" in repr(scheduler)
    assert taken(scheduler) == []
    table.end(lane)


def test_cancelled_requests_behind_one_that_waits_are_forgotten(lstm: Model) -> None:
    scheduler = scheduler_of()
    first = job_of(lstm, tokens=np.array([[1]]))
    scheduler.submit(first)
    kept = []
    for _ in range(1000):
        job = job_of(lstm, tokens=np.array([[1]]))
        kept.append(weakref.ref(job))
        scheduler.submit(job)
        scheduler.cancel(job, RequestCancelledError("cancelled"))
        del job
    assert sum(each() is not None for each in kept) < 100
    assert taken(scheduler) == [first]


def test_a_request_that_fails_its_run_does_not_fail_those_it_shared_it_with(fussy: Model) -> None:
    scheduler = scheduler_of()
    jobs = [job_of(fussy, tokens=np.array([each])) for each in ([1, 2], [9, 9])]
    for job in jobs:
        scheduler.submit(job)
    outcomes, ticks = drain(scheduler)
    assert len(ticks) == 1
    good, bad = (outcomes[job] for job in jobs)
    assert isinstance(good, Reply)
    np.testing.assert_array_equal(good.outputs["values"], [[10, 20]])
    assert isinstance(bad, InternalServingError)


def test_values_outside_the_range_are_accepted_in_the_padding_and_never_reach_the_graph(lstm: Model) -> None:
    tokens = np.array([[1, 2, 77], [3, -5, -5]])
    lengths = np.array([2, 1])
    clean = np.where(tokens > 49, 0, np.maximum(tokens, 0))
    scheduler = scheduler_of()
    jobs = [job_of(lstm, tokens=each, lengths=lengths) for each in (tokens, clean)]
    for job in jobs:
        scheduler.submit(job)
    outcomes, _ = drain(scheduler)
    ours, theirs = (outcomes[job] for job in jobs)
    assert isinstance(ours, Reply)
    assert isinstance(theirs, Reply)
    np.testing.assert_allclose(ours.outputs["last"], theirs.outputs["last"], atol=1e-6)
    np.testing.assert_array_equal(ours.outputs["tags"][1, 1:], 0)
    with pytest.raises(InvalidRequestError, match=r"-5 at \[1, 1\]; accepted: 0 to 49"):
        job_of(lstm, tokens=tokens, lengths=np.array([2, 2]))


def test_a_request_alone_is_started_past_the_queue_and_answered_as_through_it(lstm: Model) -> None:
    used = lstm.slots.used
    scheduler = scheduler_of()
    lstm.costs = CostModel()
    one, other = (job_of(lstm, tokens=tokens_of(7, seed=3)) for _ in range(2))
    tick = scheduler.start(one, 0.0)
    assert tick is not None
    assert (tick.rows, tick.steps, scheduler.running, scheduler.waiting) == (1, 7, 1, 0)
    assert scheduler.start(other, 0.0) is None, "another one runs"
    alone = finish(scheduler, tick)[one]
    scheduler.submit(other)
    queued = drain(scheduler)[0][other]
    assert isinstance(alone, Reply)
    assert isinstance(queued, Reply)
    np.testing.assert_array_equal(alone.outputs["tags"], queued.outputs["tags"])
    assert (scheduler.running, lstm.slots.used) == (0, used)


def test_what_has_to_wait_or_to_be_cut_is_not_started_past_the_queue(lstm: Model) -> None:
    scheduler = scheduler_of(run_seconds=1e-9)
    lstm.costs = CostModel()
    assert scheduler.start(job_of(lstm, tokens=tokens_of(7, seed=3)), 0.0) is None, "longer than the longest run"
    scheduler = scheduler_of()
    late = job_of(lstm, tokens=tokens_of(7, seed=3))
    late.deadline = 1.0
    assert scheduler.start(late, 1.0) is None, "its deadline has passed"
    scheduler.submit(job_of(lstm, tokens=tokens_of(7, seed=3)))
    assert scheduler.start(job_of(lstm, tokens=tokens_of(7, seed=3)), 0.0) is None, "another one waits"
    assert (scheduler.running, scheduler.waiting) == (0, 1)


def test_of_more_requests_than_fit_those_run_together_that_end_near_each_other(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * max(rows, 2) * steps)
    scheduler = scheduler_of(rows=3)
    lengths = [20, 2, 18, 40, 30, 22, 41, 35]
    jobs = [job_of(lstm, tokens=tokens_of(length, seed=length)) for length in lengths]
    for moment, job in enumerate(jobs):
        job.arrived = 1.0 + moment
        scheduler.submit(job)
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    assert sorted(part.job.steps for part in tick.parts) == [18, 20, 22], "nearest to the one that came first"
    outcomes, _ = drain(scheduler)
    outcomes |= finish(scheduler, tick)
    outcomes |= drain(scheduler)[0]
    assert len(outcomes) == len(jobs)
    assert (scheduler.waiting, scheduler.running) == (0, 0)


def test_a_long_request_comes_before_a_short_one_that_came_little_sooner(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-3 * steps)
    scheduler = scheduler_of(rows=1)
    arrivals = [(2, 0.0), (2, 0.008), (10, 0.01), (9, 0.5)]  # steps of a millisecond, and when they come
    jobs = []
    for steps, moment in arrivals:
        job = job_of(lstm, tokens=tokens_of(steps, seed=steps))
        job.arrived = 1.0 + moment
        scheduler.submit(job)
        jobs.append(job)
    _, ticks = drain(scheduler)
    order = list(dict.fromkeys(jobs.index(part.job) for tick in ticks for part in tick.parts))
    assert order == [0, 2, 1, 3]


def test_a_request_is_not_put_behind_long_ones_that_come_much_later(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-3 * steps)
    scheduler = scheduler_of(rows=1, run_seconds=0.02)
    first = job_of(lstm, tokens=tokens_of(1, seed=1))
    first.arrived = 1.0
    scheduler.submit(first)
    for number in range(5):
        job = job_of(lstm, tokens=tokens_of(200, seed=number))
        job.arrived = 1.021 + number
        scheduler.submit(job)
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    assert [part.job for part in tick.parts] == [first]


def test_fewer_requests_run_beside_a_long_one(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * (1 + rows) * steps)
    scheduler = scheduler_of(rows=32)
    for number, steps in enumerate([100, *[10] * 63]):
        job = job_of(lstm, tokens=tokens_of(steps, seed=number))
        job.arrived = 1.0
        scheduler.submit(job)
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    assert 100 in [part.job.steps for part in tick.parts]
    assert tick.rows == 16, "half of what would run beside a short one"


def test_a_model_that_is_to_run_once_at_a_time_does_not_keep_others_waiting(lstm: Model, fussy: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * steps)
    scheduler = Scheduler(BatchSettings(), SequenceTable(SequenceSettings()), brief_seconds=0.001)
    lstm.single = True
    try:
        first, second = (job_of(lstm, tokens=tokens_of(3, seed)) for seed in range(2))
        other = job_of(fussy, tokens=np.array([[1]]))
        scheduler.submit(first)
        tick, _ = scheduler.schedule(0.0)
        assert tick is not None
        scheduler.submit(second)
        assert not scheduler.ready
        assert scheduler.schedule(0.0) == (None, [])
        scheduler.submit(other)
        assert scheduler.ready
        assert taken(scheduler) == [other]
        finish(scheduler, tick)
        assert scheduler.ready
        assert taken(scheduler) == [second]
        longer, third = (job_of(lstm, tokens=tokens_of(20, seed)) for seed in range(2))
        scheduler = Scheduler(BatchSettings(), SequenceTable(SequenceSettings()), brief_seconds=0.001)
        scheduler.submit(longer)
        assert taken(scheduler) == [longer]
        scheduler.submit(third)
        assert scheduler.ready, "only brief runs are waited for"
        assert taken(scheduler) == [third]
    finally:
        lstm.single = False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_is_not_passed_over_as_long_as_longer_requests_come(lstm: Model, workers: int) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * (1 + rows) * steps)
    scheduler = scheduler_of(rows=16)
    clock = itertools.count(1)

    def came(steps: int) -> Job:
        job = job_of(lstm, tokens=tokens_of(steps, seed=steps))
        job.arrived = 1e-3 * next(clock)
        scheduler.submit(job)
        return job

    for _ in range(workers):
        came(100_000)
    for _ in range(40):
        came(500)
    step = came(1)
    running: list[Tick] = []
    for _ in range(20):
        while len(running) < workers:
            tick, _ = scheduler.schedule(0.0, workers - len(running))
            assert tick is not None
            running.append(tick)
        for job in finish(scheduler, running.pop(0)):
            if job is step:
                return
            came(500)
    pytest.fail("it has been passed over in 20 runs")


def test_a_request_of_many_rows_that_finds_no_room_beside_the_longest_takes_its_turn(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * (1 + rows) * steps)
    scheduler = scheduler_of(rows=16)

    def came(rows: int, steps: int) -> Job:
        job = job_of(lstm, tokens=np.ones((rows, steps), np.int64))
        job.arrived = 1.0
        scheduler.submit(job)
        return job

    came(1, 10_000)
    wide = came(16, 20)
    for _ in range(60):
        came(1, 50)
    runs = []
    while not wide.position:
        tick, _ = scheduler.schedule(0.0)
        assert tick is not None
        runs.append(tick)
        finish(scheduler, tick)
        assert len(runs) < 12, "it waits for more than each of the others to have run once"
    assert all(tick.rows > 4 for tick in runs), "nor does it keep others from running"
    assert not wide.passed


def test_dropped_requests_do_not_take_the_place_of_others_in_the_search(lstm: Model) -> None:
    lstm.costs = CostModel()
    scheduler = scheduler_of(rows=4)
    jobs = [job_of(lstm, tokens=tokens_of(3, seed)) for seed in range(60)]
    for number, job in enumerate(jobs):
        job.arrived = 1.0 + number
        scheduler.submit(job)
    for job in jobs[1:50]:
        scheduler.cancel(job, RequestCancelledError("gone"))
    assert set(taken(scheduler)) <= {jobs[0], *jobs[50:]}
    outcomes, _ = drain(scheduler)
    assert len(outcomes) == 11 - 4
    assert scheduler.waiting == 0


def test_what_a_dropped_step_of_many_sequences_frees_is_dropped_too(lstm: Model) -> None:
    table = SequenceTable(SequenceSettings())
    scheduler = Scheduler(BatchSettings(), table)
    lanes = []
    for number in (1, 2):
        lane = table.open(lstm, number, 0.0)
        slot = lstm.slots.take()
        lstm.arena.write(slot, {})
        table.advance(lane, lstm, slot, 0.0)
        lanes.append(lane)
    first, both, last = (job_of(lstm, tokens=np.ones((rows, 1), np.int64)) for rows in (1, 2, 1))
    first.places, both.places, last.places = [Place(lanes[0])], [Place(lane) for lane in lanes], [Place(lanes[1])]
    for job in (first, both, last):
        scheduler.submit(job)
    dropped = scheduler.cancel_all(UnavailableError("closed"))
    assert {each.job for each in dropped} == {first, both, last}
    assert (scheduler.waiting, scheduler.ready) == (0, False)
    for lane in lanes:
        table.end(lane)


def test_an_urgent_request_is_taken_before_others_that_would_fit_better(lstm: Model) -> None:
    lstm.costs = costs_of(lambda rows, steps: 1e-4 * max(rows, 2) * steps)
    scheduler = scheduler_of(rows=2)
    for length, priority in ((20, 2), (21, 2), (5, 1), (22, 2), (40, 1)):
        job = job_of(lstm, tokens=tokens_of(length, seed=length))
        job.priority = priority
        scheduler.submit(job)
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    assert sorted(part.job.steps for part in tick.parts) == [5, 40]
