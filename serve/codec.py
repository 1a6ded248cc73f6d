"""Conversion between the Open Inference Protocol's tensors and NumPy arrays.

Two element types have no NumPy dtype of their own. BYTES is an object array of `bytes`. BF16 is `BFLOAT16`, an opaque
type of two bytes: ``array.view(ml_dtypes.bfloat16)`` reads it as numbers and ``array.view(numpy.uint16)`` as bits, and
neither can be mistaken for a tensor of UINT16.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse

Array = np.ndarray[Any, np.dtype[Any]]
WireTensor = ModelInferRequest.InferInputTensor | ModelInferResponse.InferOutputTensor

BFLOAT16 = np.dtype("V2")
"""NumPy dtype of BF16 elements."""

_ELEMENTS: dict[str, tuple[str, np.dtype[Any], str | None]] = {
    "BOOL": ("bool", np.dtype("?"), "bool_contents"),
    "UINT8": ("uint8", np.dtype("u1"), "uint_contents"),
    "UINT16": ("uint16", np.dtype("<u2"), "uint_contents"),
    "UINT32": ("uint32", np.dtype("<u4"), "uint_contents"),
    "UINT64": ("uint64", np.dtype("<u8"), "uint64_contents"),
    "INT8": ("int8", np.dtype("i1"), "int_contents"),
    "INT16": ("int16", np.dtype("<i2"), "int_contents"),
    "INT32": ("int32", np.dtype("<i4"), "int_contents"),
    "INT64": ("int64", np.dtype("<i8"), "int64_contents"),
    "FP16": ("float16", np.dtype("<f2"), None),
    "FP32": ("float32", np.dtype("<f4"), "fp32_contents"),
    "FP64": ("float64", np.dtype("<f8"), "fp64_contents"),
    "BYTES": ("string", np.dtype("O"), "bytes_contents"),
    "BF16": ("bfloat16", BFLOAT16, None),
}
_DATATYPES = {dtype: datatype for datatype, (dtype, _, _) in _ELEMENTS.items()}
# NumPy computes a dtype's name anew each time, at several microseconds.
_NAMES = {dtype: name for name, dtype, _ in _ELEMENTS.values()}
# Those whose every raw byte has a meaning.
_FIXED = {datatype: dtype for datatype, (_, dtype, _) in _ELEMENTS.items() if datatype not in ("BOOL", "BYTES")}
_COPIED = 2**14
"""Bytes up to which contents are copied: a view of them takes longer to make."""

# Those whose elements are on the wire as they are in memory.
_PLAIN = frozenset(dtype for datatype, (_, dtype, _) in _ELEMENTS.items() if datatype != "BYTES")
_MAXIMUM_RANK = 64  # NumPy's
_MAXIMUM_BYTES = 2**63 - 1
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: str) -> str:
    """Return the wire's name of a manifest's element type, such as ``INT64`` for ``int64``."""
    return _DATATYPES[dtype]


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """Return the NumPy element type of a wire's datatype, such as ``INT64``."""
    return _ELEMENTS[datatype][1]


def dtype_of(array: Array) -> str:
    """Return the manifest's name of an array's element type.

    Raises:
        InvalidRequestError: the wire has no such element type.
    """
    known = _NAMES.get(array.dtype)
    if known is not None:
        return known
    if array.dtype.kind in "SU":
        return "string"
    if array.dtype.name not in _DATATYPES:
        raise InvalidRequestError(f"arrays of {array.dtype} cannot be sent; accepted: {', '.join(_DATATYPES)}")
    return array.dtype.name


