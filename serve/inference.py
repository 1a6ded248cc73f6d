"""ModelInfer and ModelStreamInfer: from bytes to the engine's requests, and from its replies to bytes."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from cellport.errors import QueueFullError

from .async_engine import AsyncEngine
from .calls import CallContext, Lifecycle
from .codec import Array
from .forms import Received, ReplyWriter, RequestReader
from .jobs import Outcome
from .pending import Pending
from .requests import Request
from .stream_answers import answer_stream
from .streams import InferenceStream

_NONE: Mapping[str, Array] = {}
"""Inputs of a request that the engine has taken: the next one that is made of it must not hold the last one's."""


class InferenceCalls:
    """The handlers.

    Args:
        engine: runs the requests.
        lifecycle: whether calls are taken.
        window: requests of one stream whose answers may be on the way before no more are read from it.
        send_bytes: largest message that is sent.

    Attributes:
        lifecycle: the same.
        window: the same.
        reader: reads requests.
        writer: writes replies.
    """

    def __init__(self, engine: AsyncEngine, lifecycle: Lifecycle, *, window: int, send_bytes: int) -> None:
        self.lifecycle = lifecycle
        self.window = window
        self.reader = RequestReader()
        self.writer = ReplyWriter()
        self._engine = engine
        self._send_bytes = send_bytes

    async def infer(self, data: bytes, context: CallContext) -> bytes:
        """Answer one request."""
        lifecycle = self.lifecycle
        lifecycle.enter()
        try:
            received = self.reader.read(data)
            reply = await self._engine.wait(*self._start(received, context))
            return self.check_size(self.writer.write(reply, received.id))
        finally:
            lifecycle.leave()

    def _start(self, received: Received, context: CallContext) -> "tuple[asyncio.Future[Outcome], Pending]":
        request = self._request(received, context)
        started = self._engine.start(request)
        request.inputs = _NONE
        return started

    def open(
        self, context: CallContext, write: Callable[[bytes], None], changed: Callable[[], None]
    ) -> InferenceStream:
        """Begin a stream; see `InferenceStream`."""
        return InferenceStream(self, context, write, changed)

    def stream(self, messages: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        """Answer the requests of a stream as they are done; those of one sequence in their order."""
        return answer_stream(functools.partial(self.open, context), messages, self.lifecycle)

    def submit(
        self,
        received: Received,
        context: CallContext,
        receive: Callable[[Outcome], None],
        receive_token: Callable[[Outcome], None],
    ) -> Pending:
        """Give a request to the engine.

        Raises:
            ServingError: it is wrong.
        """
        request = self._request(received, context)
        pending = self._engine.submit(request, receive, None if request.sampling is None else receive_token)
        request.inputs = _NONE
        return pending

    def check_size(self, data: bytes) -> bytes:
        """Refuse to send a message that is too large; in a stream, gRPC itself would break off all other requests.

        Raises:
            QueueFullError: it is; the class stands for RESOURCE_EXHAUSTED, gRPC's own status for it.
        """
        if len(data) > self._send_bytes:
            raise QueueFullError(
                f"the request ran, but its answer has {len(data)} bytes; accepted: at most {self._send_bytes}, such as "
                "of fewer outputs or rows"
            )
        return data

    def _request(self, received: Received, context: CallContext) -> Request:
        """Return the request in a message.

        Raises:
            ServingError: it is wrong.
        """
        if received.error is not None:
            error, received.error = received.error, None
            try:
                raise error
            finally:
                del error  # or it would hold itself, by its traceback
        head = received.head
        if head is not None and head.request is not None:
            # The engine has taken what it needs of the last one.
            request = head.request
            request.inputs = received.inputs()
            request.deadline = context.deadline
            return request
        given = received.parameters
        form: Any = received.form
        if form is None or given.state:
            # An unknown model is the first thing to tell, whatever else is wrong.
            control = given.control
            controls = control if isinstance(control, Sequence) else [control] if control else []
            model = self._engine.engine.find(received.model, received.version, controls)
        deadline = context.deadline
        if given.timeout is not None:
            own = self._engine.engine.clock() + given.timeout
            deadline = own if deadline is None else min(own, deadline)
        outputs = received.outputs()
        if given.state:
            contract = model.contract
            outputs = (
                *(outputs or contract.outputs),
                *(name for name in contract.state_outputs if name not in outputs),
            )
            form = None
        request = Request(
            model=received.model,
            version=received.version,
            control=given.control,
            new=given.new,
            sampling=given.sampling,
            priority=given.priority,
            outputs=outputs,
            inputs=received.inputs(),
            deadline=deadline,
            form=form,
        )
        if head is not None and given.timeout is None and form is not None:
            head.request = request
        return request
