"""One ModelStreamInfer: its requests that are not answered yet, and the order of its answers.

`InferenceStream` neither reads nor waits: a front feeds it what comes, and is called with what is to be sent.
`cellport.serve.stream_answers` is that for a front that has an iterator of messages.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from cellport.protos.inference_pb2 import ModelStreamInferResponse

from .calls import CallContext
from .exchange import STATUS_PARAMETER
from .forms import Received
from .jobs import Outcome
from .pending import Pending
from .requests import Control, Reply, SequenceId
from .status import status_of

if TYPE_CHECKING:
    from .inference import InferenceCalls

FINAL_PARAMETER = "triton_final_response"
_FINAL = {FINAL_PARAMETER: True}
_MORE = {FINAL_PARAMETER: False}


class _Entry:
    """A request that is not answered yet."""

    __slots__ = ("final", "generates", "key", "pending", "received", "response", "stream")

    def __init__(self, stream: "InferenceStream", received: Received) -> None:
        self.stream = stream
        self.received = received
        self.key: tuple[str, SequenceId] | None = None
        self.final = False
        self.generates = False
        self.pending: Pending | None = None
        self.response: bytes | None = None

    def receive(self, outcome: Outcome) -> None:
        """Take the outcome."""
        self.stream.receive(self, outcome)

    def receive_token(self, reply: Outcome) -> None:
        """Take the next token of a generation."""
        self.stream.receive_token(self, reply)


class InferenceStream:
    """One stream.

    Args:
        calls: how requests are read and run, and replies written.
        context: what is known of the call.
        write: sends a message.
        changed: called when a request was answered, and so there may be room for more, or all may be done.
    """

    def __init__(
        self, calls: "InferenceCalls", context: CallContext, write: Callable[[bytes], None], changed: Callable[[], None]
    ) -> None:
        self._calls = calls
        self._context = context
        self._write = write
        self._changed = changed
        self._entries: dict[_Entry, None] = {}
        # Of each sequence those that are not sent yet, in order of arrival: so are its answers.
        self._order: dict[tuple[str, SequenceId], deque[_Entry]] = {}

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        return len(self._entries)

    def has_room(self, unsent: int) -> bool:
        """Return whether another request is to be taken, where so many answers have not been sent yet."""
        return len(self._entries) + unsent < self._calls.window

    def feed(self, data: bytes) -> None:
        """Begin a request. The engine takes requests in the order of these calls, and so the steps of a sequence.

        Raises:
            InvalidRequestError: the bytes are no request; the stream is to be ended with it when the others are done.
        """
        received = self._calls.reader.read(data)
        entry = _Entry(self, received)
        self._entries[entry] = None
        try:
            given = received.parameters
            entry.final = given.final
            control = given.control
            if isinstance(control, Control):
                entry.key = key = received.model, control.id
                order = self._order.get(key)
                if order is None:
                    order = self._order[key] = deque()
                order.append(entry)
            entry.pending = self._calls.submit(received, self._context, entry.receive, entry.receive_token)
        except Exception as error:
            self.receive(entry, error)

    def abandon(self) -> None:
        """Cancel what is not answered yet."""
        # The last first: a step is free to run as soon as the one before it is gone, and would run without it.
        for entry in reversed(list(self._entries)):
            if entry.pending is not None:
                entry.pending.cancel()

    def receive_token(self, entry: _Entry, reply: Outcome) -> None:
        """Take the next token of a generation."""
        assert isinstance(reply, Reply)
        entry.generates = True
        self._write(self._calls.writer.write_streamed(reply, entry.received.id, _MORE))

    def receive(self, entry: _Entry, outcome: Outcome) -> None:
        """Take an outcome, and send it unless an earlier step of the same sequence is not answered yet."""
        if entry.generates and isinstance(outcome, Reply):
            entry.pending = None
            del self._entries[entry]
            if entry.final:  # its tokens have all been sent
                empty = replace(outcome, outputs={})
                self._write(self._calls.writer.write_streamed(empty, entry.received.id, _FINAL))
            self._changed()
            return
        if isinstance(outcome, Exception):
            self._send(entry, _write_error(outcome, entry))
            return
        try:
            parameters = _FINAL if entry.final else None
            response = self._calls.writer.write_streamed(outcome, entry.received.id, parameters)
            self._calls.check_size(response)
        except Exception as error:
            response = _write_error(error, entry)
        self._send(entry, response)

    def _send(self, entry: _Entry, response: bytes) -> None:
        entry.pending = None  # which holds the entry
        key = entry.key
        if key is None:
            del self._entries[entry]
            self._write(response)
        else:
            entry.response = response
            order = self._order[key]
            while order and order[0].response is not None:
                first = order.popleft()
                assert first.response is not None
                del self._entries[first]
                self._write(first.response)
            if not order:
                del self._order[key]
        self._changed()


def _write_error(error: Exception, entry: _Entry) -> bytes:
    status, text = status_of(error)
    response = ModelStreamInferResponse(error_message=text)
    response.infer_response.model_name = entry.received.model
    response.infer_response.model_version = entry.received.version
    response.infer_response.id = entry.received.id.decode()
    response.infer_response.parameters[STATUS_PARAMETER].string_param = status.name
    if entry.final:
        response.infer_response.parameters[FINAL_PARAMETER].bool_param = True
    return response.SerializeToString()
