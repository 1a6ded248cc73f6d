"""ModelInfer and ModelStreamInfer: the conversion between messages and the engine's requests."""

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from google.protobuf.message import Message

from cellport.errors import QueueFullError
from cellport.protos.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse

from . import codec
from .async_engine import AsyncEngine, Pending
from .calls import CallContext, Lifecycle, closing_error
from .exchange import STATUS_PARAMETER
from .jobs import Outcome
from .parameters import Parameters, read_outputs_wanted, read_parameters
from .requests import Control, Reply, Request, SequenceId
from .status import status_of

FINAL_PARAMETER = "triton_final_response"
FINISH_PARAMETER = "finish_reason"


class InferenceCalls:
    """The handlers.

    Args:
        engine: runs the requests.
        lifecycle: whether calls are taken.
        window: requests of one stream whose answers may be on the way before no more are read from it.
        send_bytes: largest message that is sent.
    """

    def __init__(self, engine: AsyncEngine, lifecycle: Lifecycle, *, window: int, send_bytes: int) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._window = window
        self._send_bytes = send_bytes

    async def infer(self, message: ModelInferRequest, context: CallContext) -> ModelInferResponse:
        """Answer one request."""
        with self._lifecycle.running():
            given = read_parameters(message.parameters)
            response = write_reply(await self._engine.call(self.read(message, given, context)), message.id)
            self.check_size(response)
            return response

    async def stream(
        self, messages: AsyncIterator[ModelInferRequest], context: CallContext
    ) -> AsyncIterator[ModelStreamInferResponse]:
        """Answer the requests of a stream as they are done; those of one sequence in their order."""
        with self._lifecycle.running():
            stream = _Stream(self, self._engine, self._window)
            reader = asyncio.create_task(stream.read(messages, context))
            closer = asyncio.create_task(self._lifecycle.closing.wait())
            # A stream may live for days; it must not keep the server from shutting down.
            closer.add_done_callback(lambda _: reader.cancel())
            try:
                async for response in stream.answers(reader):
                    yield response
            finally:
                closer.cancel()
                await stream.abandon(reader)

    def check_size(self, response: ModelInferResponse, message: Message | None = None) -> None:
        """Refuse to send a message that is too large; in a stream, gRPC itself would break off all other requests.

        Args:
            response: the response.
            message: the message that holds it; None if it is one itself.

        Raises:
            QueueFullError: it is; the class stands for RESOURCE_EXHAUSTED, gRPC's own status for it.
        """
        if sum(map(len, response.raw_output_contents)) < self._send_bytes // 2:
            return  # the rest of a message is small, and its size is not for free
        size = (message or response).ByteSize()
        if size > self._send_bytes:
            raise QueueFullError(
                f"the request ran, but its answer has {size} bytes; accepted: at most {self._send_bytes}, such as of "
                "fewer outputs or rows"
            )

    def read(self, message: ModelInferRequest, given: Parameters, context: CallContext) -> Request:
        """Return the request in a message.

        Raises:
            ServingError: it is wrong.
        """
        # An unknown model is the first thing to tell, whatever else is wrong.
        controls = given.control if isinstance(given.control, Sequence) else [given.control] if given.control else []
        model = self._engine.engine.find(message.model_name, message.model_version, controls)
        deadline = context.deadline
        if given.timeout is not None:
            own = self._engine.engine.clock() + given.timeout
            deadline = own if deadline is None else min(own, deadline)
        outputs = read_outputs_wanted(message.outputs) if message.outputs else ()
        if given.state:
            contract = model.contract
            outputs = (
                *(outputs or contract.outputs),
                *(name for name in contract.state_outputs if name not in outputs),
            )
        return Request(
            model=message.model_name,
            version=message.model_version,
            control=given.control,
            new=given.new,
            sampling=given.sampling,
            priority=given.priority,
            outputs=outputs,
            inputs=codec.read_inputs(message),
            deadline=deadline,
        )


class _Entry:
    """A request of a stream that is not answered yet."""

    __slots__ = ("final", "generates", "key", "message", "pending", "response")

    def __init__(self, message: ModelInferRequest) -> None:
        self.message = message
        self.key: tuple[str, SequenceId] | None = None
        self.final = False
        self.generates = False
        self.pending: Pending | None = None
        self.response: ModelStreamInferResponse | None = None


