"""One call's request and response, as ASGI's events."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from .asgi_wire import ACCEPTED_ENCODINGS, MessageReader, WireError, status_headers
from .status import Status

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Reason = tuple[Status, str]

FIRST_LOOK = 0.05
"""Seconds after which a call's client is first looked for."""

GATHERED_BYTES = 65536
"""Bytes of answers that wait, or of requests that are read ahead, from which on no more are taken."""

_CONTENT_TYPE = (b"content-type", b"application/grpc")
_START: Event = {"type": "http.response.start", "status": 200, "headers": [_CONTENT_TYPE], "trailers": True}
_OK: Event = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}
_LONGEST_PAUSE = 1.0

LATE: Reason = (Status.DEADLINE_EXCEEDED, "the deadline passed before the call was answered")
GONE: Reason = (Status.CANCELLED, "the client has gone")


class GoneError(Exception):
    """The client is not there any more."""


class Exchange:
    """One call's request and response.

    Futures that the server completes are never cancelled: it could not complete them, and would log that.

    Args:
        receive: ASGI's callable.
        send: ASGI's callable.

    Attributes:
        reason: why the call was interrupted; None if it was not.
        ended: the whole request has been received.
        on_sent: called when the transport has taken messages; None if nobody asks.
    """

    # Defaults of the class: most calls are unary and need few of these.
    reason: Reason | None = None
    _begun = False  # the response
    ended = False  # the request
    _over = False  # nothing but the call's end is left to be sent
    _told = False  # how the call has ended
    _flight: "asyncio.Future[None] | None" = None
    _received: "asyncio.Future[Event] | None" = None
    _waiting_bytes = 0
    _watcher: "asyncio.Task[None] | None" = None
    on_sent: Callable[[], None] | None = None

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[None] | None = asyncio.current_task()
        self._waiting: list[bytes] = []

    def interrupt(self, reason: Reason) -> None:
        """Cancel the handler, unless it is done."""
        if self._over or self.reason is not None:
            return
        self.reason = reason
        if self._task is not None:
            self._task.cancel()
        else:
            # The request is still being received. When the response has ended, the server says that the client is gone.
            self._over = True
            self._ending = asyncio.create_task(self.end(*reason))

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
        pause = FIRST_LOOK
        while not self._over:
            if self.ended:  # until then what is received of the request tells
                event = await asyncio.shield(self._receive())
                if event["type"] == "http.disconnect":
                    self.interrupt(GONE)
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def only_message(self, reader: MessageReader) -> bytes:
        """Receive the request of a unary call.

        Raises:
            WireError: it is not one message (UNIMPLEMENTED, as the specification of statuses asks).
            GoneError: the client has gone.
        """
        # Not shielded as in a stream: that costs a unary call a tenth of its time.
        task, self._task = self._task, None
        event = await self._receive()
        if event["type"] == "http.request" and not event.get("more_body", False):
            message = reader.whole(event.get("body", b""))
            if message is not None:
                self.ended = True
                if self._over:
                    raise GoneError
                self._task = task
                return message
        message = None
        while True:
            if event["type"] == "http.disconnect":
                raise GoneError
            reader.feed(event.get("body", b""))
            self.ended = not event.get("more_body", False)
            while (found := reader.next()) is not None:
                if message is not None:
                    raise WireError(Status.UNIMPLEMENTED, "the call takes one message; more were sent")
                message = found
            if self.ended:
                break
            event = await self._receive()
        if self._over:
            raise GoneError
        self._task = task
        reader.finish()
        if message is None:
            raise WireError(Status.UNIMPLEMENTED, "the call takes one message; none was sent")
        return message

    @property
    def unsent(self) -> int:
        """Messages that are waiting until the transport has taken those before."""
        return len(self._waiting)

    @property
    def crowded(self) -> bool:
        """Whether many bytes are waiting."""
        return self._waiting_bytes > GATHERED_BYTES

    def receive(self) -> "asyncio.Future[Event]":
        """Ask for the next part of the request."""
        return asyncio.ensure_future(self._receive())

    def take(self, received: "asyncio.Future[Event]", reader: MessageReader) -> bool:
        """Take a part of the request; return whether the client is still there."""
        if received.cancelled() or received.exception() is not None or received.result()["type"] == "http.disconnect":
            self.interrupt(GONE)
            return False
        event = received.result()
        reader.feed(event.get("body", b""))
        self.ended = not event.get("more_body", False)
        return True

    async def more(self, reader: MessageReader) -> None:
        """Receive the next part of the request of a stream.

        Raises:
            GoneError: the client has gone, and the handler is being cancelled.
        """
        event = await asyncio.shield(self._received or self._receive())
        if event["type"] == "http.disconnect":
            self.interrupt(GONE)
            raise GoneError
        reader.feed(event.get("body", b""))
        self.ended = not event.get("more_body", False)
        if not self.ended:
            # Asked for ahead, so that it is known at once when the client goes.
            self._received = asyncio.ensure_future(self._receive())
            self._received.add_done_callback(self._look)

    def _look(self, received: "asyncio.Future[Event]") -> None:
        if received.cancelled() or received.result()["type"] == "http.disconnect":
            self.interrupt(GONE)

    async def answer(self, data: bytes) -> None:
        """Send the only message of a response, and that the call has succeeded."""
        self._over = self._told = True
        with contextlib.suppress(OSError):
            await self._send(_START)
            await self._send({"type": "http.response.body", "body": data})
            await self._send(_OK)

    async def write(self, data: bytes) -> None:
        """Send one of several messages, and wait while too many bytes are on their way."""
        self.post(data)
        while self._flight is not None and self._waiting_bytes > GATHERED_BYTES:
            await asyncio.wait([self._flight])

    def post(self, data: bytes) -> None:
        """Send one of several messages; while one is on its way to the transport, the next are gathered."""
        if self._over:
            return
        if not self._begun:
            self._begun = True
            started: asyncio.Future[None] = asyncio.ensure_future(self._send(_START))
            started.add_done_callback(_forget)  # the body will tell
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._flight is None:
            self._fly()

    def _fly(self) -> None:
        body = self._gathered()
        sent: Any = self._send({"type": "http.response.body", "body": body, "more_body": True})
        self._flight = asyncio.ensure_future(sent)
        self._flight.add_done_callback(self._landed)

    def _landed(self, flight: "asyncio.Future[None]") -> None:
        self._flight = None
        if flight.cancelled() or flight.exception() is not None:
            self._waiting.clear()
            self._waiting_bytes = 0
            self.interrupt(GONE)
        elif self._waiting and not self._over:
            self._fly()
        if self.on_sent is not None:
            self.on_sent()

    def _gathered(self) -> bytes:
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        return data

    async def end(self, status: Status, text: str, trailers: Iterable[tuple[str, str]] = ()) -> None:
        """Send how the call has ended, after what was written; only the first time counts."""
        if self._told:
            return
        self._over = self._told = True
        headers = [*status_headers(status, text), *((name.encode(), value.encode()) for name, value in trailers)]
        with contextlib.suppress(OSError):
            if self._begun:
                await self._send({"type": "http.response.body", "body": self._gathered()})
                await self._send({"type": "http.response.trailers", "headers": headers})
                return
            if status is Status.UNIMPLEMENTED:
                headers.append((b"grpc-accept-encoding", ACCEPTED_ENCODINGS))
            await self._send({"type": "http.response.start", "status": 200, "headers": [_CONTENT_TYPE, *headers]})
            await self._send({"type": "http.response.body"})

    async def refuse_http(self) -> None:
        """Answer a request that is not gRPC's."""
        self._over = self._told = True
        with contextlib.suppress(OSError):
            headers = [(b"content-type", b"text/plain")]
            await self._send({"type": "http.response.start", "status": 415, "headers": headers})
            await self._send({"type": "http.response.body", "body": b"content-type has to be application/grpc\n"})


def _forget(future: "asyncio.Future[None]") -> None:
    if not future.cancelled():
        future.exception()
