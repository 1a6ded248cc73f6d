"""The table of calls as an ASGI application that speaks gRPC over HTTP/2 with trailers.

What it needs of its server is ASGI 3 with the extension `http.response.trailers`, and that what is sent goes out in the
order of the calls of `send`, awaited or not (pyvoy queues it in the call). It knows nothing else of it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from google.protobuf.message import Message

from .asgi_exchange import FIRST_LOOK, GONE, LATE, Exchange, GoneError, Receive, Send
from .asgi_messages import messages_of
from .asgi_pump import Asker, Pump
from .asgi_wire import MessageReader, Metadata, WireError, frame, read_timeout
from .calls import Call, CallContext, Lifecycle, closing_error, write_message
from .status import Status, status_of, trailers_of

Scope = MutableMapping[str, Any]

_NONE: Mapping[str, str | bytes] = {}


class GrpcApplication:
    """Carries a table of calls. Used on one event loop.

    Args:
        calls: the table, by path.
        lifecycle: whether calls are taken.
        clock: the one that deadlines are measured by.
        receive_bytes: largest message that is taken.
        send_bytes: largest message that is sent.
    """

    def __init__(
        self,
        calls: Mapping[str, Call],
        lifecycle: Lifecycle,
        clock: Callable[[], float],
        *,
        receive_bytes: int,
        send_bytes: int,
    ) -> None:
        self._calls = calls
        self._lifecycle = lifecycle
        self._clock = clock
        self._receive_bytes = receive_bytes
        self._send_bytes = send_bytes
        self._running: set[Exchange] = set()
        self._young: deque[tuple[float, Exchange]] = deque()
        self._sweeping = False
        self._asker = Asker()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        exchange = Exchange(receive, send)
        self._running.add(exchange)
        timer: asyncio.TimerHandle | None = None
        try:
            headers = dict(scope["headers"])
            if scope["method"] != "POST" or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
                await exchange.refuse_http()
                return
            call = self._calls.get(scope["path"])
            if call is None:
                raise WireError(Status.UNIMPLEMENTED, f"call {scope['path']!r} is not served")
            reader = MessageReader(headers.get(b"grpc-encoding", b"identity"), self._receive_bytes)
            deadline = None
            if (timeout := headers.get(b"grpc-timeout")) is not None:
                seconds = read_timeout(timeout)
                deadline = self._clock() + seconds
                timer = asyncio.get_running_loop().call_later(seconds, exchange.interrupt, LATE)
            self._look_later(exchange)
            context = CallContext(deadline=deadline, metadata=_NONE if call.raw else Metadata(headers))
            if call.unary is not None:
                message = await exchange.only_message(reader)
                response = await call.unary(call.parse(message), context)
                await exchange.answer(self._frame(response))
            elif call.fed is not None:
                with self._lifecycle.running():
                    await Pump(exchange, reader, call.fed, context, self._lifecycle, self._frame, self._asker).run()
                await exchange.end(Status.OK, "")
            else:
                assert call.stream is not None
                responses: Any = call.stream(messages_of(exchange, call, reader), context)
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await exchange.write(self._frame(response))
                await exchange.end(Status.OK, "")
        except GoneError:
            pass
        except asyncio.CancelledError:
            reason = exchange.reason
            if reason is not GONE:
                await exchange.end(*(reason or (Status.CANCELLED, "the call was cancelled")))
        except WireError as error:
            await exchange.end(error.status, str(error))
        except Exception as error:
            await exchange.end(*status_of(error), trailers_of(error))
        finally:
            if timer is not None:
                timer.cancel()
            exchange.close()
            self._running.discard(exchange)

    async def close(self) -> None:
        """Break off the calls that still run, with UNAVAILABLE, and wait until they have ended."""
        error = closing_error()
        while self._running:
            for exchange in self._running:
                exchange.interrupt((Status.UNAVAILABLE, str(error)))
            await asyncio.sleep(0.001)

    def _frame(self, response: Message | bytes) -> bytes:
        data = write_message(response)
        if len(data) > self._send_bytes:
            raise WireError(
                Status.RESOURCE_EXHAUSTED, f"the answer has {len(data)} bytes; accepted: at most {self._send_bytes}"
            )
        return frame(data)

    def _look_later(self, exchange: Exchange) -> None:
        """Find out in a while whether the client is still there.

        Once the request has been read, a server may tell that only when it is asked (pyvoy does). Most calls are done
        long before the first look; one queue and one timer for all of them cost next to nothing.
        """
        self._young.append((time.monotonic() + FIRST_LOOK, exchange))
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(FIRST_LOOK, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        while self._young and self._young[0][0] <= now:
            _, exchange = self._young.popleft()
            exchange.watch()
        self._sweeping = bool(self._young)
        if self._sweeping:
            asyncio.get_running_loop().call_later(FIRST_LOOK, self._sweep)
