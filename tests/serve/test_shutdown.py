"""SIGTERM: what runs is answered, what comes is refused, and the exit status is 0."""

import json
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellport.protos import inference_pb2 as messages
from cellport.serve.exchange import write_request

from . import models
from .wire import tokens_of

COMMAND = Path(sys.executable).with_name("cellport")
SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A server in a process of its own, and a channel to it."""
    models.save_lstm(tmp_path / "lstm" / "1" / "model.onnx")
    models.save_slow(tmp_path / "slow" / "1" / "model.onnx", loops=2000)
    command = [COMMAND, "serve", tmp_path, "--port", "0", "--json"]
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
