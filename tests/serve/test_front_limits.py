"""Deadlines, cancellation and limits, as a client of either front meets them."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from cellport.protos import inference_pb2 as messages
from cellport.serve import BatchSettings, EngineSettings, Server, ServerSettings
from cellport.serve.exchange import read_reply, write_request
from cellport.serve.requests import Control
from cellport.serve.server import Front

from . import models

WAIT = 60
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
SLOW = write_request("slow", {"x": np.ones((1, 1), np.float32)}, None)
QUICK = write_request("lstm", {"tokens": [[1]]}, None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, front: Front) -> Iterator[Server]:
    """A server that runs one thing at a time, with a queue of one, and small messages."""
    folder: Path = tmp_path_factory.mktemp("limits")
    models.save_lstm(folder / "lstm" / "1" / "model.onnx")
    models.save_slow(folder / "slow" / "1" / "model.onnx", loops=2500)
    engine = EngineSettings(batch=BatchSettings(queue=1), workers=1, warm_seconds=0, inline_seconds=0)
    settings = ServerSettings(front=front, engine=engine, receive_bytes=10_000, stream_window=3)
    with Server(folder, settings, port=0) as running:
        yield running


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as connected:
        yield connected


@pytest.fixture
def call(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        INFER,
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )


def step(token: int, *, start: bool = False) -> messages.ModelInferRequest:
    return write_request("lstm", {"tokens": [[token]]}, None, control=Control(id=1, start=start))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to do."""
    pause = threading.Event()
    for _ in range(WAIT * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come true")


def wait_behind(call: Any, request: messages.ModelInferRequest, **options: Any) -> Any:
    """Make a call that waits in the queue until what runs is done, and return it."""
    while True:
        waiting = call.future(request, **options)
        try:
            failure = waiting.exception(0.1)
        except grpc.FutureTimeoutError:
            return waiting
        # Either what is to run has not left the queue yet, or it has not reached it.
        assert failure is None or failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def expected_after(call: Any, *tokens: int) -> Any:
    return read_reply(call(write_request("lstm", {"tokens": [list(tokens)]}, None), timeout=WAIT))["last"]


def test_a_call_that_its_client_cancels_is_dropped_and_does_not_advance_its_sequence(call: Any) -> None:
    call(step(1, start=True), timeout=WAIT)
    running = call.future(SLOW, timeout=WAIT)
    waiting = wait_behind(call, step(9), timeout=WAIT)
    waiting.cancel()
    # There is room in the queue again.
    other = wait_behind(call, QUICK, timeout=WAIT)
    assert not running.done()
    running.result(WAIT)
    other.result(WAIT)
    np.testing.assert_allclose(read_reply(call(step(2), timeout=WAIT))["last"], expected_after(call, 1, 2), atol=1e-6)


def test_a_call_whose_client_goes_away_is_dropped(server: Server, call: Any) -> None:
    running = call.future(SLOW, timeout=WAIT)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options) as gone:
        wait_behind(gone.unary_unary(INFER, messages.ModelInferRequest.SerializeToString), QUICK)
    other = wait_behind(call, QUICK, timeout=WAIT)
    assert not running.done()
    running.result(WAIT)
    other.result(WAIT)


def test_a_call_whose_deadline_passes_is_dropped_and_does_not_advance_its_sequence(call: Any) -> None:
    call(step(1, start=True), timeout=WAIT)
    running = call.future(SLOW, timeout=WAIT)
    late = wait_behind(call, step(9), timeout=0.2)
    assert late.exception(WAIT).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    other = wait_behind(call, QUICK, timeout=WAIT)
    assert not running.done()
    running.result(WAIT)
    other.result(WAIT)
    np.testing.assert_allclose(read_reply(call(step(2), timeout=WAIT))["last"], expected_after(call, 1, 2), atol=1e-6)


def test_what_a_stream_had_waiting_is_dropped_when_its_client_cancels_it(call: Any, channel: grpc.Channel) -> None:
    running = call.future(SLOW, timeout=WAIT)
    wait_behind(call, QUICK).cancel()
    stream = channel.stream_stream(STREAM, messages.ModelInferRequest.SerializeToString)
    ended = threading.Event()

    def requests() -> Iterator[messages.ModelInferRequest]:
        yield QUICK
        ended.wait(WAIT)

    responses = stream(requests(), timeout=WAIT)

    def full() -> bool:
        probe = call.future(QUICK, timeout=WAIT)
        try:
            failure = probe.exception(0.1)
            return failure is not None and failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        except grpc.FutureTimeoutError:
            probe.cancel()
            return False

    until(full)
    responses.cancel()
    other = wait_behind(call, QUICK, timeout=WAIT)
    ended.set()
    assert not running.done()
    running.result(WAIT)
    other.result(WAIT)


def test_a_full_queue_refuses_with_resource_exhausted_and_then_recovers(call: Any) -> None:
    running = call.future(SLOW, timeout=WAIT)
    waiting = wait_behind(call, QUICK, timeout=WAIT)
    with pytest.raises(grpc.RpcError) as full:
        call(QUICK, timeout=WAIT)
    assert full.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert full.value.details() == "1 requests are waiting; accepted: at most 1"
    running.result(WAIT)
    assert read_reply(waiting.result(WAIT))["last"].shape == (1, 4)


def test_a_message_above_the_limit_is_refused(call: Any, channel: grpc.Channel) -> None:
    large = write_request("lstm", {"tokens": np.zeros((2, 1000), np.int64)}, None)
    with pytest.raises(grpc.RpcError) as refusal:
        call(large, timeout=WAIT)
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "10000" in refusal.value.details()
    stream = channel.stream_stream(STREAM, messages.ModelInferRequest.SerializeToString)
    with pytest.raises(grpc.RpcError) as refusal:
        list(stream(iter([large]), timeout=WAIT))
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_read(call: Any, compression: grpc.Compression) -> None:
    request = write_request("lstm", {"tokens": np.ones((1, 500), np.int64)}, None)
    plain = call(request, timeout=WAIT)
    assert call(request, timeout=WAIT, compression=compression) == plain


async def test_many_cancelled_calls_leave_the_others_of_their_connection_alone(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(INFER, request_serializer=messages.ModelInferRequest.SerializeToString)
        running = call(SLOW, timeout=WAIT)
        await asyncio.sleep(0.05)
        for _ in range(30):
            calls = [call(QUICK) for _ in range(50)]
            await asyncio.sleep(0.005)
            for each in calls:
                each.cancel()
        assert await running
        assert await call(QUICK, timeout=WAIT)


async def test_a_client_that_reads_late_gets_every_answer_of_its_stream(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stream = channel.stream_stream(
            STREAM,
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )(timeout=WAIT)
        count = 3000

        async def write() -> None:
            for each in range(count):
                await stream.write(messages.ModelInferRequest(model_name="nobody", id=str(each)))
            await stream.done_writing()

        writing = asyncio.create_task(write())
        await asyncio.sleep(0.3)
        answers = [answer.infer_response.id async for answer in stream]
        await writing
        assert answers == [str(each) for each in range(count)]
