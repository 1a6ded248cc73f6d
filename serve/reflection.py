"""Server reflection, grpc.reflection.v1alpha: what the server's services and messages are."""

from collections.abc import AsyncIterator, Iterable

from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from cellport.protos import inference_pb2, model_config_pb2, sequences_pb2, statistics_pb2

from .calls import CallContext

SERVICE: str = reflection.SERVICE_NAME
METHOD = f"/{SERVICE}/ServerReflectionInfo"
REQUEST = reflection_pb2.ServerReflectionRequest

_DESCRIBED = (model_config_pb2, inference_pb2, sequences_pb2, statistics_pb2, health_pb2, reflection_pb2)


class ReflectionCalls:
    """The handler.

    Args:
        services: the full names of the services, without reflection itself.
    """

    def __init__(self, services: Iterable[str]) -> None:
        # The messages live in a pool of their own (docs/decisions/0005-messages-in-a-private-pool.md).
        pool = DescriptorPool()
        for module in _DESCRIBED:
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        self._servicer = reflection.aio.ReflectionServicer([*services, SERVICE], pool=pool)

    async def info(
        self, messages: AsyncIterator[reflection_pb2.ServerReflectionRequest], _context: CallContext
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """Answer each question about a file or symbol."""
        async for response in self._servicer.ServerReflectionInfo(messages, None):
            yield response
