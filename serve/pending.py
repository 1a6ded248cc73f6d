"""Requests that the engine has been given, and the way of their outcomes back to the event loop."""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from cellport.errors import RequestCancelledError

from .checking import deadline_error, wait_of
from .engine import Engine
from .jobs import Job, Outcome
from .requests import Reply

_log = logging.getLogger(__name__)


class Mailbox:
    """Hands outcomes from the engine's threads to a loop, waking it once for all that arrive together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = threading.get_ident()
        self._letters: deque[tuple[Callable[[Any], None], Outcome]] = deque()
        self._woken = False

    def post(self, receive: Callable[[Any], None], outcome: Outcome) -> None:
        """Let the loop call `receive` with an outcome, at once if this is its thread."""
        if threading.get_ident() == self._reader:
            receive(outcome)
            return
        # Without a lock: the loop looks for letters after it has taken the flag down, and this is in that order too.
        self._letters.append((receive, outcome))
        if not self._woken:
            self._woken = True
            # A run may outlast the loop, if its caller has gone; then nobody waits for the outcome.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        self._woken = False
        letters = self._letters
        while letters:
            receive, outcome = letters.popleft()
            try:
                receive(outcome)
            except Exception:
                _log.exception("delivering an answer failed")


class Pending:
    """A request that the engine has been given.

    Attributes:
        done: its outcome has been delivered.
    """

    __slots__ = ("_engine", "_mailbox", "_receive", "_receive_token", "_timer", "done", "job")

    def __init__(
        self,
        engine: Engine,
        mailbox: Mailbox,
        receive: Callable[[Outcome], None],
        receive_token: Callable[[Outcome], None] | None,
    ) -> None:
        self.done = False
        self.job: Job | None = None
        self._engine = engine
        self._mailbox = mailbox
        self._receive = receive
        self._receive_token = receive_token
        self._timer: asyncio.TimerHandle | None = None

    def expire_at(self, deadline: float) -> None:
        """Drop the request when its time is up, unless the last of it runs already."""
        seconds = wait_of(deadline - self._engine.clock())
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def cancel(self) -> None:
        """Drop the request unless the last of it runs already."""
        self._cancel(RequestCancelledError("the request was cancelled before it ran"))

    def post(self, outcome: Outcome) -> None:
        """Take the outcome on any thread."""
        self._mailbox.post(self._deliver, outcome)

    def post_token(self, reply: Reply) -> None:
        """Take the next token on any thread."""
        assert self._receive_token is not None
        self._mailbox.post(self._receive_token, reply)

    def _deliver(self, outcome: Outcome) -> None:
        self.done = True
        self.job = None  # which holds this
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(outcome, Exception):
            outcome.__traceback__ = None  # it holds frames that hold the request, and that holds its outcome
        self._receive(outcome)

    def _expire(self) -> None:
        self._cancel(deadline_error())

    def _cancel(self, error: Exception) -> None:
        if not self.done and self.job is not None:
            self._engine.cancel(self.job, error)
