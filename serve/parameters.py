"""The parameters of a request that the server understands; others are ignored, as the protocol wants."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import InferParameter, ModelInferRequest

from .requests import Control

_MARKS = ("sequence_start", "sequence_end", "sequence_step")
_NO_STEP = -1
_STEP = "the number of the step, at least 0, as int64_param"

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


def read_control(parameters: Mapping[str, InferParameter]) -> Control | list[Control] | None:
    """Return a request's place in a sequence, or of each of its rows in a sequence of its own; None outside one.

    Raises:
        InvalidRequestError: a parameter has the wrong type, or marks a step of no sequence.
    """
    if "sequence_ids" in parameters:
        return _read_many(parameters)
    start = _read(parameters, "sequence_start", bool, "bool_param", False)
    end = _read(parameters, "sequence_end", bool, "bool_param", False)
    step = _read(parameters, "sequence_step", int, _STEP, _NO_STEP)
    sequence_id = _value(parameters, "sequence_id")
    if isinstance(sequence_id, bool | float):
        raise InvalidRequestError(f"parameter 'sequence_id' is {sequence_id!r}; accepted: int64_param or string_param")
    if not sequence_id:
        if read_new(parameters):
            return None
        for mark, given in zip(_MARKS, (start, end, step != _NO_STEP), strict=True):
            if given:
                raise InvalidRequestError(
                    f"parameter {mark!r} is set but 'sequence_id' is {sequence_id!r}; accepted: an id"
                )
        return None
    return Control(id=sequence_id, start=start, end=end, step=None if step == _NO_STEP else step)


def read_new(parameters: Mapping[str, InferParameter]) -> bool:
    """Return whether a request starts a sequence under an id that the server chooses.

    Raises:
        InvalidRequestError: the parameter has the wrong type.
    """
    return _read(parameters, "sequence_new", bool, "bool_param", False)


def wants_state(parameters: Mapping[str, InferParameter]) -> bool:
    """Return whether the states after a request are to be answered too.

    Raises:
        InvalidRequestError: the parameter has the wrong type.
    """
    return _read(parameters, "return_state", bool, "bool_param", False)


def _read_many(parameters: Mapping[str, InferParameter]) -> list[Control]:
    for name in ("sequence_id", "sequence_start", "sequence_end", "sequence_step", "sequence_new"):
        if name in parameters:
            raise InvalidRequestError(f"parameters {name!r} and 'sequence_ids' are both given; accepted: one of both")
    ids = _read_list(parameters, "sequence_ids", "a JSON array of ids, one for each row")
    rows = range(len(ids))
    marks: dict[str, set[int]] = {}
    for name in ("sequence_starts", "sequence_ends"):
        found = _read_list(parameters, name, "a JSON array of the numbers of rows, from 0")
        wrong = [each for each in found if type(each) is not int or each not in rows]
        if wrong:
            raise InvalidRequestError(f"parameter {name!r} names row {wrong[0]!r}; accepted: 0 to {len(ids) - 1}")
        marks[name] = set(found)
    steps = _read_list(parameters, "sequence_steps", "a JSON array of numbers, one for each row") or [None] * len(ids)
    if len(steps) != len(ids) or any(each is not None and type(each) is not int for each in steps):
        raise InvalidRequestError(
            f"parameter 'sequence_steps' is {steps!r:.200}; accepted: {len(ids)} integers, one for each row"
        )
    for each in ids:
        if type(each) not in (int, str):
            raise InvalidRequestError(f"parameter 'sequence_ids' holds {each!r}; accepted: integers and strings")
    starts, ends = marks["sequence_starts"], marks["sequence_ends"]
    return [
        Control(id=each, start=row in starts, end=row in ends, step=step)
        for row, (each, step) in enumerate(zip(ids, steps, strict=True))
    ]


def _read_list(parameters: Mapping[str, InferParameter], name: str, accepted: str) -> list[Any]:
    text = _read(parameters, name, str, f"{accepted}, as string_param", "[]")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise InvalidRequestError(f"parameter {name!r} is {text!r:.200}; accepted: {accepted}")
    return found


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
