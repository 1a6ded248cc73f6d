"""The envoy front, by a plain HTTP/2 client that may break gRPC's rules."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from cellport.protos import inference_pb2 as messages
from cellport.serve import Server, ServerSettings
from cellport.serve.asgi_wire import frame
from cellport.serve.exchange import write_request

from . import models

pyqwest = pytest.importorskip("pyqwest")

SERVICE = "/inference.GRPCInferenceService"
WAIT = 60
LIMIT = 10_000_000
READY = messages.ServerReadyResponse(ready=True).SerializeToString()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("http")
    models.save_slow(folder / "slow" / "1" / "model.onnx", loops=1)
    settings = ServerSettings(front="envoy", receive_bytes=LIMIT, send_bytes=LIMIT - 1_000_000)
    with Server(folder, settings, port=0) as running:
        yield running


@pytest.fixture
async def post(server: Server) -> Any:
    """A function that sends a body to a method, and returns the HTTP status, gRPC's, its words, and the answer."""
    async with pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP2) as transport:
        client = pyqwest.Client(transport)

        async def send(method: str, body: Any, **headers: str) -> tuple[int, int, str, bytes]:
            headers = {"content-type": "application/grpc", "te": "trailers"} | {
                name.replace("_", "-"): value for name, value in headers.items()
            }
            async with asyncio.timeout(WAIT):
                response = await client.post(f"http://{server.address}{method}", headers=headers, content=body)
            found = response.trailers if "grpc-status" in response.trailers else response.headers
            return (
                response.status,
                int(found.get("grpc-status", "-1")),
                found.get("grpc-message", ""),
                bytes(response.content),
            )

        yield send


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_call_is_answered_with_a_frame_and_a_status_in_the_trailers(post: Any) -> None:
    assert await post(f"{SERVICE}/ServerReady", frame(b"")) == (200, 0, "", frame(READY))


async def test_a_request_may_come_byte_by_byte(post: Any) -> None:
    request = frame(messages.ModelReadyRequest(name="slow").SerializeToString())
    body = pieces(*(request[at : at + 1] for at in range(len(request))))
    assert await post(f"{SERVICE}/ModelReady", body) == (200, 0, "", frame(READY))


async def test_a_compressed_request_is_read(post: Any) -> None:
    data = gzip.compress(messages.ModelReadyRequest(name="slow").SerializeToString())
    body = b"\1" + len(data).to_bytes(4, "big") + data
    assert await post(f"{SERVICE}/ModelReady", body, grpc_encoding="gzip") == (200, 0, "", frame(READY))


@pytest.mark.parametrize(
    ("method", "body", "headers", "status", "words"),
    [
        ("/no.Service/Call", frame(b""), {}, grpc.StatusCode.UNIMPLEMENTED, "call '/no.Service/Call' is not served"),
        (f"{SERVICE}/ServerReady", b"", {}, grpc.StatusCode.UNIMPLEMENTED, "none was sent"),
        (f"{SERVICE}/ServerReady", 2 * frame(b""), {}, grpc.StatusCode.UNIMPLEMENTED, "more were sent"),
        (f"{SERVICE}/ServerReady", frame(b"abc")[:6], {}, grpc.StatusCode.INTERNAL, "ended within a message"),
        (f"{SERVICE}/ModelInfer", frame(b"\xff"), {}, grpc.StatusCode.INVALID_ARGUMENT, "are not a ModelInferRequest"),
        (f"{SERVICE}/ServerReady", frame(b""), {"grpc_encoding": "br"}, grpc.StatusCode.UNIMPLEMENTED, "is 'br'"),
        (f"{SERVICE}/ServerReady", frame(b""), {"grpc_timeout": "soon"}, grpc.StatusCode.INTERNAL, "grpc-timeout is"),
        (f"{SERVICE}/ModelInfer", frame(bytes(LIMIT + 1)), {}, grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {LIMIT}"),
    ],
)  # fmt: skip
async def test_what_breaks_the_rules_is_answered_with_the_status_for_it(
    post: Any, method: str, body: bytes, headers: dict[str, str], status: grpc.StatusCode, words: str
) -> None:
    http, code, message, _ = await post(method, body, **headers)
    assert (http, code) == (200, status.value[0])
    assert words in message


async def test_what_is_not_grpc_is_told_so_in_http(post: Any) -> None:
    assert (await post(f"{SERVICE}/ServerReady", b"{}", content_type="application/json"))[0] == 415


def test_a_client_that_speaks_another_protocol_is_hung_up_on(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        while client.recv(4096):
            pass


async def test_a_request_that_does_not_end_is_broken_off_when_its_time_is_up(post: Any) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield frame(b"abc")[:6]
        await asyncio.get_running_loop().create_future()

    _, code, words, _ = await post(f"{SERVICE}/ServerReady", endless(), grpc_timeout="100m")
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert words == "the deadline passed before the call was answered"


def test_messages_of_many_windows_come_and_go_whole(server: Server) -> None:
    rows = np.random.default_rng(0).standard_normal((2_400_000, 1), np.float32)
    with grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", LIMIT)]) as channel:
        call = channel.unary_unary(
            f"{SERVICE}/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )
        answer = call(write_request("slow", {"x": rows[:2_200_000]}, None), timeout=WAIT)
        np.testing.assert_allclose(
            np.frombuffer(answer.raw_output_contents[0], np.float32), rows[:2_200_000, 0], rtol=1e-6
        )
        with pytest.raises(grpc.RpcError) as refusal:
            call(write_request("slow", {"x": rows}, None), timeout=WAIT)
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
