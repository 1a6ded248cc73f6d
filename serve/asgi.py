"""The table of calls as an ASGI application that speaks gRPC over HTTP/2 with trailers.

What it needs of its server is ASGI 3 with the extension `http.response.trailers`, and that what is sent goes out in the
order of the calls of `send`, awaited or not (pyvoy queues it in the call). It knows nothing else of it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from google.protobuf.message import Message

from .asgi_wire import ACCEPTED_ENCODINGS, MessageReader, Metadata, WireError, frame, read_timeout, status_headers
from .calls import Call, CallContext, FedStreamHandler, Lifecycle, closing_error, write_message
from .status import Status, status_of, trailers_of

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_CONTENT_TYPE = (b"content-type", b"application/grpc")
_START: Event = {"type": "http.response.start", "status": 200, "headers": [_CONTENT_TYPE], "trailers": True}
_OK: Event = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}
_FIRST_LOOK = 0.05
_LONGEST_PAUSE = 1.0
_GATHERED_BYTES = 65536
_NONE: Mapping[str, str | bytes] = {}
_Reason = tuple[Status, str]


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
        self._running: set[_Exchange] = set()
        self._young: deque[tuple[float, _Exchange]] = deque()
        self._sweeping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        exchange = _Exchange(receive, send)
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
                timer = asyncio.get_running_loop().call_later(seconds, exchange.interrupt, _LATE)
            self._look_later(exchange)
            context = CallContext(deadline=deadline, metadata=_NONE if call.raw else Metadata(headers))
            if call.unary is not None:
                message = await exchange.only_message(reader)
                response = await call.unary(call.parse(message), context)
                await exchange.answer(self._frame(response))
            elif call.fed is not None:
                with self._lifecycle.running():
                    await _Pump(exchange, reader, call.fed, context, self._lifecycle, self._frame).run()
                await exchange.end(Status.OK, "")
            else:
                assert call.stream is not None
                responses: Any = call.stream(exchange.messages(call, reader), context)
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


_LATE: _Reason = (Status.DEADLINE_EXCEEDED, "the deadline passed before the call was answered")
_GONE: _Reason = (Status.CANCELLED, "the client has gone")


class _GoneError(Exception):
    """The client is not there any more."""


class _Exchange:
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
    reason: _Reason | None = None
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

    def interrupt(self, reason: _Reason) -> None:
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
        pause = _FIRST_LOOK
        while not self._over:
            if self.ended:  # until then what is received of the request tells
                event = await asyncio.shield(self._receive())
                if event["type"] == "http.disconnect":
                    self.interrupt(_GONE)
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def only_message(self, reader: MessageReader) -> bytes:
        """Receive the request of a unary call.

        Raises:
            WireError: it is not one message (UNIMPLEMENTED, as the specification of statuses asks).
            _GoneError: the client has gone.
        """
        # Not shielded as in a stream: that costs a unary call a tenth of its time.
        task, self._task = self._task, None
        event = await self._receive()
        if event["type"] == "http.request" and not event.get("more_body", False):
            message = reader.whole(event.get("body", b""))
            if message is not None:
                self.ended = True
                if self._over:
                    raise _GoneError
                self._task = task
                return message
        message = None
        while True:
            if event["type"] == "http.disconnect":
                raise _GoneError
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
            raise _GoneError
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
        return self._waiting_bytes > _GATHERED_BYTES

    def receive(self) -> "asyncio.Future[Event]":
        """Ask for the next part of the request."""
        return asyncio.ensure_future(self._receive())

    def take(self, received: "asyncio.Future[Event]", reader: MessageReader) -> bool:
        """Take a part of the request; return whether the client is still there."""
        if received.cancelled() or received.exception() is not None or received.result()["type"] == "http.disconnect":
            self.interrupt(_GONE)
            return False
        event = received.result()
        reader.feed(event.get("body", b""))
        self.ended = not event.get("more_body", False)
        return True

    async def messages(self, call: Call, reader: MessageReader) -> AsyncIterator[Message | bytes]:
        """Receive the requests of a stream."""
        try:
            while True:
                while (data := reader.next()) is not None:
                    yield call.parse(data)
                if self.ended:
                    reader.finish()
                    return
                await self._take(self._received or self._receive(), reader)
                if not self.ended:
                    # Asked for ahead, so that it is known at once when the client goes.
                    self._received = asyncio.ensure_future(self._receive())
                    self._received.add_done_callback(self._look)
        except _GoneError:
            # The handler is being cancelled. To it, a client that has gone must not look like one that has sent all.
            await asyncio.get_running_loop().create_future()

    def _look(self, received: "asyncio.Future[Event]") -> None:
        if received.cancelled() or received.result()["type"] == "http.disconnect":
            self.interrupt(_GONE)

    async def _take(self, received: Awaitable[Event], reader: MessageReader) -> None:
        event = await asyncio.shield(received)
        if event["type"] == "http.disconnect":
            self.interrupt(_GONE)
            raise _GoneError
        reader.feed(event.get("body", b""))
        self.ended = not event.get("more_body", False)

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
        while self._flight is not None and self._waiting_bytes > _GATHERED_BYTES:
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
            self.interrupt(_GONE)
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


class _Pump:
    """Carries a stream that is fed. All of it happens in callbacks: tasks would be woken several times a message.

    Args:
        exchange: the call.
        reader: cuts what is received into messages.
        begin: begins the stream.
        context: what is known of the call.
        lifecycle: whether calls are taken.
        frame: puts a message into its frame.
    """

    def __init__(
        self,
        exchange: _Exchange,
        reader: MessageReader,
        begin: FedStreamHandler,
        context: CallContext,
        lifecycle: Lifecycle,
        frame: Callable[[bytes], bytes],
    ) -> None:
        self._exchange = exchange
        self._reader = reader
        self._lifecycle = lifecycle
        self._frame = frame
        self._stream = begin(context, self._write, self._changed)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receiving = False
        self._advancing = False
        self._blocked = False  # there was no room for what has been received
        self._stopped = False  # no more requests are taken
        self._error: Exception | None = None

    async def run(self) -> None:
        """Answer requests until there are no more.

        Raises:
            WireError: what was received breaks gRPC's rules.
            InvalidRequestError: what was sent is no request; those before it are answered.
            UnavailableError: the server is closing, and there may have been more requests.
        """
        self._exchange.on_sent = self._changed
        # A stream may live for days; it must not keep the server from shutting down.
        with self._lifecycle.on_closing(self._close):
            try:
                self._advance()
                await self._done
            finally:
                self._exchange.on_sent = None
                self._stopped = True
                self._stream.abandon()

    def _close(self) -> None:
        if not self._stopped:
            self._stop(closing_error())

    def _stop(self, error: Exception | None = None) -> None:
        self._stopped = True
        self._error = error
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._stopped and not self._stream.waiting and not self._done.done():
            if self._error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(self._error)

    def _write(self, data: bytes) -> None:
        self._exchange.post(self._frame(data))

    def _changed(self) -> None:
        """Go on, if it was this that was waited for: room, or the last answer."""
        if self._blocked:
            self._advance()
        elif self._stopped:
            self._end_if_done()

    def _advance(self) -> None:
        """Take the requests that there is room for, and ask for more."""
        if self._advancing:  # a request that is wrong is answered while it is taken
            return
        self._advancing = True
        try:
            exchange, stream = self._exchange, self._stream
            self._blocked = False
            while not self._stopped:
                if not stream.has_room(exchange.unsent) or exchange.crowded:
                    self._blocked = True
                    break
                data = self._reader.next()
                if data is not None:
                    stream.feed(data)
                elif exchange.ended:
                    self._reader.finish()
                    self._stop()
                else:
                    break
            self._receive()
        except Exception as error:
            self._stop(error)
        finally:
            self._advancing = False
        if self._stopped:
            self._end_if_done()

    def _receive(self) -> None:
        """Ask ahead for what comes next, so that it is known at once when the client goes."""
        if not self._receiving and not self._exchange.ended and self._reader.waiting < _GATHERED_BYTES:
            self._receiving = True
            self._exchange.receive().add_done_callback(self._received)

    def _received(self, received: "asyncio.Future[Event]") -> None:
        self._receiving = False
        if self._exchange.take(received, self._reader):
            self._advance()
