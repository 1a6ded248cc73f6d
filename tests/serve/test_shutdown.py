"""SIGTERM: what runs is answered, what comes is refused, and the exit status is 0."""

import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellport.protos import inference_pb2 as messages
from cellport.serve import Engine, Server, ServerSettings
from cellport.serve.exchange import write_request
from cellport.serve.server import Front

from . import models
from .wire import tokens_of

COMMAND = Path(sys.executable).with_name("cellport")
SERVICE = "/inference.GRPCInferenceService"
WAIT = 60
LARGE = [("grpc.max_receive_message_length", 2**26)]


@pytest.fixture
def served(tmp_path: Path, front: Front) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A server in a process of its own, and a channel to it."""
    models.save_lstm(tmp_path / "lstm" / "1" / "model.onnx")
    models.save_slow(tmp_path / "slow" / "1" / "model.onnx", loops=2000)
    command = [COMMAND, "serve", tmp_path, "--front", front, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            assert [each["name"] for each in line["models"]] == ["lstm", "slow"]
            with grpc.insecure_channel(line["address"]) as channel:
                yield process, channel
        finally:
            process.kill()


def infer(channel: Any) -> Any:
    return channel.unary_unary(
        f"{SERVICE}/ModelInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )


def test_running_requests_finish_and_new_ones_are_refused(served: tuple[subprocess.Popen[str], Any]) -> None:
    process, channel = served
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="slow"), timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    slow = write_request("slow", {"x": np.full((1, 1), 3, np.float32)}, None)
    running = [infer(channel).future(slow, timeout=60) for _ in range(3)]
    # Calls of one connection are taken in their order: once this one is answered, the slow ones have been accepted.
    channel.unary_unary(f"{SERVICE}/ServerReady")(b"", timeout=60)
    process.send_signal(signal.SIGTERM)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as refusal:
        infer(channel)(write_request("lstm", {"tokens": tokens_of(3, 0)}, None), timeout=60)
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
    for each in running:
        assert np.frombuffer(each.result(timeout=60).raw_output_contents[0], np.float32) == 3
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


class _Throttle:
    """A connection to a server on which its answers stop from `hold` until `release`."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = socket.create_connection((host, int(port)))
        self.hold, self.release = self._open.clear, self._open.set
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        back = threading.Thread(target=self._copy, args=(self._server, client, self._open), daemon=True)
        back.start()
        self._copy(client, self._server, threading.Event())
        back.join(WAIT)
        client.close()

    def _copy(self, source: socket.socket, target: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source is self._server:
                    gate.wait(WAIT)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.close()
        self._listener.close()


def test_an_answer_that_a_slow_client_still_reads_is_not_broken_off(tmp_path: Path) -> None:
    """The handler has returned long before; what is left of the grace time is for its bytes."""
    models.save_slow(tmp_path / "slow" / "1" / "model.onnx", loops=300)
    rows = np.ones((3_000_000, 1), np.float32)  # more than the buffers on the way hold
    with Engine(tmp_path) as engine:
        server = Server(engine, ServerSettings(grace_seconds=WAIT), port=0)
        server.start()
        with _Throttle(server.address) as throttle, grpc.insecure_channel(throttle.address, LARGE) as channel:
            grpc.channel_ready_future(channel).result(WAIT)
            waiting = infer(channel).future(write_request("slow", {"x": rows}, None), timeout=WAIT)
            pause = threading.Event()
            while not engine.runs:
                pause.wait(0.001)
            throttle.hold()
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            stopping.join(3)
            throttle.release()
            failure = waiting.exception(WAIT)
            # Once all is sent the server closes the connection; what the client says then makes TCP drop what the
            # network still holds. That may cost the answer too, but is not the server's cancelling it.
            assert failure is None or "Cancelling all calls" not in failure.details()
            stopping.join(WAIT)
            assert not stopping.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_open_stream_does_not_keep_the_server_from_ending(
    served: tuple[subprocess.Popen[str], Any], number: signal.Signals
) -> None:
    process, channel = served
    requests: queue.Queue[messages.ModelInferRequest] = queue.Queue()
    stream = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )
    responses = stream(iter(requests.get, None), timeout=60)
    requests.put(write_request("lstm", {"tokens": tokens_of(3, 0)}, None))
    assert not next(responses).error_message
    process.send_signal(number)
    with pytest.raises(grpc.RpcError) as refusal:
        next(responses)
    requests.put(None)  # type: ignore[arg-type]
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in refusal.value.details()
    assert process.wait(timeout=60) == 0
