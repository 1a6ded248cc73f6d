"""The table of calls as an ASGI application that speaks gRPC over HTTP/2 with trailers.

What it needs of its server is ASGI 3 with the extension `http.response.trailers`. It knows nothing else of it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from google.protobuf.message import Message

from .asgi_wire import ACCEPTED_ENCODINGS, MessageReader, Metadata, WireError, frame, read_timeout, status_headers
from .calls import Call, CallContext, closing_error
from .status import Status, status_of

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_CONTENT_TYPE = (b"content-type", b"application/grpc")
_START: Event = {"type": "http.response.start", "status": 200, "headers": [_CONTENT_TYPE], "trailers": True}
_OK: Event = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}
_FIRST_LOOK = 0.05
_LONGEST_PAUSE = 1.0


class GrpcApplication:
    """Carries a table of calls. Used on one event loop.

    Args:
        calls: the table, by path.
        clock: the one that deadlines are measured by.
        receive_bytes: largest message that is taken.
        send_bytes: largest message that is sent.
    """

    def __init__(
        self, calls: Mapping[str, Call], clock: Callable[[], float], *, receive_bytes: int, send_bytes: int
    ) -> None:
        self._calls = calls
        self._clock = clock
        self._receive_bytes = receive_bytes
        self._send_bytes = send_bytes
        self._running: set[_Exchange] = set()
        self._young: deque[tuple[float, _Exchange]] = deque()
        self._sweeping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        exchange = _Exchange(receive, send)
        timer: asyncio.TimerHandle | None = None
        self._running.add(exchange)
        try:
            headers = scope["headers"]
            content_type, encoding, timeout = b"", b"identity", None
            for name, value in headers:
                if name == b"content-type":
                    content_type = value
                elif name == b"grpc-timeout":
                    timeout = value
                elif name == b"grpc-encoding":
                    encoding = value
            if not content_type.startswith(b"application/grpc") or scope["method"] != "POST":
                await exchange.refuse_http()
                return
            call = self._calls.get(scope["path"])
            if call is None:
                raise WireError(Status.UNIMPLEMENTED, f"call {scope['path']!r} is not served")
            reader = MessageReader(encoding, self._receive_bytes)
            deadline = None
            if timeout is not None:
                seconds = read_timeout(timeout)
                deadline = self._clock() + seconds
                timer = asyncio.get_running_loop().call_later(seconds, exchange.interrupt, _LATE)
            self._look_later(exchange)
            context = CallContext(deadline=deadline, metadata=Metadata(headers))
            if call.unary is not None:
                message = await exchange.only_message(reader)
                response = await call.unary(call.parse(message), context)
                await exchange.answer(self._frame(response))
            else:
                assert call.stream is not None
                responses: Any = call.stream(_messages(call, exchange, reader), context)
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await exchange.write(self._frame(response))
                await exchange.end(Status.OK, "")
        except _GoneError:
            pass
        except asyncio.CancelledError:
            reason = exchange.reason
            if reason is not _GONE:
                await exchange.end(*(reason or (Status.CANCELLED, "the call was cancelled")))
        except WireError as error:
            await exchange.end(error.status, str(error))
        except Exception as error:
            await exchange.end(*status_of(error))
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

    def _frame(self, response: Message) -> bytes:
        data = response.SerializeToString()
        if len(data) > self._send_bytes:
            raise WireError(
                Status.RESOURCE_EXHAUSTED, f"the answer has {len(data)} bytes; accepted: at most {self._send_bytes}"
            )
        return frame(data)

    def _look_later(self, exchange: "_Exchange") -> None:
        """Find out in a while whether the client is still there.

        Once the request has been read, a server may tell that only when it is asked (pyvoy does). Most calls are done
        long before the first look; one queue and one timer for all of them cost next to nothing.
        """
        self._young.append((time.monotonic() + _FIRST_LOOK, exchange))
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_FIRST_LOOK, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        while self._young and self._young[0][0] <= now:
            _, exchange = self._young.popleft()
            exchange.watch()
        self._sweeping = bool(self._young)
        if self._sweeping:
            asyncio.get_running_loop().call_later(_FIRST_LOOK, self._sweep)


_Reason = tuple[Status, str]
_LATE: _Reason = (Status.DEADLINE_EXCEEDED, "the deadline passed before the call was answered")
_GONE: _Reason = (Status.CANCELLED, "the client has gone")


class _GoneError(Exception):
    """The client is not there any more."""


class _Exchange:
    """One call's request and response.

    Futures that the server completes are shielded: cancelled ones could not be completed, which servers log.

    Args:
        receive: ASGI's callable.
        send: ASGI's callable.

    Attributes:
        reason: why the call was interrupted; None if it was not.
    """

    __slots__ = ("_begun", "_ended", "_over", "_receive", "_send", "_task", "_watcher", "reason")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._begun = False  # the response
        self._ended = False  # the request
        self._over = False  # nothing but the call's end is left to be sent
        self.reason: _Reason | None = None

    def interrupt(self, reason: _Reason) -> None:
        """Cancel the handler, unless it is done."""
        if not self._over and self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()

    def close(self) -> None:
        """Stop looking whether the client is there."""
        self._over = True
        if self._watcher is not None:
            self._watcher.cancel()

    def watch(self) -> None:
        """Look from time to time whether the client is there; each pause is as long as the call has run so far."""
        if not self._over:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        pause = _FIRST_LOOK
        while not self._over:
            if self._ended:  # until then the request's reader is told
                event = await asyncio.shield(self._receive())
                if event["type"] == "http.disconnect":
                    self.interrupt(_GONE)
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def fill(self, reader: MessageReader) -> bool:
        """Receive some of the request, and return whether there may be more.

        Raises:
            _GoneError: the client has gone; the call is interrupted.
        """
        if self._ended:
            return False
        event = await asyncio.shield(self._receive())
        if event["type"] == "http.disconnect":
            self.interrupt(_GONE)
            raise _GoneError
        reader.feed(event.get("body", b""))
        self._ended = not event.get("more_body", False)
        return True

    async def only_message(self, reader: MessageReader) -> bytes:
        """Receive the request of a unary call.

        Raises:
            WireError: it is not one message (UNIMPLEMENTED, as the specification of statuses asks).
        """
        message = None
        while await self.fill(reader):
            while (found := reader.next()) is not None:
                if message is not None:
                    raise WireError(Status.UNIMPLEMENTED, "the call takes one message; more were sent")
                message = found
        reader.finish()
        if message is None:
            raise WireError(Status.UNIMPLEMENTED, "the call takes one message; none was sent")
        return message

    async def answer(self, data: bytes) -> None:
        """Send the only message of a response, and that the call has succeeded."""
        self._over = True
        with contextlib.suppress(OSError):
            await self._send(_START)
            await self._send({"type": "http.response.body", "body": data})
            await self._send(_OK)

    async def write(self, data: bytes) -> None:
        """Send one message of several, and wait until the transport wants more.

        Raises:
            _GoneError: the client has gone.
        """
        try:
            if not self._begun:
                self._begun = True
                await self._send(_START)
            sent: Any = self._send({"type": "http.response.body", "body": data, "more_body": True})
            await asyncio.shield(sent)
        except OSError:
            raise _GoneError from None

    async def end(self, status: Status, text: str) -> None:
        """Send how the call has ended."""
        self._over = True
        headers = status_headers(status, text)
        with contextlib.suppress(OSError):
            if self._begun:
                await self._send({"type": "http.response.body"})
                await self._send({"type": "http.response.trailers", "headers": headers})
                return
            if status is Status.UNIMPLEMENTED:
                headers.append((b"grpc-accept-encoding", ACCEPTED_ENCODINGS))
            await self._send({"type": "http.response.start", "status": 200, "headers": [_CONTENT_TYPE, *headers]})
            await self._send({"type": "http.response.body"})

    async def refuse_http(self) -> None:
        """Answer a request that is not gRPC's."""
        self._over = True
        with contextlib.suppress(OSError):
            headers = [(b"content-type", b"text/plain")]
            await self._send({"type": "http.response.start", "status": 415, "headers": headers})
            await self._send({"type": "http.response.body", "body": b"content-type has to be application/grpc\n"})


async def _messages(call: Call, exchange: _Exchange, reader: MessageReader) -> AsyncIterator[Message]:
    try:
        while True:
            while (data := reader.next()) is not None:
                yield call.parse(data)
            if not await exchange.fill(reader):
                reader.finish()
                return
    except _GoneError:
        # The handler is cancelled by now. To it, a client that has gone must not look like one that has sent all.
        await asyncio.get_running_loop().create_future()
