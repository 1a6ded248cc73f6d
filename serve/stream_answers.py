"""Answering a stream whose messages come from an iterator."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from .calls import Lifecycle, closing_error
from .streams import InferenceStream


class _Outbox:
    """Answers that have not been sent yet, and what waits for news of them."""

    def __init__(self) -> None:
        self.ready: deque[bytes] = deque()
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def put(self, data: bytes) -> None:
        """Add one."""
        self.ready.append(data)
        self.tell()

    def tell(self) -> None:
        """Wake who waits for anything to have changed."""
        for future in (self._news, self._room):
            if future is not None and not future.done():
                future.set_result(None)

    async def news(self) -> None:
        """Wait for a change, as the one who sends."""
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    async def room(self) -> None:
        """Wait for a change, as the one who reads."""
        self._room = asyncio.get_running_loop().create_future()
        await self._room


async def answer_stream(
    begin: Callable[[Callable[[bytes], None], Callable[[], None]], InferenceStream],
    messages: AsyncIterator[bytes],
    lifecycle: Lifecycle,
) -> AsyncIterator[bytes]:
    """Answer the messages of a stream as they are done.

    Args:
        begin: begins the stream.
        messages: the requests.
        lifecycle: whether calls are taken.

    Raises:
        InvalidRequestError: what was sent is no message; the requests before it are answered.
        UnavailableError: the server is closing, and there may have been more requests.
    """
    with lifecycle.running():
        outbox = _Outbox()
        stream = begin(outbox.put, outbox.tell)
        reader = asyncio.create_task(_read(messages, stream, outbox))
        reader.add_done_callback(lambda _: outbox.tell())
        # A stream may live for days; it must not keep the server from shutting down.
        with lifecycle.on_closing(reader.cancel):
            try:
                while True:
                    while outbox.ready:
                        yield outbox.ready.popleft()
                        outbox.tell()
                    if reader.done() and not stream.waiting:
                        break
                    await outbox.news()
                if reader.cancelled():
                    raise closing_error()
                reader.result()
            finally:
                reader.cancel()
                stream.abandon()
                await asyncio.wait([reader])
                if not reader.cancelled():
                    reader.exception()  # asyncio would log one that nobody has looked at


async def _read(messages: AsyncIterator[bytes], stream: InferenceStream, outbox: _Outbox) -> None:
    async for data in messages:
        stream.feed(data)
        while not stream.has_room(len(outbox.ready)):
            await outbox.room()