def decode(kind: str, tensors: Sequence[WireTensor], raw: Sequence[bytes]) -> dict[str, Array]:
    """Read the tensors of one message.

    Arrays read from raw contents are read-only views of the message's bytes.

    Args:
        kind: ``input`` or ``output``, for the messages of errors.
        tensors: the message's tensors.
        raw: the message's raw contents, one for each tensor, or none.

    Returns:
        Arrays by name, in the message's order.

    Raises:
        InvalidRequestError: anything about the tensors is inconsistent.
    """
    if raw and len(raw) != len(tensors):
        raise InvalidRequestError(
            f"raw_{kind}_contents has {len(raw)} entries for {len(tensors)} {kind}s; accepted: one for each {kind}, "
            f"or none where every {kind} has contents"
        )
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(tensors):
        name = tensor.name
        if not name:
            raise InvalidRequestError(f"{kind} number {index} has an empty name")
        if name in arrays:
            raise InvalidRequestError(f"{kind} {name!r} is given more than once")
        datatype = tensor.datatype
        if raw and datatype in _FIXED and not tensor.parameters and not tensor.HasField("contents"):
            shape, data, dtype = tuple(tensor.shape), raw[index], _FIXED[datatype]
            fits = len(data) == math.prod(shape) * dtype.itemsize and len(shape) <= _MAXIMUM_RANK
            if fits and data and min(shape, default=1) > 0:
                arrays[name] = np.ndarray(shape, dtype, data)
                continue
        what = f"{kind} {name!r}"
        if "shared_memory_region" in tensor.parameters:
            raise InvalidRequestError(
                f"{what} is in shared memory, which is not served; accepted: contents or raw contents"
            )
        if datatype not in _ELEMENTS:
            raise InvalidRequestError(f"{what} has datatype {datatype!r}; accepted: {', '.join(_ELEMENTS)}")
        shape = tuple(tensor.shape)
        count = _count(what, shape, _ELEMENTS[datatype][1].itemsize)
        if raw:
            if any(True for _ in tensor.contents.ListFields()):
                raise InvalidRequestError(
                    f"{what} has contents in a message with raw_{kind}_contents; accepted: one form for all {kind}s"
                )
            flat = _from_raw(what, datatype, shape, count, raw[index])
        else:
            flat = _from_contents(what, datatype, shape, count, tensor.contents)
        try:
            arrays[name] = flat.reshape(shape)
        except ValueError as error:  # an empty tensor may still have a shape beyond NumPy's limits
            raise InvalidRequestError(f"{what} has shape {list(shape)}: {error}") from None
    return arrays


