"""The standard health service, grpc.health.v1."""

from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2

from cellport.errors import NotFoundError

from .calls import CallContext, Lifecycle
from .exchange import SERVICE
from .repository import Repository

_STATUS = health_pb2.HealthCheckResponse


class HealthCalls:
    """The handlers. Services are the server (an empty name), the inference service, and each model by its name.

    Args:
        repository: the models.
        lifecycle: whether calls are taken.
    """

    def __init__(self, repository: Repository, lifecycle: Lifecycle) -> None:
        self._services = {"", SERVICE, *(model.name for model in repository)}
        self._lifecycle = lifecycle

    async def check(
        self, message: health_pb2.HealthCheckRequest, _context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer the status of a service."""
        if message.service not in self._services:
            accepted = ", ".join(map(repr, sorted(self._services)))
            raise NotFoundError(f"service {message.service!r} is not served; accepted: {accepted}")
        return _STATUS(status=self._status(message.service))

    async def watch(
        self, messages: AsyncIterator[health_pb2.HealthCheckRequest], _context: CallContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the status of a service, and again when it changes."""
        async for message in messages:
            with self._lifecycle.running():
                yield _STATUS(status=self._status(message.service))
                await self._lifecycle.closing.wait()
                # Inside the count of running calls, so that the server does not go before the word is out.
                yield _STATUS(status=self._status(message.service))
            return

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return _STATUS.SERVICE_UNKNOWN
        return _STATUS.SERVING if self._lifecycle.ready else _STATUS.NOT_SERVING
