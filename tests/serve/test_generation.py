"""What is generated for one is what a loop over the same file gives, whoever shares its runs."""

import itertools
import math
import queue
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from cellport.errors import DeadlineExceededError, InvalidRequestError, RequestCancelledError
from cellport.serve import AsyncEngine, BatchSettings, Engine, EngineSettings, Model
from cellport.serve.generation import Generation, Sampling, advance, probabilities
from cellport.serve.jobs import Job, Tick
from cellport.serve.requests import Reply, Request
from cellport.serve.scheduler import Scheduler
from cellport.serve.sequences import SequenceTable
from cellport.serve.settings import SequenceSettings
from cellport.serve.ticks import run_tick

from .wire import tokens_of, triton_input

Triton = triton_grpc.InferenceServerClient


@pytest.fixture(scope="module")
def lstm(folder: Path) -> Model:
    return Model.load(folder / "lstm" / "2" / "model.onnx", name="lstm")


def serial(model: Model, prompt: Any, sampling: Sampling) -> tuple[list[int], str | None]:
    """Generate by running the whole history for every token, alone."""
    generation = Generation(sampling, model.contract)
    history = prompt
    while generation.finish is None:
        scores = model.run({"tokens": history}, ["tags"])["tags"][0, -1]
        generation.keep(generation.draw(scores))
        history = np.concatenate([history, [[generation.tokens[-1]]]], axis=1)
    return generation.tokens, generation.finish


def drawn(seed: int, most: int = 12) -> tuple[Any, Sampling]:
    """A random prompt, and a random way to go on."""
    choose = random.Random(seed)
    sampling = Sampling(
        max_tokens=choose.randint(1, most),
        temperature=choose.choice([0.0, 0.5, 1.0, 3.0]),
        top_k=choose.choice([0, 1, 2, 3]),
        top_p=choose.choice([1.0, 0.9, 0.5]),
        seed=seed,
        stop_tokens=choose.choice([(), (3,)]),
        scores_output="tags",
    )
    return tokens_of(choose.randint(1, 20), seed), sampling


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 30)), min_size=1, max_size=8), st.booleans())
def test_generations_that_join_at_any_token_equal_a_loop_alone(
    lstm: Model, arrivals: list[tuple[int, int]], cut: bool
) -> None:
    used = lstm.slots.used
    scheduler = Scheduler(BatchSettings(cut=cut, run_seconds=1e-9, rows=5), SequenceTable(SequenceSettings()))
    waiting = sorted(arrivals, key=lambda each: each[1])
    jobs: list[tuple[Job, Any, Sampling]] = []
    outcomes: dict[Job, Any] = {}
    for turn in itertools.count():
        while waiting and waiting[0][1] <= turn:
            prompt, sampling = drawn(waiting.pop(0)[0])
            bound = lstm.contract.bind({"tokens": prompt}, ("tags",))
            job = Job(model=lstm, bound=bound, done=print, generation=Generation(sampling, lstm.contract))
            scheduler.submit(job)
            jobs.append((job, prompt, sampling))
        tick, _ = scheduler.schedule(0.0)
        if tick is not None:
            outcomes.update({each.job: each.outcome for each in scheduler.complete(tick, run_tick(tick), 0.0)})
        elif not waiting:
            break
    for job, prompt, sampling in jobs:
        reply = outcomes[job]
        assert isinstance(reply, Reply), reply
        assert (reply.outputs["tokens"][0].tolist(), reply.finish) == serial(lstm, prompt, sampling)
    assert lstm.slots.used == used