def decode_states(tensors: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> dict[str, Array]:
    """Read states from their names, datatypes, shapes and raw contents.

    Raises:
        InvalidRequestError: anything about a tensor is inconsistent.
    """
    arrays: dict[str, Array] = {}
    for name, datatype, shape, data in tensors:
        what = f"state {name!r}"
        if name in arrays:
            raise InvalidRequestError(f"{what} is given more than once")
        if datatype not in _FIXED:
            raise InvalidRequestError(f"{what} has datatype {datatype!r}; accepted: {', '.join(_FIXED)}")
        count = _count(what, shape, _FIXED[datatype].itemsize)
        arrays[name] = _from_raw(what, datatype, shape, count, data).reshape(shape)
    return arrays


def _count(what: str, shape: tuple[int, ...], size: int) -> int:
    """Return the number of elements in `shape`; Python's integers do not overflow."""
    if len(shape) > _MAXIMUM_RANK:
        raise InvalidRequestError(f"{what} has {len(shape)} axes; accepted: at most {_MAXIMUM_RANK}")
    for axis, extent in enumerate(shape):
        if extent < 0:
            raise InvalidRequestError(f"{what} has shape {list(shape)}; axis {axis} must be at least 0")
    count = math.prod(shape)
    if count * size > _MAXIMUM_BYTES:
        raise InvalidRequestError(f"{what} has shape {list(shape)}, which is more than {_MAXIMUM_BYTES} bytes")
    return count


def _from_raw(what: str, datatype: str, shape: tuple[int, ...], count: int, data: bytes) -> Array:
    dtype = _ELEMENTS[datatype][1]
    if datatype == "BYTES":
        return _from_raw_bytes(what, shape, count, data)
    if len(data) != count * dtype.itemsize:
        raise InvalidRequestError(
            f"{what} has {len(data)} raw bytes; shape {list(shape)} of {datatype} needs {count * dtype.itemsize}"
        )
    if datatype == "BOOL":
        octets = np.frombuffer(data, np.uint8)
        if octets.size and octets.max() > 1:
            at = int(octets.argmax())
            raise InvalidRequestError(f"{what} has byte {octets[at]} as element {at} of BOOL; accepted: 0 and 1")
    return np.frombuffer(data, dtype)


def _from_raw_bytes(what: str, shape: tuple[int, ...], count: int, data: bytes) -> Array:
    # Every element takes at least its length's four bytes, so a huge count cannot make us allocate.
    if count * _LENGTH.size > len(data):
        raise InvalidRequestError(
            f"{what} has {len(data)} raw bytes; shape {list(shape)} of BYTES needs at least {count * _LENGTH.size}"
        )
    elements = np.empty(count, object)
    offset = 0
    for index in range(count):
        start = offset + _LENGTH.size
        if start > len(data):
            raise InvalidRequestError(f"{what} ends after {len(data)} raw bytes, inside the length of element {index}")
        offset = start + _LENGTH.unpack_from(data, offset)[0]
        if offset > len(data):
            raise InvalidRequestError(
                f"{what} ends after {len(data)} raw bytes; element {index} of BYTES has length {offset - start} and "
                f"ends at {offset}"
            )
        elements[index] = data[start:offset]
    if offset != len(data):
        raise InvalidRequestError(f"{what} has {len(data)} raw bytes; its {count} elements of BYTES end at {offset}")
    return elements


def _from_contents(
    what: str, datatype: str, shape: tuple[int, ...], count: int, contents: InferTensorContents
) -> Array:
    dtype, field = _ELEMENTS[datatype][1:]
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    wrong = [name for name in filled if name != field]
    if wrong:
        accepted = field if field is not None else "raw contents only"
        raise InvalidRequestError(f"{what} has datatype {datatype} but fills {wrong[0]}; accepted: {accepted}")
    if field is None and count:
        raise InvalidRequestError(f"{what} has datatype {datatype} without raw contents; accepted: raw contents only")
    values = getattr(contents, field) if field is not None else ()
    if len(values) != count:
        raise InvalidRequestError(f"{what} has {len(values)} elements in {field}; shape {list(shape)} needs {count}")
    if datatype == "BYTES":
        elements = np.empty(count, object)
        elements[:] = list(values)
        return elements
    if dtype.kind in "iu" and dtype.itemsize < 4:  # the wire's list is wider than the element
        wide = np.fromiter(values, np.int64, count)
        limits = np.iinfo(dtype)
        outside = np.flatnonzero((wide < limits.min) | (wide > limits.max))
        if outside.size:
            at = int(outside[0])
            raise InvalidRequestError(
                f"{what} has value {wide[at]} as element {at} of {datatype}; accepted: {limits.min} to {limits.max}"
            )
        return wide.astype(dtype)
    return np.fromiter(values, dtype, count)


def describe_plain(tensor: WireTensor) -> tuple[str, tuple[int, ...], np.dtype[Any], int] | None:
    """Return a tensor's name, shape, element type and bytes, if any contents of that many bytes are right for it."""
    dtype = _FIXED.get(tensor.datatype)
    shape = tuple(tensor.shape)
    if dtype is None or not tensor.name or tensor.parameters or tensor.HasField("contents"):
        return None
    if len(shape) > _MAXIMUM_RANK or min(shape, default=1) < 1 or math.prod(shape) * dtype.itemsize > _MAXIMUM_BYTES:
        return None
    return tensor.name, shape, dtype, math.prod(shape) * dtype.itemsize


def raw(array: Array) -> bytes | memoryview:
    """Return an array's raw contents, of which `len` is the bytes: where it can be, they are the array's own.

    Raises:
        InvalidRequestError: the array's element type has no form on the wire.
    """
    if array.dtype not in _PLAIN:
        return encode(array)[1]
    if array.nbytes < _COPIED or not array.flags.c_contiguous:
        return array.tobytes()
    return array.reshape(-1).view(np.uint8).data


def encode(array: Array) -> tuple[str, bytes]:
    """Return an array's datatype and its raw contents.

    Raises:
        InvalidRequestError: the array's element type has no form on the wire.
    """
    datatype = datatype_of(dtype_of(array))
    if datatype == "BYTES":
        return datatype, b"".join(_element(value) for value in array.ravel().tolist())
    dtype = _ELEMENTS[datatype][1]
    if datatype == "BF16":
        return datatype, array.tobytes()
    return datatype, np.ascontiguousarray(array, dtype).tobytes()


def _element(value: object) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise InvalidRequestError(f"an array of objects holds {value!r}; accepted: bytes or str")
    return _LENGTH.pack(len(value)) + value


def write_inputs(request: ModelInferRequest, arrays: Mapping[str, Array]) -> None:
    """Add `arrays` to a request in raw form."""
    _write(request.inputs, request.raw_input_contents, arrays)


def write_outputs(response: ModelInferResponse, arrays: Mapping[str, Array]) -> None:
    """Add `arrays` to a response in raw form."""
    _write(response.outputs, response.raw_output_contents, arrays)


def _write(tensors: Any, raw: Any, arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        datatype, data = encode(array)
        tensors.add(name=name, datatype=datatype, shape=array.shape)
        raw.append(data)


def read_inputs(request: ModelInferRequest) -> dict[str, Array]:
    """Read a request's inputs; see `decode`."""
    return decode("input", request.inputs, request.raw_input_contents)


def read_outputs(response: ModelInferResponse) -> dict[str, Array]:
    """Read a response's outputs; see `decode`."""
    return decode("output", response.outputs, response.raw_output_contents)


def names(values: Iterable[str]) -> str:
    """Return names as an error lists them."""
    return ", ".join(map(repr, values)) or "none"
