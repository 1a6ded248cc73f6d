"""Sequences: their table alone, and over gRPC."""

import itertools
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from cellport.errors import (
    InvalidRequestError,
    QueueFullError,
    SequenceEndedError,
    SequenceExistsError,
    SequenceNotFoundError,
)
from cellport.serve import (
    Engine,
    EngineSettings,
    Model,
    SequenceSettings,
    Server,
    ServerSettings,
)
from cellport.serve.jobs import Job
from cellport.serve.sequences import SequenceTable

from .test_engine import busy
from .wire import tokens_of, triton_input

Triton = triton_grpc.InferenceServerClient


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder / "gru" / "1" / "model.onnx", name="gru")


def start(table: SequenceTable, model: Model, name: int, now: float = 0.0) -> Any:
    lane = table.open(model, name, now)
    table.advance(lane, model, model.slots.take(), now)
    return lane


def test_a_sequence_that_never_started_is_told_so(model: Model) -> None:
    with pytest.raises(SequenceNotFoundError, match="sequence 1 of model 'gru' was never started"):
        SequenceTable(SequenceSettings()).get(model, 1)


def test_a_sequence_that_has_ended_is_told_so_until_it_starts_again(model: Model) -> None:
    table = SequenceTable(SequenceSettings())
    table.end(start(table, model, 1))
    with pytest.raises(SequenceEndedError, match="has ended"):
        table.get(model, 1)
    start(table, model, 1)
    assert table.get(model, 1).running


def test_a_sequence_is_evicted_when_its_idle_limit_passes(model: Model) -> None:
    table = SequenceTable(SequenceSettings(idle_seconds=10))
    start(table, model, 1, now=0)
    start(table, model, 2, now=5)
    assert table.next_eviction() == 10
    table.evict_idle(9.9)
    assert len(table) == 2
    table.evict_idle(10)
    assert len(table) == 1
    with pytest.raises(SequenceNotFoundError, match="evicted after 10 s without a step"):
        table.get(model, 1)


def test_the_least_recently_used_sequence_makes_room_for_a_new_one(model: Model) -> None:
    table = SequenceTable(SequenceSettings(maximum=2))
    first = start(table, model, 1)
    start(table, model, 2)
    table.advance(first, model, first.slot, now=1)
    start(table, model, 3)
    assert table.get(model, 1) is first
    with pytest.raises(SequenceNotFoundError, match="evicted to make room; at most 2 sequences are held"):
        table.get(model, 2)


def test_a_sequence_with_waiting_steps_is_not_evicted(model: Model) -> None:
    table = SequenceTable(SequenceSettings(maximum=1, idle_seconds=1))
    lane = start(table, model, 1)
    lane.jobs.append(Job(model=model, bound=None, done=lambda _: None))
    table.evict_idle(100)
    with pytest.raises(QueueFullError, match="1 sequences are running and all have waiting steps"):
        table.open(model, 2, 100)
    assert table.get(model, 1) is lane


def test_only_a_bounded_number_of_past_sequences_is_remembered(model: Model) -> None:
    table = SequenceTable(SequenceSettings(remembered=2))
    for name in (1, 2, 3):
        table.end(start(table, model, name))
    with pytest.raises(SequenceNotFoundError, match="never started"):
        table.get(model, 1)
    with pytest.raises(SequenceEndedError, match="has ended"):
        table.get(model, 3)


