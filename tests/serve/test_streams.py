"""ModelStreamInfer and the asyncio client of tritonclient."""

import asyncio
import queue
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from cellport.protos.inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from cellport.serve import Client, EngineSettings, Server, ServerSettings

from .wire import tokens_of, triton_input

Triton = triton_grpc.InferenceServerClient
WAIT = 30


class Stream:
    """A stream of tritonclient's, with its answers in a queue."""

    def __init__(self, triton: Triton) -> None:
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.triton = triton
        triton.start_stream(lambda result, error: self.answers.put((result, error)))

    def send(self, model: str, name: str, array: Any, **options: Any) -> None:
        self.triton.async_stream_infer(model, [triton_input(name, array)], **options)

    def receive(self) -> tuple[Any, Any]:
        return self.answers.get(timeout=WAIT)


@pytest.fixture
def stream(triton: Triton) -> Any:
    yield Stream(triton)
    triton.stop_stream()


def test_a_sequence_by_stream_answers_step_by_step_what_one_pass_answers(triton: Triton, stream: Stream) -> None:
    tokens = tokens_of(12, seed=1)
    whole = triton.infer("lstm", [triton_input("tokens", tokens)])
    for step in range(12):
        control = {"sequence_id": 31, "sequence_start": step == 0, "sequence_end": step == 11}
        stream.send("lstm", "tokens", tokens[:, step : step + 1], request_id=str(step), **control)
    for step in range(12):
        result, error = stream.receive()
        assert error is None
        assert result.get_response().id == str(step)
        np.testing.assert_allclose(result.as_numpy("tags")[0, 0], whole.as_numpy("tags")[0, step], atol=1e-5)
    np.testing.assert_allclose(result.as_numpy("last"), whole.as_numpy("last"), atol=1e-5)


@pytest.mark.parametrize("length", [1_000, 9_000, 100_000])
def test_a_message_of_any_size_is_taken_in_as_many_parts_as_it_comes_in(stream: Stream, length: int) -> None:
    x = np.ones((1, length), np.float32)
    for number in range(2):
        stream.send("sums", "x", x, request_id=str(number))
    for _ in range(2):
        result, error = stream.receive()
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("sums"), x.cumsum(1))


def test_the_time_axis_may_be_left_out_inside_a_sequence_and_then_is_left_out_of_the_answer(stream: Stream) -> None:
    stream.send("lstm", "tokens", np.array([4]), sequence_id="word", sequence_start=True)
    stream.send("lstm", "tokens", np.array([[5, 6]]), sequence_id="word", sequence_end=True)
    shapes = [stream.receive()[0].as_numpy("tags").shape for _ in range(2)]
    assert shapes == [(1, 4), (1, 2, 4)]


def test_an_error_of_one_request_changes_neither_the_stream_nor_its_sequence(triton: Triton, stream: Stream) -> None:
    tokens = tokens_of(4, seed=2)
    whole = triton.infer("lstm", [triton_input("tokens", tokens)]).as_numpy("last")
    for step, wrong in enumerate([False, True, False, True, False, False]):
        at = [0, 0, 1, 0, 2, 3][step]
        array = np.array([[99]]) if wrong else tokens[:, at : at + 1]
        stream.send("lstm", "tokens", array, request_id=f"r{step}", sequence_id=32, sequence_start=step == 0)
    outcomes = [stream.receive() for _ in range(6)]
    assert [error is None for _, error in outcomes] == [True, False, True, False, True, True]
    assert "99 at [0, 0]" in str(outcomes[1][1])
    np.testing.assert_allclose(outcomes[-1][0].as_numpy("last"), whole, atol=1e-5)


