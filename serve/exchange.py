"""What the clients send and read: messages to and from NumPy, without a connection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cellport.errors import InvalidRequestError, NotFoundError, PreconditionError, SequenceExistsError, ServingError
from cellport.protos import inference_pb2 as messages
from cellport.protos import sequences_pb2 as sequences

from . import codec
from .codec import Array
from .requests import Control, SequenceId
from .status import error_of

SERVICE = "inference.GRPCInferenceService"
STATES_METADATA = "cellport-states"
"""Metadata key of a ModelMetadata call that asks for the states to be listed too: any value but ``0`` and ``false``."""

STATUS_PARAMETER = "cellport_status"
"""Response parameter that names the status of an error inside a stream, where the protocol has a message only."""

MAXIMUM_BYTES = 2**31 - 1

END_SECONDS = 10.0
"""Longest wait for the end of a sequence that its caller has left already, where the client has no shorter one."""

_END = "end"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as a server describes it: the wire's datatype, and the batch-first shape with -1 for dynamic axes."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model as a server describes it."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """A server as it describes itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamAnswer:
    """The answer to one request of a stream.

    Attributes:
        index: which request it answers, from 0.
        outputs: arrays by output name; empty if the request failed.
        error: why it failed; None if it did not.
    """

    index: int
    outputs: Mapping[str, Array]
    error: ServingError | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """The state of a sequence after one of its steps.

    Attributes:
        model: the model's name.
        version: its version.
        states: arrays `[1, …]` by the names of the model's state inputs.
        step: the number of the step, if it had one.
    """

    model: str
    version: str
    states: Mapping[str, Array]
    step: int | None = None


@dataclass(kw_only=True)
class Usage:
    """What a stream knows of the sequence that its requests are steps of.

    Attributes:
        started: the step that starts it may have been sent.
        ended: the server has answered its end.
    """

    started: bool = False
    ended: bool = False

    def see(self, response: messages.ModelStreamInferResponse) -> bool:
        """Take note of a response; return whether it answers the end of the sequence and not a step."""
        if response.infer_response.id != _END:
            return False
        self.ended = not response.error_message
        return True


def may_have_run(error: BaseException) -> bool:
    """Return whether a request that ended with `error` may have run on the server all the same."""
    return not isinstance(error, InvalidRequestError | NotFoundError | PreconditionError | SequenceExistsError)


def write_step(
    model: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str] | None,
    *,
    version: str,
    index: int,
    sequence: SequenceId | None,
) -> messages.ModelInferRequest:
    """Return the message of a stream's request, whose id is its index; the first starts the sequence, if there is one.

    Raises:
        InvalidRequestError: an array has no form on the wire.
    """
    control = None if sequence is None else Control(id=sequence, start=index == 0)
    return write_request(model, inputs, outputs, version=version, request_id=str(index), control=control)


def write_end(model: str, sequence: SequenceId, version: str) -> messages.ModelInferRequest:
    """Return the message that ends a sequence without a step."""
    control = Control(id=sequence, end=True)
    return write_request(model, {}, None, version=version, request_id=_END, control=control)


def write_request(
    model: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str] | None,
    *,
    version: str = "",
    priority: int = 0,
    request_id: str = "",
    control: Control | None = None,
) -> messages.ModelInferRequest:
    """Return the message of a request.

    Raises:
        InvalidRequestError: an array has no form on the wire.
    """
    message = messages.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    codec.write_inputs(message, {name: np.asarray(value) for name, value in inputs.items()})
    for name in outputs or ():
        message.outputs.add(name=name)
    if priority:
        message.parameters["priority"].int64_param = priority
    if control is not None:
        if isinstance(control.id, str):
            message.parameters["sequence_id"].string_param = control.id
        else:
            message.parameters["sequence_id"].int64_param = control.id
        message.parameters["sequence_start"].bool_param = control.start
        message.parameters["sequence_end"].bool_param = control.end
    return message


STATES_SERVICE = "cellport.SequenceStates"


def write_reference(model: str, sequence: SequenceId | None) -> sequences.SequenceReference:
    """Return the message that names a sequence, or leaves its id to the server."""
    if sequence is None:
        return sequences.SequenceReference(model_name=model)
    if isinstance(sequence, str):
        return sequences.SequenceReference(model_name=model, text=sequence)
    return sequences.SequenceReference(model_name=model, number=sequence)


def read_reference(message: sequences.SequenceReference) -> SequenceId | None:
    """Return the id in a message that names a sequence; None if there is none.

    Raises:
        InvalidRequestError: it is too long.
    """
    found: SequenceId = message.number or message.text
    return Control(id=found).id if found else None


def write_snapshot(snapshot: Snapshot) -> sequences.SequenceState:
    """Return the message of a state.

    Raises:
        InvalidRequestError: an array has no form on the wire.
    """
    message = sequences.SequenceState(model_name=snapshot.model, model_version=snapshot.version, step=snapshot.step)
    for name, value in snapshot.states.items():
        array = np.asarray(value)
        datatype, data = codec.encode(array)
        message.states.add(name=name, datatype=datatype, shape=array.shape, raw_contents=data)
    return message


def read_snapshot(message: sequences.SequenceState) -> Snapshot:
    """Return the state in a message.

    Raises:
        InvalidRequestError: the bytes of a state do not fit its shape.
    """
    tensors = [(each.name, each.datatype, tuple(each.shape), each.raw_contents) for each in message.states]
    return Snapshot(
        model=message.model_name,
        version=message.model_version,
        states=codec.decode_states(tensors),
        step=message.step if message.HasField("step") else None,
    )


def read_reply(message: messages.ModelInferResponse) -> dict[str, Array]:
    """Return the arrays of a response."""
    return codec.read_outputs(message)


def read_stream_answer(message: messages.ModelStreamInferResponse) -> StreamAnswer:
    """Return the answer in a response of a stream whose request ids are indices."""
    reply = message.infer_response
    index = int(reply.id) if reply.id.isdecimal() else -1
    if message.error_message:
        status = reply.parameters[STATUS_PARAMETER].string_param if STATUS_PARAMETER in reply.parameters else "UNKNOWN"
        return StreamAnswer(index=index, outputs={}, error=error_of(status, message.error_message))
    return StreamAnswer(index=index, outputs=read_reply(reply))


def read_model(message: messages.ModelMetadataResponse) -> ModelInfo:
    """Return a model's description."""

    def tensor(each: messages.ModelMetadataResponse.TensorMetadata) -> TensorInfo:
        return TensorInfo(name=each.name, datatype=each.datatype, shape=tuple(each.shape))

    return ModelInfo(
        name=message.name,
        versions=tuple(message.versions),
        platform=message.platform,
        inputs=tuple(tensor(each) for each in message.inputs),
        outputs=tuple(tensor(each) for each in message.outputs),
    )


def read_server(message: messages.ServerMetadataResponse) -> ServerInfo:
    """Return a server's description."""
    return ServerInfo(name=message.name, version=message.version, extensions=tuple(message.extensions))
