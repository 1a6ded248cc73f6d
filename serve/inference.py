"""ModelInfer and ModelStreamInfer: the conversion between messages and the engine's requests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from google.protobuf.message import Message

from cellport.errors import InvalidRequestError, QueueFullError
from cellport.protos.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse

from . import codec, parameters
from .async_engine import AsyncEngine, Pending
from .calls import CallContext, Lifecycle, closing_error
from .exchange import STATUS_PARAMETER
from .requests import Control, Reply, Request, SequenceId
from .status import status_of

FINAL_PARAMETER = "triton_final_response"


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
            pending = self._engine.submit(self._read(message, context))
            response = write_reply(await pending.reply(), message.id)
            self.check_size(response)
            return response

    async def stream(
        self, messages: AsyncIterator[ModelInferRequest], context: CallContext
    ) -> AsyncIterator[ModelStreamInferResponse]:
        """Answer the requests of a stream as they are done; those of one sequence in their order."""
        with self._lifecycle.running():
            stream = _Stream(self, self._window)
            reader = asyncio.create_task(stream.read(messages, context))
            closer = asyncio.create_task(self._lifecycle.closing.wait())
            # A stream may live for days; it must not keep the server from shutting down.
            closer.add_done_callback(lambda _: stream.stop_reading())
            try:
                while (response := await stream.answers.get()) is not None:
                    yield response
                    stream.window.release()
                await reader
            finally:
                closer.cancel()
                await stream.abandon(reader)

    def start(self, message: ModelInferRequest, context: CallContext) -> Pending:
        """Hand a message of a stream to the engine."""
        return self._engine.submit(self._read(message, context))

    def check_size(self, response: Message) -> None:
        """Refuse to send a message that is too large; in a stream, gRPC itself would break off all other requests.

        Raises:
            QueueFullError: it is; the class stands for RESOURCE_EXHAUSTED, gRPC's own status for it.
        """
        size = response.ByteSize()
        if size > self._send_bytes:
            raise QueueFullError(
                f"the request ran, but its answer has {size} bytes; accepted: at most {self._send_bytes}, such as of "
                "fewer outputs or rows"
            )

    def _read(self, message: ModelInferRequest, context: CallContext) -> Request:
        # An unknown model is the first thing to tell, whatever else is wrong.
        model = self._engine.engine.repository.get(message.model_name, message.model_version)
        parameters.wants_final(message.parameters)  # a step that is refused for it must not run first
        deadline = context.deadline
        timeout = parameters.read_timeout(message.parameters)
        if timeout is not None:
            own = self._engine.engine.clock() + timeout
            deadline = own if deadline is None else min(own, deadline)
        outputs = parameters.read_outputs_wanted(message.outputs)
        if parameters.wants_state(message.parameters):
            contract = model.contract
            outputs = (
                *(outputs or contract.outputs),
                *(name for name in contract.state_outputs if name not in outputs),
            )
        return Request(
            model=message.model_name,
            version=message.model_version,
            control=parameters.read_control(message.parameters),
            priority=parameters.read_priority(message.parameters),
            new=parameters.read_new(message.parameters),
            outputs=outputs,
            inputs=codec.read_inputs(message),
            deadline=deadline,
        )


class _Stream:
    """The requests of one stream that are not answered yet."""

    def __init__(self, calls: InferenceCalls, window: int) -> None:
        self.answers: asyncio.Queue[ModelStreamInferResponse | None] = asyncio.Queue()
        self._stopped = False
        self._calls = calls
        self.window = asyncio.Semaphore(window)
        self._tasks: dict[asyncio.Task[None], Pending | Exception] = {}
        self._last: dict[tuple[str, SequenceId], asyncio.Task[None]] = {}
        self._receive: asyncio.Task[ModelInferRequest | None] | None = None

    async def read(self, messages: AsyncIterator[ModelInferRequest], context: CallContext) -> None:
        """Start every request of the stream, and end `answers` after the last answer.

        Raises:
            InvalidRequestError: what was sent is no message; the requests before it are answered.
            UnavailableError: reading was broken off, so there may have been more requests.
        """
        try:
            failure: Exception | None = None
            try:
                await self._read(messages, context)
            except Exception as error:
                failure = error
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            self.answers.put_nowait(None)
        if failure is not None:
            raise failure

    async def _read(self, messages: AsyncIterator[ModelInferRequest], context: CallContext) -> None:
        while not self._stopped:
            # Waited for in a task of its own, so that the wait can be broken off without breaking off this one.
            self._receive = asyncio.ensure_future(_next(messages))
            await asyncio.wait([self._receive])
            if self._receive.cancelled():
                break
            message = self._receive.result()
            if message is None:
                return
            await self.window.acquire()
            self._begin(message, context)
        raise closing_error()

    def stop_reading(self) -> None:
        """Take no more requests from the stream; those that were taken are answered."""
        self._stopped = True
        if self._receive is not None:
            self._receive.cancel()

    async def abandon(self, reader: asyncio.Task[None]) -> None:
        """Cancel what is left of the stream."""
        reader.cancel()
        if self._receive is not None:
            self._receive.cancel()
        # The last first: a step is free to run as soon as the one before it is gone, and would run without it.
        for task, outcome in reversed(self._tasks.items()):
            task.cancel()
            if isinstance(outcome, Pending):  # a task that has not begun would leave its request in the queue
                outcome.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled():
            reader.exception()  # asyncio would log one that nobody has looked at

    def _begin(self, message: ModelInferRequest, context: CallContext) -> None:
        # The engine takes the request here and not in a task: that is what keeps the order of a sequence's steps.
        outcome: Pending | Exception
        try:
            outcome = self._calls.start(message, context)
        except Exception as error:
            outcome = error
        key = _sequence_key(message)
        task = asyncio.create_task(self._answer(message, outcome, None if key is None else self._last.get(key)))
        self._tasks[task] = outcome
        task.add_done_callback(self._tasks.pop)
        if key is not None:
            self._last[key] = task
            task.add_done_callback(lambda done: self._last.get(key) is done and self._last.pop(key))

    async def _answer(
        self, message: ModelInferRequest, outcome: Pending | Exception, previous: asyncio.Task[None] | None
    ) -> None:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            response = ModelStreamInferResponse(infer_response=write_reply(await outcome.reply(), message.id))
            if parameters.wants_final(message.parameters):
                response.infer_response.parameters[FINAL_PARAMETER].bool_param = True
            self._calls.check_size(response)
        except Exception as error:
            response = _write_error(error, message)
        if previous is not None:
            await asyncio.wait([previous])
        self.answers.put_nowait(response)


async def _next(messages: AsyncIterator[ModelInferRequest]) -> ModelInferRequest | None:
    return await anext(messages, None)


def _sequence_key(message: ModelInferRequest) -> tuple[str, SequenceId] | None:
    try:
        control = parameters.read_control(message.parameters)
    except InvalidRequestError:
        return None
    return (message.model_name, control.id) if isinstance(control, Control) else None


def write_reply(reply: Reply, request_id: str) -> ModelInferResponse:
    """Return the message of a reply."""
    response = ModelInferResponse(model_name=reply.model, model_version=reply.version, id=request_id)
    codec.write_outputs(response, reply.outputs)
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
    with contextlib.suppress(InvalidRequestError):  # which is then the error to be told
        if parameters.wants_final(message.parameters):
            response.infer_response.parameters[FINAL_PARAMETER].bool_param = True
    return response
