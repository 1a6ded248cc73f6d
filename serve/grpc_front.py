"""The front on grpc.aio: carries the table of calls."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from cellport.errors import AddressError

from .calls import Call, CallContext, write_message
from .engine import Engine
from .status import status_of, trailers_of


class GrpcFront:
    """A grpc.aio server over a table of calls. Used on one event loop.

    Args:
        calls: the table, by path.
        engine: its clock is the one that deadlines are measured by.
        receive_bytes: largest message that is taken.
        send_bytes: largest message that is sent.
    """

    def __init__(self, calls: Mapping[str, Call], engine: Engine, *, receive_bytes: int, send_bytes: int) -> None:
        self._engine = engine
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", receive_bytes),
                ("grpc.max_send_message_length", send_bytes),
                # Two servers on one port would share its calls at random.
                ("grpc.so_reuseport", 0),
            ]
        )
        services: dict[str, dict[str, Any]] = {}
        for call in calls.values():
            _, service, method = call.method.split("/")
            services.setdefault(service, {})[method] = self._handler(call)
        for service, handlers in services.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            AddressError: the address cannot be listened on.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressError(f"{address} cannot be listened on: {error}") from None
        await self._server.start()
        return bound

    async def stop(self, seconds: float) -> None:
        """Stop listening, and break off the calls that still run after `seconds`."""
        await self._server.stop(seconds)

    def _handler(self, call: Call) -> Any:
        # Requests are parsed here and not by grpc, which would answer bytes that are no message with INTERNAL.
        if call.unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(call))
        return grpc.stream_stream_rpc_method_handler(self._stream(call))

    def _unary(self, call: Call) -> Any:
        handler = call.unary
        assert handler is not None

        async def run(data: bytes, context: Any) -> bytes:
            try:
                response = await handler(call.parse(data), self._context(context))
                return write_message(response)
            except Exception as error:
                return await _abort(context, error)

        return run

    def _stream(self, call: Call) -> Any:
        handler = call.stream
        assert handler is not None

        async def run(chunks: AsyncIterator[bytes], context: Any) -> None:
            async def messages() -> AsyncIterator[Message | bytes]:
                async for data in chunks:
                    yield call.parse(data)

            try:
                responses: Any = handler(chunks if call.raw else messages(), self._context(context))
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await context.write(write_message(response))
            except Exception as error:
                await _abort(context, error)

        return run

    def _context(self, context: Any) -> CallContext:
        remaining = context.time_remaining()
        return CallContext(
            deadline=None if remaining is None else self._engine.clock() + remaining, metadata=_Metadata(context)
        )


class _Metadata(Mapping[str, str | bytes]):
    """A call's metadata, which few handlers read: it is collected when one does."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._pairs: dict[str, str | bytes] | None = None

    def _collected(self) -> dict[str, str | bytes]:
        if self._pairs is None:
            self._pairs = {key: value for key, value in self._context.invocation_metadata() or ()}  # noqa: C416
        return self._pairs

    def __getitem__(self, key: str) -> str | bytes:
        return self._collected()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._collected())

    def __len__(self) -> int:
        return len(self._collected())


async def _abort(context: Any, error: Exception) -> bytes:
    status, text = status_of(error)
    await context.abort(grpc.StatusCode[status.name], text, trailing_metadata=tuple(trailers_of(error)))
    return b""
