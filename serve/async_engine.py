"""The engine for an event loop."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .codec import Array
from .engine import Engine
from .engine_sequence import EngineSequence
from .generation import TOKENS, Sampling
from .inline import WayChooser
from .jobs import Job, Outcome
from .pending import Mailbox, Pending
from .requests import Reply, Request, SequenceId
from .settings import EngineSettings


class AsyncEngine:
    """An `Engine` whose calls are awaited. Used from one event loop.

    Args:
        engine: an engine to share, or a path for one of its own, which is closed with it.
        settings: how its own engine works.

    Attributes:
        engine: the engine.
    """

    def __init__(self, engine: Engine | str | Path, settings: EngineSettings | None = None) -> None:
        self._owned = not isinstance(engine, Engine)
        self.engine = engine if isinstance(engine, Engine) else Engine(engine, settings)
        self._mailbox: Mailbox | None = None
        self._loop: asyncio.AbstractEventLoop
        self._new: list[Job] = []
        self._way = WayChooser()

    def submit(
        self,
        request: Request,
        receive: Callable[[Outcome], None],
        partial: Callable[[Outcome], None] | None = None,
    ) -> Pending:
        """Take a request, so that requests run in the order of these calls.

        The engine is given all that come in one turn of the loop together.

        Args:
            request: the request.
            receive: called once on the loop with the reply or the error.
            partial: called on the loop with each token of a generation.

        Raises:
            ServingError: the request is wrong; `receive` is not called.
        """
        mailbox = self._mailbox
        if mailbox is None:
            self._loop = asyncio.get_running_loop()
            mailbox = self._mailbox = Mailbox(self._loop)
        pending = Pending(self.engine, mailbox, receive, partial)
        pending.job = self.engine.prepare(request, pending.post, None if partial is None else pending.post_token)
        if request.deadline is not None:
            pending.expire_at(request.deadline)
        if not self._new:
            self._loop.call_soon(self._hand_over)
        self._new.append(pending.job)
        return pending

    async def call(self, request: Request) -> Reply:
        """Run one request and wait for its reply.

        If the waiting task is cancelled, the request is dropped unless the last of it runs already.

        Raises:
            ServingError: one of its subclasses says why there is no answer.
        """
        return await self.wait(*self.start(request))

    def start(self, request: Request) -> "tuple[asyncio.Future[Outcome], Pending]":
        """Take a request, and return what to `wait` for.

        Raises:
            ServingError: the request is wrong.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        pending = self.submit(request, functools.partial(_settle, future))
        if self._way.alone and len(self._new) == 1:
            self._hand_over()  # nobody is there to wait for, for two turns of the loop
        return future, pending

    async def wait(self, future: "asyncio.Future[Outcome]", pending: "Pending") -> Reply:
        """Wait for the reply to a request; see `call`.

        Raises:
            ServingError: one of its subclasses says why there is no answer.
        """
        try:
            outcome = await future
        except asyncio.CancelledError:
            pending.cancel()
            raise
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        finally:
            del outcome, future, pending  # or an error would hold itself, by its traceback

    def _hand_over(self) -> None:
        jobs, self._new = self._new, []
        if not jobs:  # done at once
            return
        engine, way = self.engine, self._way
        first = jobs[0]
        way.take(time.perf_counter(), len(jobs), met=len(jobs) > 1 or engine.busy)
        inline, limit = way.alone, engine.settings.inline_seconds
        if inline:
            if engine.runner.run_alone(first, limit):
                return
            inline = engine.expected_seconds(first) <= limit
        for job, error in engine.accept(jobs, engine.runner.run_here if inline else None, single=not way.several):
            job.done(error)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        deadline: float | None = None,
        priority: int = 0,
    ) -> dict[str, Array]:
        """Run a model on one request; see `Engine.infer`."""
        request = Request(
            model=model,
            inputs=inputs,
            outputs=tuple(outputs or ()),
            version=version,
            deadline=deadline,
            priority=priority,
        )
        return dict((await self.call(request)).outputs)

    async def generate(
        self,
        model: str,
        inputs: Mapping[str, Array],
        sampling: Sampling,
        *,
        version: str = "",
        deadline: float | None = None,
        priority: int = 0,
    ) -> AsyncIterator[int]:
        """Generate tokens, and yield each as soon as it is drawn; see `Engine.generate`."""
        request = Request(
            model=model, inputs=inputs, sampling=sampling, version=version, deadline=deadline, priority=priority
        )
        news: asyncio.Queue[tuple[bool, Outcome]] = asyncio.Queue()
        pending = self.submit(
            request, lambda outcome: news.put_nowait((True, outcome)), lambda reply: news.put_nowait((False, reply))
        )
        try:
            while True:
                last, outcome = await news.get()
                if isinstance(outcome, Exception):
                    raise outcome
                if last:
                    return
                yield int(outcome.outputs[TOKENS][0, 0])
        finally:
            pending.cancel()

    async def open_sequence(
        self,
        model: str,
        *,
        sequence_id: SequenceId | None = None,
        state: Mapping[str, Array] | None = None,
        version: str = "",
    ) -> "AsyncEngineSequence":
        """Start a sequence; see `Engine.open_sequence`."""
        sequence = self.engine.open_sequence(model, sequence_id=sequence_id, state=state, version=version)
        return AsyncEngineSequence(self, sequence)

    async def close(self) -> None:
        """Close the engine if it is this one's own."""
        if self._owned:
            await asyncio.to_thread(self.engine.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _settle(future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


class AsyncEngineSequence:
    """One running sequence of an `AsyncEngine`; see `cellport.serve.engine_sequence.EngineSequence`.

    Attributes:
        id: its id.
    """

    def __init__(self, engine: AsyncEngine, sequence: EngineSequence) -> None:
        self.id = sequence.id
        self._engine = engine
        self._sequence = sequence

    async def step(
        self, inputs: Mapping[str, Array], *, outputs: Sequence[str] | None = None, deadline: float | None = None
    ) -> dict[str, Array]:
        """Advance by the steps in `inputs` and return the outputs."""
        request = self._sequence.request(inputs, outputs, deadline)
        return dict((await self._engine.call(request)).outputs)

    async def state(self) -> dict[str, Array]:
        """Return the states after the last step that is done, `[1, …]` by input name."""
        return self._sequence.state()

    async def fork(self, sequence_id: SequenceId | None = None) -> "AsyncEngineSequence":
        """Start another sequence from this one's states."""
        return AsyncEngineSequence(self._engine, self._sequence.fork(sequence_id))

    async def end(self) -> None:
        """End the sequence and forget its states."""
        await self._engine.call(self._sequence.request({}, None, None, end=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._sequence.__exit__, kind, error, traceback)
