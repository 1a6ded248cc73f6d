"""The parameters of a request that the server understands; others are ignored, as the protocol wants."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import InferParameter, ModelInferRequest

from .generation import Sampling
from .requests import Control

_MARKS = ("sequence_start", "sequence_end", "sequence_step")
_NO_STEP = -1
_MICROSECONDS = "microseconds of at least 0 as int64_param"
_STEP = "the number of the step, at least 0, as int64_param"

Value = bool | int | str | float | None
T = TypeVar("T", bound=bool | int | str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """What the parameters of a request say.

    Attributes:
        control: the request's place in a sequence, or of each of its rows in a sequence of its own; None outside one.
        new: it starts a sequence under an id that the server chooses.
        timeout: seconds after which it is to be dropped; None for no limit.
        priority: 0 for the default.
        final: its last response is to be marked.
        state: the states after it are to be answered too.
        sampling: how to go on from the request, if it is a prompt.
    """

    control: Control | list[Control] | None = None
    new: bool = False
    timeout: float | None = None
    priority: int = 0
    final: bool = False
    state: bool = False
    sampling: Sampling | None = None


_NONE = Parameters()


def read_parameters(parameters: Mapping[str, InferParameter]) -> Parameters:
    """Read the parameters of a request.

    Raises:
        InvalidRequestError: one that the server understands has the wrong type or value.
    """
    if not parameters:
        return _NONE
    given: dict[str, Value] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            given[name] = getattr(parameter, choice)
    microseconds = _read(given, "timeout", int, _MICROSECONDS, 0)
    if microseconds < 0:
        raise InvalidRequestError(f"parameter 'timeout' is {microseconds}; accepted: {_MICROSECONDS}")
    new = _read(given, "sequence_new", bool, "bool_param", False)
    return Parameters(
        control=_read_many(given) if "sequence_ids" in given else _read_one(given, new=new),
        new=new,
        timeout=microseconds / 1e6 if microseconds else None,
        priority=_read(given, "priority", int, "an integer of at least 0", 0),
        final=_read(given, "triton_enable_empty_final_response", bool, "bool_param", False),
        state=_read(given, "return_state", bool, "bool_param", False),
        sampling=_read_sampling(given) if "max_tokens" in given else None,
    )


def _read(given: Mapping[str, Value], name: str, kind: type[T], accepted: str, default: T) -> T:
    value = given.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise InvalidRequestError(f"parameter {name!r} is {value!r}; accepted: {accepted}")
    return value


def _read_one(given: Mapping[str, Value], *, new: bool) -> Control | None:
    sequence_id = given.get("sequence_id")
    start = _read(given, "sequence_start", bool, "bool_param", False)
    end = _read(given, "sequence_end", bool, "bool_param", False)
    step = _read(given, "sequence_step", int, _STEP, _NO_STEP)
    if isinstance(sequence_id, bool | float):
        raise InvalidRequestError(f"parameter 'sequence_id' is {sequence_id!r}; accepted: int64_param or string_param")
    if sequence_id:
        return Control(id=sequence_id, start=start, end=end, step=None if step == _NO_STEP else step)
    if new and not end and step == _NO_STEP:
        return None
    for mark, marked in zip(_MARKS, (start, end, step != _NO_STEP), strict=True):
        if marked:
            raise InvalidRequestError(
                f"parameter {mark!r} is set but 'sequence_id' is {sequence_id!r}; accepted: an id"
            )
    return None


def _read_sampling(given: Mapping[str, Value]) -> Sampling:
    def number(name: str, default: float) -> float:
        value = given.get(name, default)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with contextlib.suppress(ValueError):
                return float(value)
        # Triton's client has no form for floats.
        raise InvalidRequestError(
            f"parameter {name!r} is {value!r}; accepted: a number as double_param, int64_param or string_param"
        )

    stop = given.get("stop_tokens")
    if type(stop) is int:
        stop_tokens = [stop]
    else:
        stop_tokens = _read_list(given, "stop_tokens", "a token as int64_param, or a JSON array of tokens")
    if any(type(each) is not int for each in stop_tokens):
        raise InvalidRequestError(f"parameter 'stop_tokens' is {stop!r}; accepted: integers")
    return Sampling(
        max_tokens=_read(given, "max_tokens", int, "int64_param", 0),
        temperature=number("temperature", 0.0),
        top_k=_read(given, "top_k", int, "int64_param", 0),
        top_p=number("top_p", 1.0),
        seed=_read(given, "seed", int, "int64_param", 0) if "seed" in given else None,
        stop_tokens=tuple(stop_tokens),
        token_input=_read(given, "token_input", str, "string_param", ""),
        scores_output=_read(given, "scores_output", str, "string_param", ""),
    )


def _read_many(given: Mapping[str, Value]) -> list[Control]:
    for name in ("sequence_id", "sequence_start", "sequence_end", "sequence_step", "sequence_new"):
        if name in given:
            raise InvalidRequestError(f"parameters {name!r} and 'sequence_ids' are both given; accepted: one of both")
    ids = _read_list(given, "sequence_ids", "a JSON array of ids, one for each row")
    rows = range(len(ids))
    marks: dict[str, set[int]] = {}
    for name in ("sequence_starts", "sequence_ends"):
        found = _read_list(given, name, "a JSON array of the numbers of rows, from 0")
        wrong = [each for each in found if type(each) is not int or each not in rows]
        if wrong:
            raise InvalidRequestError(f"parameter {name!r} names row {wrong[0]!r}; accepted: 0 to {len(ids) - 1}")
        marks[name] = set(found)
    steps = _read_list(given, "sequence_steps", "a JSON array of numbers, one for each row") or [None] * len(ids)
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


def _read_list(given: Mapping[str, Value], name: str, accepted: str) -> list[Any]:
    text = _read(given, name, str, f"{accepted}, as string_param", "[]")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise InvalidRequestError(f"parameter {name!r} is {text!r:.200}; accepted: {accepted}")
    return found


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