def test_tokens_are_drawn_with_the_probabilities_that_were_asked_for() -> None:
    scores = np.array([2.0, 1.0, 1.0, -1.0], np.float32)
    exact = np.exp(scores.astype(np.float64) / 0.7)
    exact /= exact.sum()
    np.testing.assert_allclose(probabilities(scores, Sampling(max_tokens=1, temperature=0.7)), exact, rtol=1e-12)
    two = probabilities(scores, Sampling(max_tokens=1, temperature=0.7, top_k=2))
    np.testing.assert_allclose(two, np.array([exact[0], exact[1], 0, 0]) / exact[:2].sum(), rtol=1e-12)
    most = Sampling(max_tokens=1, temperature=0.7, top_p=float(exact[0]) + 1e-9)
    assert np.flatnonzero(probabilities(scores, most)).tolist() == [0, 1]
    assert np.flatnonzero(probabilities(scores, Sampling(max_tokens=1, temperature=0.7, top_p=0.01))).tolist() == [0]
    huge = probabilities(np.array([1e4, 0.0], np.float32), Sampling(max_tokens=1, temperature=1e-3))
    np.testing.assert_array_equal(huge, [1, 0])


def test_frequencies_of_many_draws_are_the_probabilities(lstm: Model) -> None:
    """Within five standard deviations of each token's count; the seed is fixed."""
    scores = np.array([1.0, 0.5, 0.0, -0.5], np.float32)
    sampling = Sampling(max_tokens=20_000, temperature=1.0, seed=3, scores_output="tags")
    generation = Generation(sampling, lstm.contract)
    for _ in range(20_000):
        advance([generation], [scores])
    counts = np.bincount(generation.tokens, minlength=4)
    expected = probabilities(scores, sampling)
    deviation = np.sqrt(20_000 * expected * (1 - expected))
    assert (np.abs(counts - 20_000 * expected) < 5 * deviation).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; accepted: 1 to 1048576"),
        ({"temperature": -1.0}, "temperature is -1.0; accepted: at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; accepted: more than 0, at most 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Sampling(**{"max_tokens": 1, **wrong})


def test_a_generation_is_collected_for_a_unary_call(triton: Triton, lstm: Model) -> None:
    prompt = tokens_of(5, seed=1)
    given: dict[str, Any]
    for given in ({}, {"temperature": "0.8", "top_k": 3, "top_p": "0.9", "seed": 7}, {"temperature": 2, "seed": 1}):
        answer = triton.infer(
            "lstm",
            [triton_input("tokens", prompt)],
            parameters={"max_tokens": 9, "scores_output": "tags", "stop_tokens": "[2]", **given},
        )
        options = {name: float(value) if name in ("temperature", "top_p") else value for name, value in given.items()}
        sampling = Sampling(max_tokens=9, stop_tokens=(2,), scores_output="tags", **options)
        expected, finish = serial(lstm, prompt, sampling)
        assert answer.as_numpy("tokens").tolist() == [expected]
        assert answer.get_response().parameters["finish_reason"].string_param == finish


def test_tokens_are_streamed_and_the_last_response_is_marked(triton: Triton, lstm: Model) -> None:
    outcomes: queue.Queue[Any] = queue.Queue()
    triton.start_stream(lambda result, error: outcomes.put((result, error)))
    prompts = {str(seed): tokens_of(seed + 1, seed) for seed in range(4)}
    for name, prompt in prompts.items():
        triton.async_stream_infer(
            "lstm",
            [triton_input("tokens", prompt)],
            request_id=name,
            enable_empty_final_response=True,
            parameters={"max_tokens": 6, "scores_output": "tags", "temperature": 1, "seed": int(name)},
        )
    tokens: dict[str, list[int]] = {name: [] for name in prompts}
    running = set(prompts)
    while running:
        result, error = outcomes.get(timeout=60)
        assert error is None
        response = result.get_response()
        if response.parameters["triton_final_response"].bool_param:
            running.remove(response.id)
            assert not response.outputs
            assert response.parameters["finish_reason"].string_param == "length"
        else:
            tokens[response.id].append(int(result.as_numpy("tokens")[0, 0]))
    triton.stop_stream()
    for name, prompt in prompts.items():
        sampling = Sampling(max_tokens=6, temperature=1.0, seed=int(name), scores_output="tags")
        assert tokens[name] == serial(lstm, prompt, sampling)[0]


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        ("lstm", {"max_tokens": 4}, "the model has 2 outputs of floats over a fixed number of tokens: 'tags', 'last'"),
        ("lstm", {"max_tokens": 4, "scores_output": "h_out"}, "scores_output is 'h_out'; accepted: 'tags', 'last'"),
        ("lstm", {"max_tokens": 4, "token_input": "x"}, "token_input is 'x'; accepted: 'tokens'"),
        ("acausal", {"max_tokens": 4}, "the model is not causal with states"),
        ("lstm", {"max_tokens": "4"}, "'max_tokens' is '4'; accepted: int64_param"),
        ("lstm", {"max_tokens": 4, "stop_tokens": "[0.5]"}, "'stop_tokens' is .*accepted: integers"),
        ("lstm", {"max_tokens": 4, "temperature": "hot"}, "'temperature' is 'hot'; accepted: a number as double_param"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(
    triton: Triton, model: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as error:
        triton.infer(model, [triton_input("tokens", [[1]])], parameters=parameters)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_several_prompts_and_sequences_and_other_outputs_are_refused(lstm: Model, folder: Path) -> None:
    sampling = Sampling(max_tokens=3, scores_output="tags")
    with Engine(folder / "lstm") as engine:
        with pytest.raises(InvalidRequestError, match="the prompt has 2 rows; accepted of a generation: 1"):
            engine.generate("lstm", {"tokens": np.array([[1], [2]])}, sampling)
        request = Request(model="lstm", inputs={"tokens": np.array([[1]])}, outputs=["last"], sampling=sampling)
        with pytest.raises(
            InvalidRequestError, match=r"outputs are \['last'\]; accepted of a generation: \['tokens'\]"
        ):
            engine.call(request)
        with pytest.raises(InvalidRequestError, match="inside a sequence"):
            Request(model="lstm", inputs={}, sampling=sampling, new=True)


async def test_the_engine_iterates_tokens_and_leaving_ends_the_generation(lstm: Model, folder: Path) -> None:
    prompt, sampling = tokens_of(3, 0), Sampling(max_tokens=2**20, scores_output="tags", temperature=1.0, seed=4)
    expected = serial(lstm, prompt, Sampling(max_tokens=10, scores_output="tags", temperature=1.0, seed=4))[0]
    with Engine(folder / "lstm", EngineSettings(workers=1)) as engine:
        tokens = engine.generate("lstm", {"tokens": prompt}, sampling)
        assert list(itertools.islice(tokens, 10)) == expected
        tokens.close()  # type: ignore[attr-defined]
        shared = AsyncEngine(engine)
        found = []
        async for token in shared.generate("lstm", {"tokens": prompt}, sampling):
            found.append(token)
            if len(found) == 10:
                break
        assert found == expected
        with pytest.raises(DeadlineExceededError, match=r"before the request ran|after \d+ tokens"):
            list(engine.generate("lstm", {"tokens": prompt}, sampling, deadline=engine.clock() + 0.05))
        engine.infer("lstm", {"tokens": prompt})
        model = engine.repository.get("lstm")
    assert model.slots.used == 0


def test_a_cancelled_generation_ends_between_two_tokens_and_keeps_no_slot(lstm: Model) -> None:
    used = lstm.slots.used
    scheduler = Scheduler(BatchSettings(), SequenceTable(SequenceSettings()))
    bound = lstm.contract.bind({"tokens": np.array([[1]])}, ("tags",))
    sampling = Sampling(max_tokens=100, scores_output="tags")
    job = Job(model=lstm, bound=bound, done=print, generation=Generation(sampling, lstm.contract))
    scheduler.submit(job)

    def turn() -> Tick:
        tick, _ = scheduler.schedule(0.0)
        assert tick is not None
        return tick

    for _ in range(3):
        tick = turn()
        assert scheduler.complete(tick, run_tick(tick), 0.0) == []
    tick = turn()
    error = RequestCancelledError("gone")
    assert scheduler.cancel(job, error) == (True, [])
    assert [each.outcome for each in scheduler.complete(tick, run_tick(tick), 0.0)] == [error]
    assert (scheduler.waiting, lstm.slots.used) == (0, used)
