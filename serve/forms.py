"""Messages of ModelInfer, read and written piece by piece where a message of the same form has been seen before.

A client sends the same message again and again, but for its id, its parameters and what its tensors hold. Parsing one
with protobuf, reading its tensors' descriptions and checking them takes many times longer than cutting the bytes at
their field boundaries and looking up what is known of the rest. Whatever is not of the plain form, or wrong, is parsed
as a whole: its errors are that path's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse

from . import codec
from .codec import Array
from .parameters import Parameters, read_outputs_wanted, read_parameters
from .requests import Control, Reply, Request

# Bytes that fields of a message begin with: their number times 8, plus 2 for those that tell their length.
_ID, _PARAMETER, _RAW = 3 << 3 | 2, 4 << 3 | 2, 7 << 3 | 2
_KIND, _SIZED = 0b111, 2
_LONG = 0x80

_FORMS = 4096
"""Forms that are remembered."""

_PARAMETER_SETS = 4096
_PARAMETER_BYTES = 2**22
"""Sets of parameters that are remembered, and bytes of them."""

_LONGEST = 2**14
"""Bytes of a form, or of a set of parameters, that is not remembered any more."""

_HEADS = 4096
_HEAD_BYTES = 2**22
"""Messages up to their only tensor's contents that are remembered, and bytes of them."""


class Form:
    """What requests of one form have in common.

    Attributes:
        model: name of the model that is asked for.
        version: its version.
        outputs: names of the outputs wanted.
        tensors: for each input its name, shape, element type and bytes.
    """

    __slots__ = ("model", "outputs", "tensors", "version")

    def __init__(self, message: ModelInferRequest, tensors: Sequence[tuple[str, tuple[int, ...], Any, int]]) -> None:
        self.model = message.model_name
        self.version = message.model_version
        self.outputs = read_outputs_wanted(message.outputs)
        self.tensors = tensors


class Head:
    """A message up to the contents of its only tensor.

    Attributes:
        total: bytes of the whole message.
        form: its form.
        parameters: what its parameters say.
        name: the tensor's name.
        shape: its shape.
        dtype: its element type.
        request: what was last made of such a message, without its inputs; whoever takes it sets what may differ.
    """

    __slots__ = ("dtype", "form", "name", "parameters", "request", "shape", "total")

    def __init__(self, total: int, form: Form, parameters: Parameters) -> None:
        self.total = total
        self.form = form
        self.parameters = parameters
        self.name, self.shape, self.dtype, _ = form.tensors[0]
        self.request: Request | None = None


