"""The requests of a stream over ASGI, for handlers that iterate over them."""

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.message import Message

from .asgi_exchange import Exchange, GoneError
from .asgi_wire import MessageReader
from .calls import Call


async def messages_of(exchange: Exchange, call: Call, reader: MessageReader) -> AsyncIterator[Message | bytes]:
    """Receive the requests of a stream."""
    try:
        while True:
            while (data := reader.next()) is not None:
                yield call.parse(data)
            if exchange.ended:
                reader.finish()
                return
            await exchange.more(reader)
    except GoneError:
        # The handler is being cancelled. To it, a client that has gone must not look like one that has sent all.
        await asyncio.get_running_loop().create_future()
