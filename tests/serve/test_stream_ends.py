"""How a stream of requests ends: what it had taken is answered, and what it had not is not begun."""

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cellport.protos.inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from cellport.serve import AsyncEngine, Engine, EngineSettings, Server, ServerSettings
from cellport.serve.calls import CallContext, Lifecycle
from cellport.serve.exchange import MAXIMUM_BYTES, write_request
from cellport.serve.inference import InferenceCalls
from cellport.serve.jobs import Job
from cellport.serve.requests import Control

from .test_engine import busy
from .wire import tokens_of

WAIT = 60
SLOW = write_request("slow", {"x": np.full((1, 1), 3, np.float32)}, None, request_id="slow")


class Stream:
    """A stream of bytes, which need be no messages."""

    def __init__(self, channel: Any) -> None:
        self._requests: queue.Queue[bytes | None] = queue.Queue()
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=ModelStreamInferResponse.FromString,
        )
        self.responses = call(iter(self._requests.get, None), timeout=WAIT)

    def send(self, message: ModelInferRequest | bytes) -> None:
        self._requests.put(message if isinstance(message, bytes) else message.SerializeToString())

    def half_close(self) -> None:
        self._requests.put(None)


@pytest.fixture
def stream(server: Server) -> Iterator[Stream]:
    with grpc.insecure_channel(server.address) as channel:
        opened = Stream(channel)
        yield opened
        opened.half_close()


def test_requests_before_bytes_that_are_no_message_are_answered(stream: Stream) -> None:
    stream.send(SLOW)
    stream.send(b"\xff\xff")
    answer = next(stream.responses)
    assert answer.infer_response.id == "slow"
    assert not answer.error_message
    with pytest.raises(grpc.RpcError) as refusal:
        next(stream.responses)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "2 bytes" in refusal.value.details()


async def test_a_stream_whose_client_had_ended_it_ends_well_in_a_shutdown(folder: Path) -> None:
    """Only a stream that could have sent more is told to try another server."""
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        yield SLOW.SerializeToString()
        ended.set()

    with Engine(folder) as engine:
        lifecycle = Lifecycle()
        stream = InferenceCalls(AsyncEngine(engine), lifecycle, window=10, send_bytes=MAXIMUM_BYTES).stream(
            requests(), CallContext()
        )
        first = asyncio.ensure_future(anext(stream))
        await ended.wait()
        await asyncio.sleep(0)
        lifecycle.close()
        assert ModelStreamInferResponse.FromString(await first).infer_response.id == "slow"
        assert [each async for each in stream] == []


def test_an_answer_above_the_limit_is_an_error_of_its_request_only(folder: Path) -> None:
    with (
        Server(folder / "lstm", ServerSettings(send_bytes=2000), port=0) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stream = Stream(channel)
        stream.send(write_request("lstm", {"tokens": tokens_of(500, 0)}, ["tags"], request_id="large"))
        answer = next(stream.responses)
        assert answer.infer_response.id == "large"
        assert answer.infer_response.parameters["cellport_status"].string_param == "RESOURCE_EXHAUSTED"
        assert answer.error_message == (
            "the request ran, but its answer has 8042 bytes; accepted: at most 2000, such as of fewer outputs or rows"
        )
        stream.send(write_request("lstm", {"tokens": tokens_of(5, 0)}, ["tags"], request_id="small"))
        assert not next(stream.responses).error_message
        stream.half_close()
        assert list(stream.responses) == []
        with pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
                write_request("lstm", {"tokens": tokens_of(500, 0)}, ["tags"]).SerializeToString(), timeout=WAIT
            )
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "accepted: at most 2000" in refusal.value.details()


@pytest.mark.parametrize("wanted", [True, False, None])
def test_an_error_is_marked_as_final_only_where_the_request_asks_for_it(stream: Stream, wanted: bool | None) -> None:
    request = ModelInferRequest(model_name="nobody")
    if wanted is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = wanted
    stream.send(request)
    answer = next(stream.responses)
    assert answer.error_message
    assert ("triton_final_response" in answer.infer_response.parameters) == bool(wanted)


class _Watched(Engine):
    """An engine that writes down which requests are cancelled."""

    def __init__(self, folder: Path) -> None:
        self.cancelled: list[int] = []
        super().__init__(folder, EngineSettings(workers=1))

    def cancel(self, job: Job, error: Exception) -> bool:
        if job.bound is not None:
            self.cancelled.append(int(job.bound.inputs["tokens"][0, 0]))
        return super().cancel(job, error)


async def test_a_stream_that_is_left_drops_the_last_step_of_a_sequence_first(folder: Path) -> None:
    """If the first went first, the second would be free to run, with a step missing before it."""

    async def steps() -> AsyncIterator[bytes]:
        for step in (1, 2, 3):
            request = write_request("lstm", {"tokens": [[step]]}, None, control=Control(id=1, start=step == 1))
            yield request.SerializeToString()
        await asyncio.Event().wait()

    with _Watched(folder) as engine, busy(engine):
        calls = InferenceCalls(AsyncEngine(engine), Lifecycle(), window=10, send_bytes=MAXIMUM_BYTES)
        stream = calls.stream(steps(), CallContext())
        waiting = asyncio.ensure_future(anext(stream))
        while engine.waiting < 3:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert engine.cancelled[:3] == [3, 2, 1]
        assert engine.waiting == 0
