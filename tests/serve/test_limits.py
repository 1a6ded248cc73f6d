"""Deadlines, cancellation, full queues and large messages, as a client of the server meets them."""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cellport.protos import inference_pb2 as messages
from cellport.serve import BatchSettings, EngineSettings, Server, ServerSettings
from cellport.serve.exchange import read_reply, write_request
from cellport.serve.requests import Control
from cellport.serve.status import Status, status_of

from . import models

WAIT = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one worker, a model that keeps it busy, a queue of one, and small messages."""
    folder = tmp_path_factory.mktemp("limits")
    models.save_lstm(folder / "lstm" / "1" / "model.onnx")
    models.save_slow(folder / "slow" / "1" / "model.onnx", loops=1500)
    models.save_reshape(folder / "reshape" / "1" / "model.onnx")
    models.save_fussy(folder / "fussy" / "1" / "model.onnx")
    engine = EngineSettings(batch=BatchSettings(queue=1), workers=1)
    with Server(folder, ServerSettings(engine=engine, receive_bytes=10_000), port=0) as running:
        yield running


@pytest.fixture
def call(server: Server) -> Any:
    with grpc.insecure_channel(server.address) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )


SLOW = write_request("slow", {"x": np.ones((1, 1), np.float32)}, None)


def step(token: int, *, start: bool = False) -> messages.ModelInferRequest:
    return write_request("lstm", {"tokens": [[token]]}, None, control=Control(id=1, start=start))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    pause = threading.Event()
    for _ in range(WAIT * 1000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("the condition did not come true")


def keep_busy(server: Server, call: Any) -> Any:
    """Start a slow run, and return its call when it has begun."""
    before = server.engine.runs
    running = call.future(SLOW, timeout=WAIT)
    until(lambda: server.engine.runs > before)
    return running


def expected_after(call: Any, *tokens: int) -> Any:
    return read_reply(call(write_request("lstm", {"tokens": [list(tokens)]}, None), timeout=WAIT))["last"]


def test_a_call_that_its_client_cancels_is_dropped_and_does_not_advance_its_sequence(server: Server, call: Any) -> None:
    call(step(1, start=True), timeout=WAIT)
    running = keep_busy(server, call)
    waiting = call.future(step(9), timeout=WAIT)
    until(lambda: server.engine.waiting == 1)
    waiting.cancel()
    until(lambda: server.engine.waiting == 0)
    assert not running.done()
    running.result(WAIT)
    np.testing.assert_allclose(read_reply(call(step(2), timeout=WAIT))["last"], expected_after(call, 1, 2), atol=1e-6)


def test_a_call_whose_deadline_passes_is_dropped_and_does_not_advance_its_sequence(server: Server, call: Any) -> None:
    call(step(1, start=True), timeout=WAIT)
    running = keep_busy(server, call)
    with pytest.raises(grpc.RpcError) as late:
        call(step(9), timeout=0.05)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: server.engine.waiting == 0)
    running.result(WAIT)
    np.testing.assert_allclose(read_reply(call(step(2), timeout=WAIT))["last"], expected_after(call, 1, 2), atol=1e-6)


def test_the_timeout_parameter_bounds_the_wait_of_a_request(server: Server, call: Any) -> None:
    running = keep_busy(server, call)
    request = write_request("lstm", {"tokens": [[1]]}, None)
    request.parameters["timeout"].int64_param = 1000
    with pytest.raises(grpc.RpcError) as late:
        call(request, timeout=WAIT)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert late.value.details() == "the deadline passed before the request ran"
    assert not running.done()
    running.result(WAIT)


def test_a_full_queue_refuses_with_resource_exhausted_and_then_recovers(server: Server, call: Any) -> None:
    running = keep_busy(server, call)
    request = write_request("lstm", {"tokens": [[1]]}, None)
    waiting = call.future(request, timeout=WAIT)
    until(lambda: server.engine.waiting == 1)
    with pytest.raises(grpc.RpcError) as full:
        call(request, timeout=WAIT)
    assert full.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert full.value.details() == "1 requests are waiting; accepted: at most 1"
    running.result(WAIT)
    assert read_reply(waiting.result(WAIT))["last"].shape == (1, 4)
    call(request, timeout=WAIT)


def test_a_message_above_the_limit_is_refused(call: Any) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        call(write_request("lstm", {"tokens": np.zeros((2, 1000), np.int64)}, None), timeout=WAIT)
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "10000" in refusal.value.details()


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        ("reshape", {"x": np.ones((1, 3), np.float32)}, "Reshape"),
        ("fussy", {"tokens": np.array([[5]])}, "Gather"),
    ],
)
def test_a_run_that_fails_is_an_internal_error_whose_reason_stays_in_the_log(
    call: Any, caplog: pytest.LogCaptureFixture, model: str, inputs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        call(write_request(model, inputs, None), timeout=WAIT)
    assert failure.value.code() == grpc.StatusCode.INTERNAL
    said = re.fullmatch(
        f"model '{model}' failed to run; the server's log has the reason under ([0-9a-f]{{8}})", failure.value.details()
    )
    assert said
    assert said[1] in caplog.text
    assert reason in caplog.text
    assert read_reply(call(write_request("reshape", {"x": np.ones((1, 4), np.float32)}, None)))["y"].shape == (2, 2)


def test_an_error_that_nobody_foresaw_reaches_the_wire_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    status, text = status_of(ZeroDivisionError("secret"))
    assert status is Status.INTERNAL
    said = re.fullmatch("internal error; the server's log has the reason under ([0-9a-f]{8})", text)
    assert said
    assert said[1] in caplog.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"port": -1}, {"port": 65536}, {"receive_bytes": 0}, {"stream_window": 0}, {"grace_seconds": -1}], ids=str
)
def test_server_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; accepted"):
        ServerSettings(**wrong)


def test_a_model_folder_that_cannot_be_served_stops_the_start(tmp_path: Path) -> None:
    from cellport.errors import ModelLoadError

    with pytest.raises(ModelLoadError):
        Server(tmp_path)


def test_what_a_stream_had_waiting_is_dropped_when_its_client_cancels_it(server: Server, call: Any) -> None:
    running = keep_busy(server, call)
    with grpc.insecure_channel(server.address) as channel:
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
        )
        ended = threading.Event()

        def requests() -> Iterator[messages.ModelInferRequest]:
            yield write_request("lstm", {"tokens": [[1]]}, None)
            ended.wait(WAIT)

        responses = stream(requests(), timeout=WAIT)
        until(lambda: server.engine.waiting == 1)
        responses.cancel()
        until(lambda: server.engine.waiting == 0)
        ended.set()
    assert not running.done()
    running.result(WAIT)
