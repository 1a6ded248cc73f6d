"""The calls that the server has, whatever carries them.

A front reads bytes from its transport, parses them as a call's request type, runs its handler and sends what that
returns; errors become statuses by `cellport.serve.status`. A call is cancelled by cancelling the task of its handler.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from cellport.errors import InvalidRequestError, UnavailableError


@dataclass(kw_only=True, slots=True)
class CallContext:
    """What a handler knows of its call.

    Attributes:
        deadline: moment on the engine's clock after which the caller does not wait any more; None for never.
        metadata: the call's metadata, with keys in lower case.
    """

    deadline: float | None = None
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)


UnaryHandler = Callable[[Any, CallContext], Awaitable[Message | bytes]]
StreamHandler = Callable[[AsyncIterator[Any], CallContext], AsyncIterator[Message | bytes]]


class FedStream(Protocol):
    """A stream that neither reads nor waits: it is fed with what comes, and calls what sends its answers."""

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""

    def has_room(self, unsent: int) -> bool:
        """Return whether another request is to be taken, where so many answers have not been sent yet."""

    def feed(self, data: bytes) -> None:
        """Take a request.

        Raises:
            InvalidRequestError: the bytes are no request; the stream is to be ended with it when the others are done.
        """

    def abandon(self) -> None:
        """Cancel what is not answered yet."""


FedStreamHandler = Callable[[CallContext, Callable[[bytes], None], Callable[[], None]], FedStream]
"""Begins a stream; is given what sends an answer, and what is called when a request has been answered."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call.

    Attributes:
        method: its path, ``/package.Service/Method``.
        request: type of its requests.
        unary: handler of one request and one response; None for a stream.
        stream: handler of a stream of requests and a stream of responses; None for a unary call. A call with one
            request and many responses is one too.
        fed: the same handler for a front that need not wait for each request; None if there is no such form.
        raw: the handlers read requests from bytes themselves, and write responses as bytes.
    """

    method: str
    request: type[Message]
    unary: UnaryHandler | None = None
    stream: StreamHandler | None = None
    fed: FedStreamHandler | None = None
    raw: bool = False

    def parse(self, data: bytes) -> Message | bytes:
        """Return one request as the handlers take it.

        Raises:
            InvalidRequestError: the bytes are not such a message.
        """
        if self.raw:
            return data
        try:
            return self.request.FromString(data)
        except DecodeError:
            raise InvalidRequestError(
                f"{len(data)} bytes sent to {self.method} are not a {self.request.__name__}"
            ) from None


def write_message(response: Message | bytes) -> bytes:
    """Return a response as it is sent."""
    return response if isinstance(response, bytes) else response.SerializeToString()


class Lifecycle:
    """Whether calls are taken, and how many run. Used on the event loop only.

    Attributes:
        closing: set once the server takes no more calls.
    """

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self._watchers: dict[Callable[[], object], None] = {}
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        """Calls are taken."""
        return not self.closing.is_set()

    def close(self) -> None:
        """Take no more calls."""
        self.closing.set()
        for tell in list(self._watchers):
            tell()

    def enter(self) -> None:
        """Count a call that begins.

        Raises:
            UnavailableError: no more calls are taken.
        """
        if self.closing.is_set():
            raise closing_error()
        if not self._running:
            self._idle.clear()
        self._running += 1

    def leave(self) -> None:
        """Count a call that is over."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    @contextlib.contextmanager
    def on_closing(self, tell: Callable[[], object]) -> Iterator[None]:
        """Call `tell` when no more calls are taken, as long as the context lasts."""
        if self.closing.is_set():
            tell()
        self._watchers[tell] = None
        try:
            yield
        finally:
            del self._watchers[tell]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a call, for as long as the context lasts.

        Raises:
            UnavailableError: no more calls are taken.
        """
        self.enter()
        try:
            yield
        finally:
            self.leave()

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until no call runs, but not longer than `seconds`; return whether none does."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True


def closing_error() -> UnavailableError:
    """Return the error of a call that comes while the server shuts down."""
    return UnavailableError("the server is shutting down; try another")