class _Stream:
    """The requests of one stream that are not answered yet, and the answers that are not sent yet."""

    def __init__(self, calls: InferenceCalls, engine: AsyncEngine, window: int) -> None:
        self._calls = calls
        self._engine = engine
        self._window = window
        self._entries: dict[_Entry, None] = {}
        # Of each sequence those that are not sent yet, in order of arrival: so are its answers.
        self._order: dict[tuple[str, SequenceId], deque[_Entry]] = {}
        self._ready: deque[ModelStreamInferResponse] = deque()
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    async def read(self, messages: AsyncIterator[ModelInferRequest], context: CallContext) -> None:
        """Start every request of the stream.

        Raises:
            InvalidRequestError: what was sent is no message; the requests before it are answered.
        """
        try:
            async for message in messages:
                # The engine takes requests here, one after the other: that keeps the order of a sequence's steps.
                self._begin(message, context)
                while len(self._entries) + len(self._ready) >= self._window:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        finally:
            self._tell()

    async def answers(self, reader: asyncio.Task[None]) -> AsyncIterator[ModelStreamInferResponse]:
        """Return the answers as they come, until all requests that `reader` has started are answered.

        Raises:
            UnavailableError: reading was broken off, so there may have been more requests.
        """
        while True:
            while self._ready:
                yield self._ready.popleft()
                if self._room is not None and not self._room.done():
                    self._room.set_result(None)
            if reader.done() and not self._entries:
                break
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        if reader.cancelled():
            raise closing_error()
        reader.result()

    async def abandon(self, reader: asyncio.Task[None]) -> None:
        """Cancel what is left of the stream."""
        reader.cancel()
        # The last first: a step is free to run as soon as the one before it is gone, and would run without it.
        for entry in reversed(list(self._entries)):
            if entry.pending is not None:
                entry.pending.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled():
            reader.exception()  # asyncio would log one that nobody has looked at

    def _begin(self, message: ModelInferRequest, context: CallContext) -> None:
        entry = _Entry(message)
        self._entries[entry] = None
        try:
            given = read_parameters(message.parameters)
            entry.final = given.final
            if isinstance(given.control, Control):
                entry.key = message.model_name, given.control.id
                self._order.setdefault(entry.key, deque()).append(entry)
            request = self._calls.read(message, given, context)
            partial = None if request.sampling is None else functools.partial(self._receive_token, entry)
            entry.pending = self._engine.submit(request, functools.partial(self._receive, entry), partial)
        except Exception as error:
            self._receive(entry, error)

    def _receive_token(self, entry: _Entry, reply: Outcome) -> None:
        """Take the next token of a generation."""
        assert isinstance(reply, Reply)
        entry.generates = True
        response = ModelStreamInferResponse(infer_response=write_reply(reply, entry.message.id))
        response.infer_response.parameters[FINAL_PARAMETER].bool_param = False
        self._ready.append(response)
        self._tell()

    def _receive(self, entry: _Entry, outcome: Outcome) -> None:
        """Take an outcome, and send it unless an earlier step of the same sequence is not answered yet."""
        if entry.generates and isinstance(outcome, Reply):
            self._end(entry, outcome)
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            response = ModelStreamInferResponse(infer_response=write_reply(outcome, entry.message.id))
            self._calls.check_size(response.infer_response, response)
        except Exception as error:
            response = _write_error(error, entry.message)
        if entry.final:
            response.infer_response.parameters[FINAL_PARAMETER].bool_param = True
        if entry.key is None:
            self._send(entry, response)
            return
        entry.response = response
        order = self._order[entry.key]
        while order and order[0].response is not None:
            first = order.popleft()
            assert first.response is not None
            self._send(first, first.response)
        if not order:
            del self._order[entry.key]

    def _end(self, entry: _Entry, reply: Reply) -> None:
        """End a generation, whose tokens have all been sent."""
        del self._entries[entry]
        if entry.final:
            empty = replace(reply, outputs={})
            response = ModelStreamInferResponse(infer_response=write_reply(empty, entry.message.id))
            response.infer_response.parameters[FINAL_PARAMETER].bool_param = True
            self._ready.append(response)
        self._tell()

    def _send(self, entry: _Entry, response: ModelStreamInferResponse) -> None:
        del self._entries[entry]
        self._ready.append(response)
        self._tell()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def write_reply(reply: Reply, request_id: str) -> ModelInferResponse:
    """Return the message of a reply."""
    response = ModelInferResponse(model_name=reply.model, model_version=reply.version, id=request_id)
    codec.write_outputs(response, reply.outputs)
    if reply.finish is not None:
        response.parameters[FINISH_PARAMETER].string_param = reply.finish
    if isinstance(reply.sequence_id, int):
        response.parameters["sequence_id"].int64_param = reply.sequence_id
    elif reply.sequence_id is not None:
        response.parameters["sequence_id"].string_param = reply.sequence_id
    return response


def _write_error(error: Exception, message: ModelInferRequest) -> ModelStreamInferResponse:
    status, text = status_of(error)
    response = ModelStreamInferResponse(error_message=text)
    response.infer_response.model_name = message.model_name
    response.infer_response.model_version = message.model_version
    response.infer_response.id = message.id
    response.infer_response.parameters[STATUS_PARAMETER].string_param = status.name
    return response
