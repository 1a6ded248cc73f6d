"""The standard health service, grpc.health.v1."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from grpc_health.v1 import health_pb2

from cellport.errors import NotFoundError

from .calls import CallContext, Lifecycle
from .exchange import SERVICE
from .repository import Repository

_STATUS = health_pb2.HealthCheckResponse
_SERVICES = ("", SERVICE)


class HealthCalls:
    """The handlers. Services are the server (an empty name), the inference service, and each model by its name.

    Args:
        repository: the models.
        lifecycle: whether calls are taken.
    """

    def __init__(self, repository: Repository, lifecycle: Lifecycle) -> None:
        self._repository = repository
        self._lifecycle = lifecycle

    async def check(
        self, message: health_pb2.HealthCheckRequest, _context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer the status of a service."""
        status = self._status(message.service)
        if status == _STATUS.SERVICE_UNKNOWN:
            accepted = ", ".join(map(repr, sorted({*_SERVICES, *self._repository.names()})))
            raise NotFoundError(f"service {message.service!r} is not served; accepted: {accepted}")
        return _STATUS(status=status)

    async def watch(
        self, messages: AsyncIterator[health_pb2.HealthCheckRequest], _context: CallContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the status of a service, and again when it changes."""
        async for message in messages:
            # Inside the count of running calls, so that the server does not go before the word is out.
            with self._lifecycle.running():
                async with contextlib.aclosing(self._statuses(message.service)) as statuses:
                    async for status in statuses:
                        yield _STATUS(status=status)
            return

    async def _statuses(self, service: str) -> AsyncGenerator[health_pb2.HealthCheckResponse.ServingStatus, None]:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be gone, and with it the watcher
                loop.call_soon_threadsafe(changed.set)

        closer = asyncio.create_task(self._lifecycle.closing.wait())
        closer.add_done_callback(lambda _: changed.set())
        last: health_pb2.HealthCheckResponse.ServingStatus | None = None
        try:
            with self._repository.watching(tell):
                while True:
                    changed.clear()
                    ready, status = self._lifecycle.ready, self._status(service)
                    if status != last:
                        yield status
                        last = status
                    if not ready:
                        return
                    await changed.wait()
        finally:
            closer.cancel()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        repository = self._repository
        if service not in _SERVICES and not repository.versions(service):
            return _STATUS.NOT_SERVING if service in repository.names() else _STATUS.SERVICE_UNKNOWN
        return _STATUS.SERVING if self._lifecycle.ready else _STATUS.NOT_SERVING