def test_an_error_in_a_stream_echoes_the_requests_id_and_names_its_status(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        message = ModelInferRequest(model_name="nobody", id="which")
        responses = call(iter([message.SerializeToString()]), timeout=WAIT)
        answers = [ModelStreamInferResponse.FromString(each) for each in responses]
        assert responses.code() == grpc.StatusCode.OK
    assert len(answers) == 1
    assert "'nobody' is not served" in answers[0].error_message
    assert answers[0].infer_response.id == "which"
    assert answers[0].infer_response.parameters["cellport_status"].string_param == "NOT_FOUND"


def test_bytes_that_are_no_message_end_the_stream_with_invalid_argument(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as refusal:
            list(call(iter([b"\xff\xff"]), timeout=WAIT))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "2 bytes" in refusal.value.details()


def test_the_final_response_is_marked_where_the_request_asks_for_it(stream: Stream) -> None:
    stream.send("affine", "x", np.ones((1, 3), np.float32), enable_empty_final_response=True)
    stream.send("affine", "x", np.ones((1, 3), np.float32))
    marks = ["triton_final_response" in stream.receive()[0].get_response().parameters for _ in range(2)]
    assert sorted(marks) == [False, True]


def test_a_quick_request_of_a_stream_does_not_wait_for_a_slow_one_of_another_sequence(folder: Path) -> None:
    with Server(folder, ServerSettings(engine=EngineSettings(workers=2)), port=0) as server:
        triton = Triton(server.address)
        stream = Stream(triton)
        stream.send("slow", "x", np.ones((1, 1), np.float32), request_id="slow")
        stream.send("affine", "x", np.ones((1, 3), np.float32), request_id="quick")
        order = [stream.receive()[0].get_response().id for _ in range(2)]
        triton.stop_stream()
        triton.close()
    assert order == ["quick", "slow"]


def test_many_requests_on_one_stream_are_each_answered_once(stream: Stream) -> None:
    for number in range(300):
        stream.send("lstm", "tokens", tokens_of(1 + number % 7, seed=number), request_id=str(number))
    answers = {}
    for _ in range(300):
        result, error = stream.receive()
        assert error is None
        answers[result.get_response().id] = result.as_numpy("tags").shape
    assert answers == {str(number): (1, 1 + number % 7, 4) for number in range(300)}


def test_a_stream_goes_on_after_its_window_was_full(folder: Path) -> None:
    with Server(folder / "lstm", ServerSettings(stream_window=2), port=0) as server, Client(server.address) as client:
        requests = ({"tokens": tokens_of(3, seed)} for seed in range(50))
        answers = list(client.stream("lstm", requests, timeout=WAIT))
    assert sorted(each.index for each in answers) == list(range(50))
    assert all(each.error is None for each in answers)


async def test_tritons_asyncio_client_gets_the_same_answers_as_the_synchronous_one(
    server: Server, triton: Triton
) -> None:
    tokens = tokens_of(5, seed=3)
    async with triton_aio.InferenceServerClient(server.address) as client:
        assert await client.is_server_ready()
        assert await client.is_model_ready("lstm")
        results = await asyncio.gather(*(client.infer("lstm", [triton_input("tokens", tokens)]) for _ in range(8)))
        with pytest.raises(InferenceServerException, match="'nobody'"):
            await client.infer("nobody", [triton_input("tokens", tokens)])
    expected = triton.infer("lstm", [triton_input("tokens", tokens)]).as_numpy("last")
    for result in results:
        np.testing.assert_allclose(result.as_numpy("last"), expected, atol=1e-5)


async def test_tritons_asyncio_stream_runs_two_interleaved_sequences(server: Server, triton: Triton) -> None:
    tokens = {name: tokens_of(6, seed=name) for name in (41, 42)}

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for step in range(6):
            for name in tokens:
                yield {
                    "model_name": "gru",
                    "inputs": [triton_input("tokens", tokens[name][:, step])],
                    "request_id": f"{name}",
                    "sequence_id": name,
                    "sequence_start": step == 0,
                    "sequence_end": step == 5,
                }

    last = {}
    async with triton_aio.InferenceServerClient(server.address) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            last[int(result.get_response().id)] = result.as_numpy("last")
    for name, each in tokens.items():
        whole = triton.infer("gru", [triton_input("tokens", each)]).as_numpy("last")
        np.testing.assert_allclose(last[name], whole, atol=1e-5)


async def test_a_client_that_leaves_its_stream_leaves_the_server_well(server: Server, triton: Triton) -> None:
    async def forever() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield {"model_name": "lstm", "inputs": [triton_input("tokens", tokens_of(3, seed=0))]}
            await asyncio.sleep(0)

    async with triton_aio.InferenceServerClient(server.address) as client:
        received = 0
        responses = client.stream_infer(forever())
        async for _, error in responses:
            assert error is None
            received += 1
            if received == 20:
                responses.cancel()
                break
    assert triton.is_server_ready()
