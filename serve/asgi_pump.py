"""A fed stream over ASGI."""

import asyncio
from collections.abc import Callable

from .asgi_exchange import GATHERED_BYTES, Event, Exchange
from .asgi_wire import MessageReader
from .calls import CallContext, FedStreamHandler, Lifecycle, closing_error

_LATER = 0.005
"""Seconds after which a stream is asked for more, though its requests are not answered yet."""


class Asker:
    """Asks streams for what comes next. Used on one event loop.

    To ask wakes the server's thread, which costs more than to read a message. So all streams of a turn are asked one
    after the other, right behind their answers, which wake that thread too.
    """

    def __init__(self) -> None:
        self._soon: list[Pump] = []
        self._later: list[Pump] = []

    def soon(self, pump: "Pump") -> None:
        """Ask at the end of this turn."""
        if not self._soon:
            asyncio.get_running_loop().call_soon(self._ask)
        self._soon.append(pump)

    def later(self, pump: "Pump") -> None:
        """Ask in a while, unless the stream has been asked then."""
        if not self._later:
            asyncio.get_running_loop().call_later(_LATER, self._ask_late)
        self._later.append(pump)

    def _ask(self) -> None:
        pumps, self._soon = self._soon, []
        for pump in pumps:
            pump.ask()

    def _ask_late(self) -> None:
        pumps, self._later = self._later, []
        for pump in pumps:
            pump.ask()


class Pump:
    """Carries a stream that is fed. All of it happens in callbacks: tasks would be woken several times a message.

    Args:
        exchange: the call.
        reader: cuts what is received into messages.
        begin: begins the stream.
        context: what is known of the call.
        lifecycle: whether calls are taken.
        frame: puts a message into its frame.
        asker: asks for what comes next.
    """

    def __init__(
        self,
        exchange: Exchange,
        reader: MessageReader,
        begin: FedStreamHandler,
        context: CallContext,
        lifecycle: Lifecycle,
        frame: Callable[[bytes], bytes],
        asker: Asker,
    ) -> None:
        self._exchange = exchange
        self._reader = reader
        self._lifecycle = lifecycle
        self._frame = frame
        self._stream = begin(context, self._write, self._changed)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asker = asker
        self._receiving = False  # more has been asked for
        self._asking = False  # more is to be asked for at the end of the turn
        self._ahead = False  # the client sends requests before the last ones are answered
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
        elif not self._receiving:
            self._ask_soon()

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
            self._ask_ahead()
        except Exception as error:
            self._stop(error)
        finally:
            self._advancing = False
        if self._stopped:
            self._end_if_done()

    def _ask_ahead(self) -> None:
        """Ask for what comes next before it is needed, so that it is known when the client goes.

        A client that waits for its answers sends nothing until they are sent, and is asked right behind them.
        """
        if self._receiving or self._asking:
            return
        if self._ahead or not self._stream.waiting:
            self._ask_soon()
        else:
            self._asker.later(self)

    def _ask_soon(self) -> None:
        if not self._asking:
            self._asking = True
            self._asker.soon(self)

    def ask(self) -> None:
        """Ask for what comes next, unless that has been done, or what cannot be taken yet is enough."""
        self._asking = False
        if self._receiving or self._done.done() or self._exchange.ended:
            return
        if self._blocked and self._reader.waiting >= GATHERED_BYTES:
            return
        try:
            received = self._exchange.receive()
        except Exception as error:  # other streams are asked after this one
            self._stop(error)
            return
        self._receiving = True
        received.add_done_callback(self._received)

    def _received(self, received: "asyncio.Future[Event]") -> None:
        self._receiving = False
        self._ahead = self._stream.waiting > 0
        if self._exchange.take(received, self._reader):
            self._advance()