class Received:
    """A request as it came.

    Attributes:
        model: name of the model that it asks for.
        version: its version.
        id: the request's, in UTF-8.
        parameters: what its parameters say.
        form: its form, if it is one that is known.
        head: what is known of messages that begin with the same bytes; None if that is not known.
        message: the message, if the form is not known.
        error: what is wrong with its parameters; None if nothing is.
    """

    __slots__ = ("_inputs", "error", "form", "head", "id", "message", "model", "parameters", "version")

    def __init__(
        self,
        *,
        request_id: bytes,
        parameters: Parameters,
        form: Form | None = None,
        inputs: dict[str, Array] | None = None,
        head: Head | None = None,
        message: ModelInferRequest | None = None,
        error: InvalidRequestError | None = None,
    ) -> None:
        self.id = request_id
        self.parameters = parameters
        self.form = form
        self.head = head
        self.message = message
        self.error = error
        self._inputs = inputs
        if form is not None:
            self.model, self.version = form.model, form.version
        else:
            assert message is not None
            self.model, self.version = message.model_name, message.model_version

    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs wanted; none for all that are no states.

        Raises:
            InvalidRequestError: one is to be given in a way that is not served.
        """
        if self.form is not None:
            return self.form.outputs
        assert self.message is not None
        return read_outputs_wanted(self.message.outputs)

    def inputs(self) -> dict[str, Array]:
        """Return the inputs by name.

        Raises:
            InvalidRequestError: they are inconsistent.
        """
        if self._inputs is not None:
            return self._inputs
        assert self.message is not None
        return codec.read_inputs(self.message)


class RequestReader:
    """Reads requests. Used by one thread."""

    def __init__(self) -> None:
        self._forms: dict[bytes, Form | None] = {}
        self._parameters: dict[bytes, Parameters] = {}
        self._parameter_bytes = 0
        self._heads: dict[bytes, Head] = {}
        self._head_bytes = 0
        self._head_sizes: dict[int, int] = {}  # of the last message of so many bytes that had a head

    def read(self, data: bytes) -> Received:
        """Read a serialized ModelInferRequest.

        Raises:
            InvalidRequestError: the bytes are no such message.
        """
        size = self._head_sizes.get(len(data))
        if size is not None:
            head = self._heads.get(data[:size])
            if head is not None and head.total == len(data):
                inputs = {head.name: np.ndarray(head.shape, head.dtype, data[size:])}
                return Received(request_id=b"", parameters=head.parameters, form=head.form, inputs=inputs, head=head)
        try:
            found = self._read_known(data)
        except (IndexError, UnicodeDecodeError, DecodeError, InvalidRequestError):
            found = None  # said below, by the whole message
        return found if found is not None else _read_whole(data)

    def _read_known(self, data: bytes) -> Received | None:
        """Read a request by its form; None if it has none."""
        at, end = 0, len(data)
        request_id = b""
        rest: list[bytes] = []
        given: list[bytes] = []
        raw: list[bytes] = []
        while at < end:
            tag, size, begin = data[at], data[at + 1], at + 2
            if size >= _LONG:
                size, begin = _long_size(data, at + 1)
            stop = begin + size
            if tag == _RAW:
                raw.append(data[begin:stop])
            elif tag == _PARAMETER:
                given.append(data[at:stop])
            elif tag == _ID:
                request_id = data[begin:stop]
            elif tag & _KIND == _SIZED and tag < _LONG:
                rest.append(data[at:stop])
            else:
                return None
            at = stop
        if at != end:
            return None
        key = b"".join(rest)
        form = self._forms.get(key)
        if form is None:
            form = self._learn(key)
            if form is None:
                return None
        if len(raw) != len(form.tensors):
            return None
        inputs: dict[str, Array] = {}
        for (name, shape, dtype, wanted), content in zip(form.tensors, raw, strict=True):
            if len(content) != wanted:
                return None
            inputs[name] = np.ndarray(shape, dtype, content)
        if not request_id.isascii():
            request_id.decode()
        parameters = self._read_parameters(b"".join(given)) if given else read_parameters({})
        head = None
        # Ids are mostly new in each message, and a sequence starts and ends once. Contents are the last field, if all
        # are in their order.
        if not request_id and not _comes_once(parameters) and len(raw) == 1 and tag == _RAW:
            head = self._remember(data[:begin], end, form, parameters)
        return Received(request_id=request_id, parameters=parameters, form=form, inputs=inputs, head=head)

    def _remember(self, data: bytes, total: int, form: Form, parameters: Parameters) -> Head:
        """Return what is known of messages of so many bytes that begin with `data`, and keep it."""
        found = self._heads.get(data)
        if found is not None:
            self._head_sizes[total] = len(data)
            return found
        if len(self._heads) >= _HEADS or self._head_bytes > _HEAD_BYTES:
            self._heads.clear()
            self._head_sizes.clear()
            self._head_bytes = 0
        head = Head(total, form, parameters)
        if len(data) <= _LONGEST:
            self._heads[data] = head
            self._head_sizes[total] = len(data)
            self._head_bytes += len(data)
        return head

    def _learn(self, key: bytes) -> Form | None:
        """Return the form of requests with this content; None if they are to be parsed as a whole."""
        if len(key) > _LONGEST or key in self._forms:
            return None
        message = ModelInferRequest.FromString(key)
        tensors = []
        for tensor in message.inputs:
            described = codec.describe_plain(tensor)
            if described is None:
                break
            tensors.append(described)
        plain = bool(tensors) and len({name for name, *_ in tensors}) == len(message.inputs) == len(tensors)
        plain = plain and not any(output.parameters for output in message.outputs)
        if len(self._forms) >= _FORMS:
            self._forms.clear()
        self._forms[key] = form = Form(message, tensors) if plain else None
        return form

    def _read_parameters(self, key: bytes) -> Parameters:
        found = self._parameters.get(key)
        if found is None:
            found = read_parameters(ModelInferRequest.FromString(key).parameters)
            if len(key) > _LONGEST or _comes_once(found):
                return found
            self._parameter_bytes += len(key)
            if len(self._parameters) >= _PARAMETER_SETS or self._parameter_bytes > _PARAMETER_BYTES:
                self._parameters.clear()
                self._parameter_bytes = len(key)
            self._parameters[key] = found
        return found


def _comes_once(parameters: Parameters) -> bool:
    """Whether no other request will have the same parameters: a sequence starts once and ends once."""
    control = parameters.control
    return isinstance(control, Control) and (control.start or control.end)


def _read_whole(data: bytes) -> Received:
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError:
        raise InvalidRequestError(f"{len(data)} bytes are not a ModelInferRequest") from None
    parameters, error = read_parameters({}), None
    try:
        parameters = read_parameters(message.parameters)
    except InvalidRequestError as found:
        error = found.with_traceback(None)  # which holds this frame, and that the error
    return Received(request_id=message.id.encode(), parameters=parameters, message=message, error=error)


def _long_size(data: bytes, at: int) -> tuple[int, int]:
    """Read a size of several bytes; return it and where it ends."""
    size, shift = 0, 0
    while True:
        byte = data[at]
        size |= (byte & ~_LONG) << shift
        at += 1
        if byte < _LONG:
            return size, at
        shift += 7


class ReplyWriter:
    """Writes replies as serialized ModelInferResponses. Used by one thread."""

    def __init__(self) -> None:
        self._heads: dict[Any, bytes] = {}

    def write(self, reply: Reply, request_id: bytes) -> bytes:
        """Return the message of a reply.

        Args:
            reply: the reply.
            request_id: the id of the request.
        """
        return b"".join(self._pieces(reply, request_id, None))

    def write_streamed(
        self, reply: Reply, request_id: bytes, parameters: Mapping[str, bool | int | str] | None = None
    ) -> bytes:
        """Return the same within a ModelStreamInferResponse.

        Args:
            reply: the reply.
            request_id: the id of the request.
            parameters: to be added to those of the reply.
        """
        pieces = self._pieces(reply, request_id, parameters)
        return b"".join((b"\x12", size_of(sum(map(len, pieces))), *pieces))

    def _pieces(
        self, reply: Reply, request_id: bytes, parameters: Mapping[str, bool | int | str] | None
    ) -> list[bytes | memoryview]:
        outputs = reply.outputs
        key: Any = (reply.model, reply.version)
        for name, array in outputs.items():
            key = key, name, array.dtype, array.shape
        head = self._heads.get(key)
        if head is None:
            head = _write_head(reply)
            if len(self._heads) >= _FORMS:
                self._heads.clear()
            self._heads[key] = head
        pieces: list[bytes | memoryview] = [head]
        if request_id:
            pieces += b"\x1a", size_of(len(request_id)), request_id
        if reply.finish is not None or reply.sequence_id is not None or parameters:
            pieces.append(_write_parameters(reply, parameters or {}))
        for array in outputs.values():
            data = codec.raw(array)
            pieces += b"\x32", size_of(len(data)), data
        return pieces


def _write_head(reply: Reply) -> bytes:
    message = ModelInferResponse(model_name=reply.model, model_version=reply.version)
    for name, array in reply.outputs.items():
        message.outputs.add(name=name, datatype=codec.datatype_of(codec.dtype_of(array)), shape=array.shape)
    return message.SerializeToString()


def _write_parameters(reply: Reply, given: Mapping[str, bool | int | str]) -> bytes:
    values = dict(given)
    if reply.finish is not None:
        values["finish_reason"] = reply.finish
    if reply.sequence_id is not None:
        values["sequence_id"] = reply.sequence_id
    return write_parameters(values)


def write_parameters(values: Mapping[str, bool | int | str]) -> bytes:
    """Return the parameters of a response as a part of its serialized message."""
    message = ModelInferResponse()
    for name, value in values.items():
        if isinstance(value, bool):
            parameter = InferParameter(bool_param=value)
        elif isinstance(value, int):
            parameter = InferParameter(int64_param=value)
        else:
            parameter = InferParameter(string_param=value)
        message.parameters[name].CopyFrom(parameter)
    return message.SerializeToString()


def size_of(size: int) -> bytes:
    """Return a field's length as it is written in front of it."""
    if size < _LONG:
        return _SIZES[size]
    if size < _LONG << 7:
        return bytes((size & 0x7F | _LONG, size >> 7))
    found = bytearray()
    while size >= _LONG:
        found.append(size & 0x7F | _LONG)
        size >>= 7
    found.append(size)
    return bytes(found)


_SIZES = [bytes((size,)) for size in range(_LONG)]
