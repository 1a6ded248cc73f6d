"""The calls that the server has, whatever carries them.

A front reads bytes from its transport, parses them as a call's request type, runs its handler and sends what that
returns; errors become statuses by `cellport.serve.status`. A call is cancelled by cancelling the task of its handler.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError, Message

from cellport.errors import InvalidRequestError, UnavailableError


@dataclass(frozen=True, kw_only=True)
class CallContext:
    """What a handler knows of its call.

    Attributes:
        deadline: moment on the engine's clock after which the caller does not wait any more; None for never.
        metadata: the call's metadata, with keys in lower case.
    """

    deadline: float | None = None
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)


UnaryHandler = Callable[[Any, CallContext], Awaitable[Message]]
StreamHandler = Callable[[AsyncIterator[Any], CallContext], AsyncIterator[Message]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call.

    Attributes:
        method: its path, ``/package.Service/Method``.
        request: type of its requests.
        unary: handler of one request and one response; None for a stream.
        stream: handler of a stream of requests and a stream of responses; None for a unary call. A call with one
            request and many responses is one too.
    """

    method: str
    request: type[Message]
    unary: UnaryHandler | None = None
    stream: StreamHandler | None = None

    def parse(self, data: bytes) -> Message:
        """Read one request.

        Raises:
            InvalidRequestError: the bytes are not such a message.
        """
        try:
            return self.request.FromString(data)
        except DecodeError:
            raise InvalidRequestError(
                f"{len(data)} bytes sent to {self.method} are not a {self.request.__name__}"
            ) from None


class Lifecycle:
    """Whether calls are taken, and how many run. Used on the event loop only.

    Attributes:
        closing: set once the server takes no more calls.
    """

    def __init__(self) -> None:
        self.closing = asyncio.Event()
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

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a call, for as long as the context lasts.

        Raises:
            UnavailableError: no more calls are taken.
        """
        if self.closing.is_set():
            raise closing_error()
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

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
