"""The parameters of a request that the server understands; others are ignored, as the protocol wants."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import InferParameter, ModelInferRequest

from .requests import Control

Value = bool | int | str | float | None
T = TypeVar("T", bound=bool | int | str)


def _value(parameters: Mapping[str, InferParameter], name: str) -> Value:
    if name not in parameters:
        return None
    parameter = parameters[name]
    choice = parameter.WhichOneof("parameter_choice")
    value: Value = None if choice is None else getattr(parameter, choice)
    return value


def _read(parameters: Mapping[str, InferParameter], name: str, kind: type[T], accepted: str, default: T) -> T:
    value = _value(parameters, name)
    if value is None:
        return default
    if type(value) is not kind:
        raise InvalidRequestError(f"parameter {name!r} is {value!r}; accepted: {accepted}")
    return value


def read_control(parameters: Mapping[str, InferParameter]) -> Control | None:
    """Return a request's place in a sequence; None outside one.

    Raises:
        InvalidRequestError: a parameter has the wrong type, or marks a step of no sequence.
    """
    start = _read(parameters, "sequence_start", bool, "bool_param", False)
    end = _read(parameters, "sequence_end", bool, "bool_param", False)
    sequence_id = _value(parameters, "sequence_id")
    if isinstance(sequence_id, bool | float):
        raise InvalidRequestError(f"parameter 'sequence_id' is {sequence_id!r}; accepted: int64_param or string_param")
    if not sequence_id:
        if start or end:
            mark = "sequence_start" if start else "sequence_end"
            raise InvalidRequestError(
                f"parameter {mark!r} is set but 'sequence_id' is {sequence_id!r}; accepted: an id"
            )
        return None
    return Control(id=sequence_id, start=start, end=end)


def read_timeout(parameters: Mapping[str, InferParameter]) -> float | None:
    """Return the seconds after which a request is to be dropped; None for no limit.

    Raises:
        InvalidRequestError: the parameter has the wrong type, or is negative.
    """
    microseconds = _read(parameters, "timeout", int, "microseconds of at least 0 as int64_param", 0)
    if microseconds < 0:
        raise InvalidRequestError(f"parameter 'timeout' is {microseconds}; accepted: microseconds of at least 0")
    return microseconds / 1e6 if microseconds else None


def read_priority(parameters: Mapping[str, InferParameter]) -> int:
    """Return a request's priority; 0 for the default.

    Raises:
        InvalidRequestError: the parameter has the wrong type.
    """
    return _read(parameters, "priority", int, "an integer of at least 0", 0)


def wants_final(parameters: Mapping[str, InferParameter]) -> bool:
    """Return whether the last response of a request is to be marked.

    Raises:
        InvalidRequestError: the parameter has the wrong type.
    """
    return _read(parameters, "triton_enable_empty_final_response", bool, "bool_param", False)


def read_outputs_wanted(outputs: Iterable[ModelInferRequest.InferRequestedOutputTensor]) -> tuple[str, ...]:
    """Return the names of the outputs that a request asks for.

    Raises:
        InvalidRequestError: an output is to be given in a way that is not served; ignoring that would answer something
            else than was asked.
    """
    wanted = []
    for output in outputs:
        for name in ("classification", "shared_memory_region"):
            if name in output.parameters:
                raise InvalidRequestError(f"output {output.name!r} has parameter {name!r}, which is not served")
        wanted.append(output.name)
    return tuple(wanted)