@pytest.mark.parametrize(
    "wrong", [{"maximum": 0}, {"idle_seconds": 0}, {"on_restart": "ignore"}, {"remembered": -1}], ids=str
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; accepted"):
        SequenceSettings(**wrong)


def step(triton: Triton, tokens: Any, name: int | str, **options: Any) -> Any:
    return triton.infer("lstm", [triton_input("tokens", tokens)], sequence_id=name, **options)


def refusal(triton: Triton, tokens: Any, name: int | str, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        step(triton, tokens, name, **options)
    return error.value.status(), error.value.message()


def test_a_sequence_by_unary_calls_in_chunks_equals_one_pass(triton: Triton) -> None:
    tokens = tokens_of(10, seed=5)
    whole = triton.infer("lstm", [triton_input("tokens", tokens)])
    cuts = [0, 1, 4, 10]
    parts = [
        step(triton, tokens[:, a:b], "u1", sequence_start=a == 0, sequence_end=b == 10)
        for a, b in itertools.pairwise(cuts)
    ]
    tags = np.concatenate([part.as_numpy("tags") for part in parts], axis=1)
    np.testing.assert_allclose(tags, whole.as_numpy("tags"), atol=1e-5)
    np.testing.assert_allclose(parts[-1].as_numpy("last"), whole.as_numpy("last"), atol=1e-5)


def test_a_step_after_the_end_is_refused_and_told_that_it_ended(triton: Triton) -> None:
    step(triton, [[1]], 51, sequence_start=True, sequence_end=True)
    status, message = refusal(triton, [[1]], 51)
    assert status == "StatusCode.FAILED_PRECONDITION"
    assert "sequence 51 of model 'lstm' has ended" in message


def test_a_step_sent_while_the_end_waits_is_told_the_same_as_one_sent_later(folder: Path) -> None:
    with Engine(folder, EngineSettings(workers=1)) as engine, Server(engine, port=0) as server:
        triton = Triton(server.address)
        outcomes: queue.Queue[tuple[Any, Any]] = queue.Queue()
        triton.start_stream(lambda result, error: outcomes.put((result, error)))
        with busy(engine):
            for number in range(3):
                control = {"sequence_id": 58, "sequence_start": number == 0, "sequence_end": number == 1}
                triton.async_stream_infer("lstm", [triton_input("tokens", [[1]])], **control)
            pause = threading.Event()
            while engine.waiting < 3 and outcomes.empty():
                pause.wait(0.001)
        assert [outcomes.get(timeout=60)[1] for _ in range(2)] == [None, None]
        queued = outcomes.get(timeout=60)[1]
        assert "sequence 58 of model 'lstm' has ended; accepted: sequence_start with its first step" in str(queued)
        assert refusal(triton, [[1]], 58) == ("StatusCode.FAILED_PRECONDITION", queued.message())
        triton.stop_stream()
        triton.close()


def test_a_start_of_a_running_id_restarts_it(triton: Triton) -> None:
    first = step(triton, [[1, 2]], 52, sequence_start=True).as_numpy("last")
    again = step(triton, [[1, 2]], 52, sequence_start=True, sequence_end=True).as_numpy("last")
    np.testing.assert_array_equal(first, again)


def test_integer_and_text_ids_and_models_have_sequences_of_their_own(triton: Triton) -> None:
    step(triton, [[1]], 53, sequence_start=True)
    assert refusal(triton, [[1]], "53")[0] == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="sequence 53 of model 'gru' was never started"):
        triton.infer("gru", [triton_input("tokens", [[1]])], sequence_id=53)


def test_a_length_of_zero_leaves_the_state_as_it_is(triton: Triton) -> None:
    expected = triton.infer("lstm", [triton_input("tokens", [[1, 2]])]).as_numpy("last")
    step(triton, [[1]], 54, sequence_start=True)
    inputs = [triton_input("tokens", [[9]]), triton_input("lengths", np.array([0]))]
    triton.infer("lstm", inputs, sequence_id=54)
    np.testing.assert_allclose(step(triton, [[2]], 54, sequence_end=True).as_numpy("last"), expected, atol=1e-6)


def test_a_state_may_be_given_with_the_start_and_not_later(triton: Triton) -> None:
    wanted = [triton_grpc.InferRequestedOutput(name) for name in ("h_out", "c_out")]
    states = triton.infer("lstm", [triton_input("tokens", [[1, 2]])], outputs=wanted)
    given = [triton_input(name, states.as_numpy(f"{name}_out")) for name in ("h", "c")]
    expected = triton.infer("lstm", [triton_input("tokens", [[1, 2, 3]])]).as_numpy("last")
    answer = triton.infer("lstm", [triton_input("tokens", [[3]]), *given], sequence_id=55, sequence_start=True)
    np.testing.assert_allclose(answer.as_numpy("last"), expected, atol=1e-6)
    with pytest.raises(InferenceServerException, match="state 'h', 'c' is given inside sequence 55"):
        triton.infer("lstm", [triton_input("tokens", [[3]]), *given], sequence_id=55)


def test_states_of_a_sequence_are_returned_when_named(triton: Triton) -> None:
    wanted = [triton_grpc.InferRequestedOutput("h_out")]
    answer = step(triton, [[1, 2]], 56, sequence_start=True, sequence_end=True, outputs=wanted)
    assert answer.as_numpy("h_out").shape == (1, 1, 8)
    assert answer.as_numpy("tags") is None


def test_a_running_sequence_stays_on_its_version(triton: Triton) -> None:
    step(triton, [[1]], 57, sequence_start=True, model_version="1")
    whole = triton.infer("lstm", [triton_input("tokens", [[1, 2]])], model_version="1").as_numpy("last")
    np.testing.assert_allclose(step(triton, [[2]], 57).as_numpy("last"), whole, atol=1e-5)
    status, message = refusal(triton, [[1]], 57, model_version="2")
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "runs on version 1" in message


def test_a_server_can_refuse_a_restart_and_bound_its_sequences(folder: Path) -> None:
    sequences = SequenceSettings(maximum=2, on_restart="refuse")
    with Server(folder, ServerSettings(engine=EngineSettings(sequences=sequences)), port=0) as server:
        triton = Triton(server.address)
        step(triton, [[1]], 1, sequence_start=True)
        status, message = refusal(triton, [[1]], 1, sequence_start=True)
        assert status == "StatusCode.ALREADY_EXISTS"
        assert "sequence 1 of model 'lstm' is running" in message
        step(triton, [[1]], 2, sequence_start=True)
        step(triton, [[1]], 3, sequence_start=True)
        status, message = refusal(triton, [[1]], 1)
        assert status == "StatusCode.NOT_FOUND"
        assert "evicted to make room" in message
        triton.close()


def test_an_idle_sequence_is_evicted_by_the_engines_clock(folder: Path) -> None:
    now = [0.0]
    settings = EngineSettings(sequences=SequenceSettings(idle_seconds=10))
    with Engine(folder / "gru", settings, clock=lambda: now[0]) as engine:
        sequence = engine.open_sequence("gru")
        sequence.step({"tokens": np.array([1])})
        now[0] = 11
        with pytest.raises(SequenceNotFoundError, match="evicted after 10 s"):
            sequence.step({"tokens": np.array([1])})


@pytest.mark.parametrize("front", ["grpcio"], indirect=True)
def test_a_sequence_in_this_process_steps_shows_its_state_forks_and_ends(server: Server) -> None:
    engine = server.engine
    tokens = tokens_of(6, seed=8)
    whole = engine.infer("gru", {"tokens": tokens}, outputs=["last", "h_out"])
    with engine.open_sequence("gru") as sequence:
        np.testing.assert_array_equal(sequence.state()["h"].ravel(), np.linspace(-1, 1, 8, dtype=np.float32))
        sequence.step({"tokens": tokens[:, :3]})
        fork = sequence.fork()
        sequence.step({"tokens": np.array([0])})
        fork.step({"tokens": tokens[:, 3:5]})
        last = fork.step({"tokens": tokens[:, 5]})["last"]
        np.testing.assert_allclose(last, whole["last"], atol=1e-5)
        np.testing.assert_allclose(fork.state()["h"], whole["h_out"], atol=1e-5)
        fork.end()
    for each in (fork, sequence):
        with pytest.raises(SequenceEndedError, match="has ended"):
            each.step({"tokens": np.array([0])})


def test_open_sequence_refuses_an_id_in_use_where_that_is_set_and_states_that_do_not_fit(folder: Path) -> None:
    settings = EngineSettings(sequences=SequenceSettings(on_restart="refuse"))
    with Engine(folder / "gru", settings) as engine:
        engine.open_sequence("gru", sequence_id=4)
        with pytest.raises(SequenceExistsError, match="sequence 4"):
            engine.open_sequence("gru", sequence_id=4)
        with pytest.raises(InvalidRequestError, match="state 'c' is not one of the model's; accepted: 'h'"):
            engine.open_sequence("gru", state={"c": np.zeros((1, 1, 8), np.float32)})
        with pytest.raises(InvalidRequestError, match="'batch' must be 1"):
            engine.open_sequence("gru", state={"h": np.zeros((2, 1, 8), np.float32)})
