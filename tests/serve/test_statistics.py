"""What the server tells of what its models have done, and of how they are configured."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from cellport.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    NotFoundError,
    QueueFullError,
    RequestCancelledError,
)
from cellport.protos import statistics_pb2 as own
from cellport.serve import BatchSettings, Engine, EngineSettings, Model, SequenceSettings, Server, ServerSettings
from cellport.serve.generation import Sampling
from cellport.serve.requests import Control, Request
from cellport.serve.server import Front
from cellport.serve.statistics import Duration, ModelStatistics
from cellport.serve.versions import RepositorySettings

from . import models
from .wire import tokens_of, triton_input

Triton = tritonclient.grpc.InferenceServerClient


@pytest.fixture
def fresh(tmp_path: Path, front: Front) -> Iterator[Server]:
    """A server of its own: a recurrent model of two versions, and one that fails on some values."""
    models.save_lstm(tmp_path / "lstm" / "1" / "model.onnx", seed=7)
    models.save_lstm(tmp_path / "lstm" / "2" / "model.onnx")
    models.save_fussy(tmp_path / "fussy" / "1" / "model.onnx")
    engine = EngineSettings(repository=RepositorySettings(control="explicit", load=("*",)))
    with Server(tmp_path, ServerSettings(front=front, engine=engine), port=0) as server:
        yield server


@pytest.fixture
def triton(fresh: Server) -> Iterator[Triton]:
    connected = Triton(fresh.address)
    yield connected
    connected.close()


def runs_of(server: Server, name: str = "", version: str = "") -> dict[tuple[str, str], own.ModelRunStatistics]:
    with grpc.insecure_channel(server.address) as channel:
        get = channel.unary_unary(
            "/cellport.RunStatistics/Get",
            request_serializer=own.RunStatisticsRequest.SerializeToString,
            response_deserializer=own.RunStatisticsResponse.FromString,
        )
        response = get(own.RunStatisticsRequest(model_name=name, model_version=version), timeout=30)
    return {(each.model_name, each.model_version): each for each in response.models}


def infer(triton: Triton, name: str, tokens: Any, lengths: Any = None, **options: Any) -> None:
    inputs = [triton_input("tokens", tokens)]
    if lengths is not None:
        inputs.append(triton_input("lengths", np.array(lengths, np.int64)))
    triton.infer(name, inputs, **options)


def test_tritonclient_reads_counts_and_times_of_what_it_has_asked_for(fresh: Server, triton: Triton) -> None:
    before = time.time()
    started = time.perf_counter()
    for rows in (1, 3, 3):
        infer(triton, "lstm", tokens_of(5, seed=0, rows=rows))
    infer(triton, "lstm", tokens_of(2, seed=0), model_version="1")
    wall = (time.perf_counter() - started) * 1e9
    [found] = triton.get_inference_statistics("lstm", "2").model_stats
    assert (found.name, found.version, found.inference_count, found.execution_count) == ("lstm", "2", 7, 3)
    assert before * 1000 - 1 <= found.last_inference <= time.time() * 1000
    stats = found.inference_stats
    assert (stats.success.count, stats.fail.count) == (3, 0)
    parts = [stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output]
    assert [each.count for each in parts] == [3, 3, 3, 3]
    assert all(each.ns > 0 for each in parts)
    assert sum(each.ns for each in parts) == stats.success.ns <= wall
    assert [(each.batch_size, each.compute_infer.count) for each in found.batch_stats] == [(1, 1), (3, 2)]
    for part in ("compute_input", "compute_infer", "compute_output"):
        assert sum(getattr(each, part).ns for each in found.batch_stats) == pytest.approx(
            getattr(stats, part).ns, abs=3
        )


def test_an_empty_name_asks_for_all_models_and_an_empty_version_for_all_versions(triton: Triton) -> None:
    infer(triton, "lstm", tokens_of(2, seed=0), model_version="1")

    def counts(*asked: str) -> list[tuple[str, str, int]]:
        found = triton.get_inference_statistics(*asked).model_stats
        return [(each.name, each.version, each.inference_count) for each in found]

    assert counts() == [("fussy", "1", 0), ("lstm", "1", 1), ("lstm", "2", 0)]
    assert counts("lstm") == [("lstm", "1", 1), ("lstm", "2", 0)]
    assert counts("lstm", "1") == [("lstm", "1", 1)]
    assert [each["name"] for each in triton.get_inference_statistics(as_json=True)["model_stats"]] == [
        "fussy",
        "lstm",
        "lstm",
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [(("nobody",), "'nobody' is not served; accepted: 'fussy', 'lstm'"), (("lstm", "9"), "no version '9'")],
)
def test_unknown_models_and_versions_have_no_statistics(
    fresh: Server, triton: Triton, asked: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as refusal:
        triton.get_inference_statistics(*asked)
    assert refusal.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(grpc.RpcError, match=message) as refused:
        runs_of(fresh, *asked)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_failed_run_counts_for_its_request_and_not_as_an_inference(triton: Triton) -> None:
    infer(triton, "fussy", [[0, 4]])
    with pytest.raises(InferenceServerException):
        infer(triton, "fussy", [[5]])
    with pytest.raises(InferenceServerException, match="accepted: 'tokens'"):
        triton.infer("fussy", [triton_input("other", [[1]])])  # never got to the model
    [found] = triton.get_inference_statistics("fussy").model_stats
    stats = found.inference_stats
    assert (stats.success.count, stats.fail.count, found.inference_count, found.execution_count) == (1, 1, 1, 1)
    assert stats.fail.ns > 0


def test_a_model_that_is_loaded_again_starts_from_zero_and_one_that_is_unloaded_has_none(triton: Triton) -> None:
    infer(triton, "lstm", tokens_of(2, seed=0))
    infer(triton, "fussy", [[1]])
    triton.load_model("lstm")
    counts = {(each.name, each.version): each.inference_count for each in triton.get_inference_statistics().model_stats}
    assert counts == {("fussy", "1"): 1, ("lstm", "1"): 0, ("lstm", "2"): 0}
    triton.unload_model("fussy")
    assert [each.name for each in triton.get_inference_statistics().model_stats] == ["lstm", "lstm"]
    with pytest.raises(InferenceServerException, match="unloaded") as refusal:
        triton.get_inference_statistics("fussy")
    assert refusal.value.status() == "StatusCode.UNAVAILABLE"


def test_the_own_service_tells_lanes_chunks_padding_and_states(fresh: Server, triton: Triton) -> None:
    infer(triton, "lstm", tokens_of(5, seed=0, rows=3), [5, 5, 5])
    infer(triton, "lstm", tokens_of(1, seed=0), sequence_id=4, sequence_start=True)
    infer(triton, "lstm", tokens_of(3, seed=0), sequence_id=4)
    infer(triton, "lstm", tokens_of(1, seed=0), sequence_id="other", sequence_start=True)
    found = runs_of(fresh)
    assert sorted(found) == [("fussy", "1"), ("lstm", "1"), ("lstm", "2")]
    lstm = found["lstm", "2"]
    assert (lstm.runs, lstm.lanes, lstm.steps, lstm.padding_steps) == (4, 6, 20, 0)
    assert {each.steps: each.runs for each in lstm.chunks} == {1: 2, 4: 1, 8: 1}
    assert (lstm.sequences, lstm.state_bytes) == (2, 2 * 2 * 8 * 4)
    infer(triton, "lstm", tokens_of(1, seed=0), sequence_id=4, sequence_end=True)
    assert runs_of(fresh, "lstm", "2")["lstm", "2"].sequences == 1
    assert found["fussy", "1"].runs == 0


def test_the_server_says_that_it_has_statistics(triton: Triton) -> None:
    assert "statistics" in triton.get_server_metadata().extensions


# The engine, without a front.


def engine_of(path: Path, **settings: Any) -> Engine:
    return Engine(path, EngineSettings(**{"workers": 1, "warm_seconds": 0.0, **settings}))


def only(engine: Engine) -> ModelStatistics:
    [found] = engine.statistics()
    return found


def together(engine: Engine, *requests: Request) -> list[Any]:
    """Let requests wait until all have been accepted, then run until none waits."""
    outcomes: list[Any] = []
    jobs = [engine.prepare(each, outcomes.append) for each in requests]
    assert engine.accept(jobs, lambda: None) == []
    while engine.runner.run_waiting():
        pass
    while len(outcomes) < len(jobs):  # a worker may have taken a run
        time.sleep(0.001)
    return outcomes


def test_the_runs_at_loading_count_for_nobody(tmp_path: Path) -> None:
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx"), warm_seconds=0.05) as engine:
        found = only(engine)
    assert found == ModelStatistics(
        name="lstm",
        version="1",
        last_inference=0,
        inference_count=0,
        execution_count=0,
        success=Duration(),
        fail=Duration(),
        queue=Duration(),
        compute_input=Duration(),
        compute_infer=Duration(),
        compute_output=Duration(),
        batches=(),
        lanes=0,
        steps=0,
        padding_steps=0,
        chunks=(),
        sequences=0,
        state_bytes=0,
    )
    assert found.padding == 0.0


def test_requests_that_share_a_run_are_one_execution_and_each_has_all_of_its_time(tmp_path: Path) -> None:
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx")) as engine:
        together(engine, *[Request(model="lstm", inputs={"tokens": tokens_of(4, seed=n)}) for n in range(5)])
        found = only(engine)
    assert (found.inference_count, found.execution_count, found.success.count) == (5, 1, 5)
    [batch] = found.batches
    assert (batch.batch_size, batch.compute_infer.count) == (5, 1)
    for whole, run in (
        (found.compute_input, batch.compute_input),
        (found.compute_infer, batch.compute_infer),
        (found.compute_output, batch.compute_output),
    ):
        assert whole.ns == pytest.approx(5 * run.ns, abs=5)


def test_padding_is_what_was_run_beyond_each_rows_length(tmp_path: Path) -> None:
    tokens = tokens_of(6, seed=1, rows=3)
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx", causal=False)) as engine:
        engine.infer("lstm", {"tokens": tokens, "lengths": np.array([6, 2, 0])})
        found = only(engine)
    assert (found.steps, found.padding_steps) == (18, 10)
    assert found.padding == pytest.approx(10 / 18)


def test_padding_between_requests_of_one_run_counts_too(tmp_path: Path) -> None:
    batch = BatchSettings(padding=4.0)
    requests = [Request(model="lstm", inputs={"tokens": tokens_of(n, seed=n)}) for n in (2, 5)]
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx", causal=False), batch=batch) as engine:
        together(engine, *requests)
        found = only(engine)
    assert (found.execution_count, found.steps, found.padding_steps) == (1, 10, 3)


def test_images_of_different_size_count_the_places_that_were_padded(tmp_path: Path) -> None:
    def image(*size: int) -> Request:
        return Request(model="images", inputs={"image": np.ones((1, *size), np.float32)})

    with engine_of(models.save_images(tmp_path / "images.onnx"), batch=BatchSettings(padding=4.0)) as engine:
        together(engine, image(2, 3), image(4, 2))
        found = only(engine)
    assert (found.execution_count, found.steps, found.padding_steps) == (1, 2 * 4 * 3, 24 - 6 - 8)


def test_a_request_in_chunks_is_one_success_of_several_runs_and_pads_nothing(tmp_path: Path) -> None:
    """Each row leaves when its steps are done."""
    lengths = np.array([200, 1, 70])
    batch = BatchSettings(run_seconds=1e-9)  # runs are as short as pays
    started = time.perf_counter()
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx"), batch=batch) as engine:
        engine.infer("lstm", {"tokens": tokens_of(200, seed=2, rows=3), "lengths": lengths})
        found = only(engine)
        runs = engine.runs
    wall = (time.perf_counter() - started) * 1e9
    assert runs > 1
    assert (found.inference_count, found.success.count, found.execution_count) == (3, 1, runs)
    assert sum(each.runs for each in found.chunks) == runs
    assert found.steps - found.padding_steps == lengths.sum()
    assert found.lanes == sum(each.batch_size * each.compute_infer.count for each in found.batches)
    assert found.compute_infer.count == 1
    assert found.compute_infer.ns == pytest.approx(sum(each.compute_infer.ns for each in found.batches), abs=runs)
    assert found.success.ns <= wall
    assert found.state_bytes == 0


@contextlib.contextmanager
def occupied(tmp_path: Path, **settings: Any) -> Iterator[Engine]:
    """An engine whose only worker does nothing, since it is delivering an answer."""
    lstm = Model.load(models.save_lstm(tmp_path / "lstm.onnx"), name="lstm")
    affine = Model.load(models.save_affine(tmp_path / "affine.onnx"), name="affine")
    delivering, release = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        delivering.set()
        release.wait(30)

    clock = settings.pop("clock", time.monotonic)
    with Engine([lstm, affine], EngineSettings(workers=1, warm_seconds=0, **settings), clock=clock) as engine:
        try:
            engine.submit(Request(model="affine", inputs={"x": np.zeros((1, 3), np.float32)}), wait)
            assert delivering.wait(30)
            yield engine
        finally:
            release.set()


def test_time_spent_waiting_is_queue_time(tmp_path: Path) -> None:
    with occupied(tmp_path) as engine:
        engine.submit(Request(model="lstm", inputs={"tokens": [[1]]}), lambda _: None)
        time.sleep(0.05)
        engine.runner.run_waiting()
        [found] = engine.statistics("lstm")
    assert found.queue.ns >= 0.05e9
    assert found.compute_input.ns + found.compute_infer.ns + found.compute_output.ns < found.queue.ns


def test_what_is_late_cancelled_or_refused_fails_and_is_no_inference(tmp_path: Path) -> None:
    moment = 0.0
    request = Request(model="lstm", inputs={"tokens": [[1]]}, deadline=1.0)
    outcomes: list[Any] = []
    with occupied(tmp_path, batch=BatchSettings(queue=1), clock=lambda: moment) as engine:
        engine.submit(request, outcomes.append)
        with pytest.raises(QueueFullError):
            engine.submit(request, outcomes.append)
        moment = 2.0
        engine.runner.run_waiting()
        ticket = engine.submit(Request(model="lstm", inputs={"tokens": [[1]]}), outcomes.append)
        assert ticket.cancel(RequestCancelledError("gone"))
        with pytest.raises(NotFoundError):
            engine.submit(Request(model="lstm", inputs={"tokens": [[1]]}, control=Control(id=5)), outcomes.append)
        [found] = engine.statistics("lstm")
    assert [type(each) for each in outcomes] == [DeadlineExceededError, RequestCancelledError]
    assert (found.fail.count, found.success.count, found.execution_count, found.last_inference) == (4, 0, 0, 0)
    assert found.fail.ns > 0


def test_only_what_fails_alone_fails_of_a_run_that_failed(tmp_path: Path) -> None:
    with engine_of(models.save_fussy(tmp_path / "fussy.onnx")) as engine:
        outcomes = together(engine, *[Request(model="fussy", inputs={"tokens": [[n]]}) for n in (1, 9, 2)])
        found = only(engine)
    assert sum(isinstance(each, Exception) for each in outcomes) == 1
    assert (found.success.count, found.fail.count, found.inference_count) == (2, 1, 2)
    assert found.execution_count == sum(each.compute_infer.count for each in found.batches) == 2


def test_the_end_of_a_sequence_without_a_step_is_a_success_without_a_run(tmp_path: Path) -> None:
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx")) as engine:
        with engine.open_sequence("lstm") as sequence:
            sequence.step({"tokens": [[1]]})
            assert only(engine).sequences == 1
        found = only(engine)
    assert (found.success.count, found.queue.count, found.compute_infer.count) == (2, 2, 1)
    assert (found.inference_count, found.sequences, found.state_bytes) == (1, 0, 0)


def test_a_generation_is_one_request_with_a_run_for_each_token(tmp_path: Path) -> None:
    sampling = Sampling(max_tokens=4, scores_output="tags")
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx")) as engine:
        assert len(list(engine.generate("lstm", {"tokens": [[1, 2, 3]]}, sampling))) == 4
        found = only(engine)
    assert (found.success.count, found.inference_count, found.execution_count) == (1, 1, 4)
    assert {each.steps: each.runs for each in found.chunks} == {1: 3, 4: 1}
    assert (found.steps, found.padding_steps) == (6, 0)
    assert found.compute_infer.ns == pytest.approx(found.batches[0].compute_infer.ns, abs=4)


def test_rows_of_large_runs_are_counted_by_powers_of_two(tmp_path: Path) -> None:
    with engine_of(models.save_affine(tmp_path / "affine.onnx")) as engine:
        for rows in (1024, 1025, 2048, 3000):
            engine.infer("affine", {"x": np.zeros((rows, 3), np.float32)})
        found = only(engine)
    assert {each.batch_size: each.compute_infer.count for each in found.batches} == {1024: 1, 2048: 2, 4096: 1}
    assert found.lanes == found.inference_count == 1024 + 1025 + 2048 + 3000


def test_many_threads_lose_no_count(tmp_path: Path) -> None:
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx"), workers=2) as engine:

        def ask(seed: int) -> None:
            for turn in range(25):
                engine.infer("lstm", {"tokens": tokens_of(1 + turn % 3, seed=seed)})

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        found, runs = only(engine), engine.runs
    assert (found.success.count, found.inference_count, found.execution_count) == (100, 100, runs)


def test_the_engine_refuses_unknown_names(tmp_path: Path) -> None:
    with engine_of(models.save_lstm(tmp_path / "lstm.onnx")) as engine:
        assert [each.name for each in engine.statistics("lstm", "1")] == ["lstm"]
        with pytest.raises(ModelNotFoundError, match="'other' is not served"):
            engine.statistics("other")


# Configurations.


def test_configurations_tell_what_is_so(tmp_path: Path) -> None:
    models.save_lstm(tmp_path / "lstm" / "1" / "model.onnx")
    models.save_affine(tmp_path / "affine" / "1" / "model.onnx")
    models.save_reshape(tmp_path / "pairs" / "1" / "model.onnx")
    models.save_edges(tmp_path / "edges" / "1" / "model.onnx")
    engine = EngineSettings(
        batch=BatchSettings(rows=16, default_priority=3),
        sequences=SequenceSettings(maximum=50, idle_seconds=2.5),
        warm_seconds=0,
    )
    with Server(tmp_path, ServerSettings(engine=engine), port=0) as server:
        client = Triton(server.address)
        configs = {name: client.get_model_config(name).config for name in ("lstm", "affine", "pairs", "edges")}
        client.close()
    lstm, affine, pairs, edges = configs.values()
    assert [each.max_batch_size for each in configs.values()] == [16, 16, 0, 0]
    assert [each.WhichOneof("scheduling_choice") for each in configs.values()] == [
        "sequence_batching",
        "dynamic_batching",
        None,  # its requests run alone
        "dynamic_batching",
    ]
    assert all(each.version_policy.HasField("all") for each in configs.values())
    sequences = lstm.sequence_batching
    assert (sequences.oldest.max_candidate_sequences, sequences.max_sequence_idle_microseconds) == (50, 2_500_000)
    assert list(sequences.control_input) == []  # no tensor of the graph says where a sequence starts and ends
    assert [(each.input_name, each.output_name, list(each.dims)) for each in sequences.state] == [
        ("h", "h_out", [1, 8]),
        ("c", "c_out", [1, 8]),
    ]
    assert affine.dynamic_batching.default_priority_level == 3
    assert affine.dynamic_batching.max_queue_delay_microseconds == 1000
    assert [(each.name, list(each.dims)) for each in affine.input] == [("x", [3])]
    assert [(each.name, list(each.dims)) for each in pairs.input] == [("x", [-1, -1])]
    assert [(each.name, list(each.dims)) for each in edges.output] == [("sums", [-1]), ("at_root", [-1])]


def test_a_configuration_can_be_told_where_sequences_are_never_idle_for_too_long(tmp_path: Path) -> None:
    models.save_lstm(tmp_path / "lstm.onnx")
    engine = EngineSettings(sequences=SequenceSettings(idle_seconds=math.inf), warm_seconds=0)
    with Server(tmp_path / "lstm.onnx", ServerSettings(engine=engine), port=0) as server:
        client = Triton(server.address)
        config = client.get_model_config("lstm").config
        client.close()
    assert config.sequence_batching.max_sequence_idle_microseconds == 2**64 - 1
