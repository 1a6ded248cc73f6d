"""A request that finds the queue full is told when to come again, in the way that gRPC's own retries understand."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from cellport.errors import QueueFullError
from cellport.protos.inference_pb2 import ModelInferResponse
from cellport.serve import BatchSettings, EngineSettings, Model, Server, ServerSettings
from cellport.serve.exchange import write_request
from cellport.serve.scheduler import Scheduler
from cellport.serve.sequences import SequenceTable
from cellport.serve.settings import SequenceSettings
from cellport.serve.ticks import run_tick

from .test_scheduler import job_of


@pytest.mark.parametrize("front", ["grpcio", "envoy"])
def test_a_refusal_carries_the_milliseconds_to_wait(folder: Path, front: str) -> None:
    if front == "envoy":
        pytest.importorskip("pyvoy")
    settings = ServerSettings(
        front=front,  # type: ignore[arg-type]
        engine=EngineSettings(batch=BatchSettings(queue=1), workers=1, inline_seconds=0.0),
    )
    body = write_request("slow", {"x": np.full((1, 1), 3, np.float32)}, None)
    with Server(folder, settings, port=0) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=type(body).SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        running = [call.future(body, timeout=60) for _ in range(12)]
        refused = [each for each in running if each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert refused
        for each in refused:
            assert 1 <= int(dict(each.trailing_metadata())["grpc-retry-pushback-ms"]) <= 5000
        assert any(each.code() is grpc.StatusCode.OK for each in running)


def test_the_wait_follows_the_pace_of_the_queue(folder: Path) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx")
    scheduler = Scheduler(BatchSettings(queue=100, rows=1), SequenceTable(SequenceSettings()))
    for _ in range(100):
        scheduler.submit(job_of(model, tokens=np.array([[1]])))
    for turn in range(40):
        tick, _ = scheduler.schedule(0.0)
        assert tick is not None
        scheduler.complete(tick, run_tick(tick), 0.1 * turn)  # ten a second
    for _ in range(40):
        scheduler.submit(job_of(model, tokens=np.array([[1]])))
    with pytest.raises(QueueFullError, match="100 requests are waiting") as error:
        scheduler.check_room()
    assert error.value.retry_after == pytest.approx(0.1 * 100 / 4, rel=0.05)
