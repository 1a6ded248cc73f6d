"""The standard health service, and reflection."""

import queue
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cellport.protos import inference_pb2
from cellport.serve import Server

STATUS = health_pb2.HealthCheckResponse


@pytest.fixture
def channel(server: Server) -> Any:
    with grpc.insecure_channel(server.address) as connected:
        yield connected


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "lstm", "affine"])
def test_the_server_its_service_and_its_models_are_serving(channel: Any, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status == STATUS.SERVING


def test_check_of_an_unknown_service_answers_not_found_and_names_the_known(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="mail"), timeout=30)
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'mail' is not served; accepted: '', 'acausal'" in refusal.value.details()


def test_watch_of_an_unknown_service_says_so_and_stays_open(channel: Any) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="mail"), timeout=30)
    assert next(watch).status == STATUS.SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()


def test_watch_tells_when_the_server_begins_to_shut_down(folder: Path) -> None:
    server = Server(folder / "affine", port=0)
    server.start()
    seen: queue.Queue[int] = queue.Queue()
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="affine"), timeout=30)

        def follow() -> None:
            for each in watch:
                seen.put(each.status)

        follower = threading.Thread(target=follow)
        follower.start()
        assert seen.get(timeout=30) == STATUS.SERVING
        server.stop()
        assert seen.get(timeout=30) == STATUS.NOT_SERVING
        follower.join(30)
        assert not follower.is_alive()


def test_reflection_describes_every_service_with_its_messages(channel: Any) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == {
        "cellport.RunStatistics",
        "cellport.SequenceStates",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    ours = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert [each.name for each in service.methods] == [each.name for each in ours.methods]
    config = pool.FindMessageTypeByName("inference.ModelConfig")
    assert config.fields_by_name["max_batch_size"].number == 4
