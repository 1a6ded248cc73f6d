"""The table of calls: each method, its messages and its handler."""

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from cellport.protos import inference_pb2, sequences_pb2, statistics_pb2

from . import reflection
from .async_engine import AsyncEngine
from .calls import Call, Lifecycle, UnaryHandler
from .description import DescriptionCalls
from .exchange import SERVICE, STATES_SERVICE
from .health import HealthCalls
from .inference import InferenceCalls
from .repository_calls import RepositoryCalls
from .state_calls import StateCalls
from .statistics_calls import RUNS_SERVICE, StatisticsCalls

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def build_table(engine: AsyncEngine, lifecycle: Lifecycle, *, window: int, send_bytes: int) -> dict[str, Call]:
    """Return every call by its path.

    Args:
        engine: runs the requests.
        lifecycle: whether calls are taken.
        window: see `InferenceCalls`.
        send_bytes: see `InferenceCalls`.
    """
    inference = InferenceCalls(engine, lifecycle, window=window, send_bytes=send_bytes)
    description = DescriptionCalls(engine.engine, lifecycle)
    repository = RepositoryCalls(engine.engine, lifecycle)
    statistics = StatisticsCalls(engine.engine, lifecycle)
    health = HealthCalls(engine.engine.repository, lifecycle)
    unary: dict[str, UnaryHandler] = {
        "ServerLive": description.live,
        "ServerReady": description.ready,
        "ModelReady": description.model_ready,
        "ServerMetadata": description.server_metadata,
        "ModelMetadata": description.model_metadata,
        "ModelConfig": description.model_config,
        "ModelStatistics": statistics.model_statistics,
        "RepositoryIndex": repository.index,
        "RepositoryModelLoad": repository.load,
        "RepositoryModelUnload": repository.unload,
    }
    calls = []
    for method in inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        path = f"/{SERVICE}/{method.name}"
        request: type[Message] = GetMessageClass(method.input_type)
        if method.name == "ModelInfer":
            calls.append(Call(method=path, request=request, unary=inference.infer, raw=True))
        elif method.name == "ModelStreamInfer":
            calls.append(Call(method=path, request=request, stream=inference.stream, fed=inference.open, raw=True))
        else:
            calls.append(Call(method=path, request=request, unary=unary[method.name]))
    states = StateCalls(engine.engine, lifecycle)
    handlers: dict[str, UnaryHandler] = {"Export": states.export, "Import": states.import_, "Fork": states.fork}
    for method in sequences_pb2.DESCRIPTOR.services_by_name["SequenceStates"].methods:
        request = GetMessageClass(method.input_type)
        calls.append(Call(method=f"/{STATES_SERVICE}/{method.name}", request=request, unary=handlers[method.name]))
    runs = statistics_pb2.RunStatisticsRequest
    calls.append(Call(method=f"/{RUNS_SERVICE}/Get", request=runs, unary=statistics.runs))
    check = health_pb2.HealthCheckRequest
    calls.append(Call(method=f"/{_HEALTH}/Check", request=check, unary=health.check))
    calls.append(Call(method=f"/{_HEALTH}/Watch", request=check, stream=health.watch))
    described = reflection.ReflectionCalls([SERVICE, STATES_SERVICE, RUNS_SERVICE, _HEALTH])
    calls.append(Call(method=reflection.METHOD, request=reflection.REQUEST, stream=described.info))
    return {call.method: call for call in calls}
