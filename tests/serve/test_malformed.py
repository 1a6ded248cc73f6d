"""Requests that are wrong are refused for what is wrong with them, and good requests in between never notice."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pytest

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import ModelInferRequest, ModelInferResponse
from cellport.serve import Server
from cellport.serve.status import Status, status_of

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
TOKENS = np.arange(6, dtype=np.int64).reshape(2, 3)


def good(model: str = "lstm") -> ModelInferRequest:
    """A request that is right in everything."""
    request = ModelInferRequest(model_name=model, id="good")
    request.inputs.add(name="tokens", datatype="INT64", shape=[2, 3])
    request.raw_input_contents.append(TOKENS.tobytes())
    return request


def edited(edit: Callable[[Any], Any], model: str = "lstm") -> ModelInferRequest:
    request = good(model)
    edit(request)
    return request


def tensor(request: Any, name: str, datatype: str, shape: list[int], data: bytes) -> None:
    """Add an input."""
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(data)


def replaced(datatype: str, shape: list[int], data: bytes) -> ModelInferRequest:
    """The good request with other tokens."""
    request = ModelInferRequest(model_name="lstm")
    tensor(request, "tokens", datatype, shape, data)
    return request


def tokens(*values: int, shape: tuple[int, ...] | None = None) -> ModelInferRequest:
    return replaced("INT64", list(shape or (1, len(values))), np.array(values, np.int64).tobytes())


def typed(datatype: str, shape: list[int], **contents: Any) -> ModelInferRequest:
    """The good request with typed contents."""
    request = ModelInferRequest(model_name="lstm")
    request.inputs.add(name="tokens", datatype=datatype, shape=shape, contents=contents)
    return request


def with_lengths(*lengths: int) -> ModelInferRequest:
    values = np.array(lengths, np.int64)
    return edited(lambda r: tensor(r, "lengths", "INT64", [len(lengths)], values.tobytes()))


def stepping(model: str = "lstm", rows: int = 1, **parameters: Any) -> ModelInferRequest:
    """A step of a sequence."""
    request = ModelInferRequest(model_name=model)
    tensor(request, "tokens", "INT64", [rows, 1], b"\0" * 8 * rows)
    for name, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(request.parameters[name], field, value)
    return request


def with_parameter(name: str, **value: Any) -> ModelInferRequest:
    request = good()
    for field, each in value.items():
        setattr(request.parameters[name], field, each)
    return request


def with_state(name: str, shape: list[int], datatype: str = "FP32", size: int = 4) -> ModelInferRequest:
    return edited(lambda r: tensor(r, name, datatype, shape, b"\0" * size * int(np.prod(shape))))


@dataclass(frozen=True)
class Case:
    """A wrong request, its status, and what the message has to name."""

    name: str
    request: ModelInferRequest
    status: grpc.StatusCode
    parts: tuple[str, ...]


def case(name: str, request: ModelInferRequest, status: grpc.StatusCode, *parts: str) -> Case:
    return Case(name, request, status, parts)


CASES = [
    case("unknown model", edited(lambda r: setattr(r, "model_name", "nobody")), NOT_FOUND, "'nobody'", "'lstm'"),
    case("empty model", edited(lambda r: setattr(r, "model_name", "")), NOT_FOUND, "model ''"),
    case("unknown version", edited(lambda r: setattr(r, "model_version", "3")), NOT_FOUND, "'3'", "1, 2"),
    case("word as version", edited(lambda r: setattr(r, "model_version", "new")), NOT_FOUND, "'new'"),
    case("no inputs", ModelInferRequest(model_name="lstm"), INVALID, "'tokens' is missing"),
    case(
        "only lengths",
        ModelInferRequest(
            model_name="lstm",
            inputs=[{"name": "lengths", "datatype": "INT64", "shape": [1]}],  # type: ignore[list-item]
            raw_input_contents=[b"\1" + b"\0" * 7],
        ),
        INVALID,
        "'tokens' is missing",
        "'lengths'",
    ),
    case(
        "unexpected input", edited(lambda r: tensor(r, "text", "INT64", [1], b"\0" * 8)), INVALID, "'text'", "'tokens'"
    ),
    case("input twice", edited(lambda r: tensor(r, "tokens", "INT64", [1, 1], b"\0" * 8)), INVALID, "more than once"),
    case(
        "input without a name", edited(lambda r: tensor(r, "", "INT64", [1], b"\0" * 8)), INVALID, "number 1", "empty"
    ),
    case("wrong datatype", replaced("INT32", [2, 3], b"\0" * 24), INVALID, "'tokens'", "INT32", "INT64"),
    case("float tokens", replaced("FP32", [2, 3], b"\0" * 24), INVALID, "FP32", "INT64"),
    case("unknown datatype", replaced("INT128", [2, 3], b"\0" * 96), INVALID, "'INT128'", "UINT64"),
    case("empty datatype", replaced("", [2, 3], b"\0" * 48), INVALID, "datatype ''"),
    case("lower-case datatype", replaced("int64", [2, 3], b"\0" * 48), INVALID, "'int64'"),
    case("bfloat16 tokens", replaced("BF16", [2, 3], b"\0" * 12), INVALID, "BF16", "INT64"),
    case("too few axes", replaced("INT64", [6], b"\0" * 48), INVALID, "'tokens'", "[6]", "2 axes"),
    case("too many axes", replaced("INT64", [2, 3, 1], b"\0" * 48), INVALID, "[2, 3, 1]", "2 axes"),
    case("no axes", replaced("INT64", [], b"\0" * 8), INVALID, "shape [] of 0 axes"),
    case("a hundred axes", replaced("INT64", [1] * 100, b"\0" * 8), INVALID, "100 axes"),
    case("no rows", replaced("INT64", [0, 3], b""), INVALID, "[0, 3]", "'batch' must be at least 1"),
    case("no steps", replaced("INT64", [3, 0], b""), INVALID, "[3, 0]", "'time' must be at least 1"),
    case("negative axis", replaced("INT64", [-2, 3], b"\0" * 48), INVALID, "[-2, 3]", "at least 0"),
    case("two negative axes", replaced("INT64", [-2, -3], b"\0" * 48), INVALID, "[-2, -3]", "at least 0"),
    case("overflowing shape", replaced("INT64", [2**32, 2**32], b""), INVALID, "[4294967296, 4294967296]"),
    case("overflow to the right size", replaced("INT64", [2**62 + 1, 4], b"\0" * 32), INVALID, "4611686018427387905"),
    case("huge empty shape", replaced("INT64", [0, 2**62, 2**62], b""), INVALID, "'tokens'"),
    case("too few bytes", replaced("INT64", [2, 3], b"\0" * 47), INVALID, "47 raw bytes", "needs 48"),
    case("too many bytes", replaced("INT64", [2, 3], b"\0" * 56), INVALID, "56 raw bytes", "needs 48"),
    case("no bytes", replaced("INT64", [2, 3], b""), INVALID, "0 raw bytes", "needs 48"),
    case("raw entry too many", edited(lambda r: r.raw_input_contents.append(b"")), INVALID, "2 entries for 1 inputs"),
    case(
        "raw entry missing",
        edited(lambda r: r.inputs.add(name="lengths", datatype="INT64", shape=[2])),
        INVALID,
        "1 entries for 2 inputs",
    ),
    case(
        "raw and typed contents mixed",
        edited(lambda r: r.inputs[0].contents.int64_contents.extend(range(6))),
        INVALID,
        "'tokens'",
        "raw_input_contents",
    ),
    case("no contents at all", typed("INT64", [2, 3]), INVALID, "0 elements in int64_contents", "needs 6"),
    case("too few elements", typed("INT64", [2, 3], int64_contents=[1]), INVALID, "1 elements", "needs 6"),
    case("the wrong list", typed("INT64", [1, 1], int_contents=[1]), INVALID, "int_contents", "int64_contents"),
    case("two lists", typed("INT64", [1, 1], int64_contents=[1], fp32_contents=[1]), INVALID, "fp32_contents"),
    case("element outside its type", typed("INT8", [1, 1], int_contents=[300]), INVALID, "300", "-128 to 127"),
    case("typed FP16", typed("FP16", [1, 1], fp32_contents=[1]), INVALID, "FP16", "raw contents only"),
    case("BYTES that end early", replaced("BYTES", [1, 1], b"\x09\0\0\0ab"), INVALID, "length 9", "6 raw bytes"),
    case("BYTES that go on", replaced("BYTES", [1, 1], b"\0\0\0\0ab"), INVALID, "6 raw bytes", "end at 4"),
    case("BOOL of two", replaced("BOOL", [1, 2], b"\x00\x02"), INVALID, "byte 2", "0 and 1"),
    case("token below the table", tokens(3, -1), INVALID, "'tokens'", "-1 at [0, 1]", "0 to 49"),
    case("token above the table", tokens(50), INVALID, "50 at [0, 0]", "0 to 49"),
    case("huge token", tokens(2**63 - 1), INVALID, "9223372036854775807", "0 to 49"),
    case("negative length", with_lengths(3, -1), INVALID, "'lengths'", "-1 for row 1", "0 to 3"),
    case("length beyond the time axis", with_lengths(4, 1), INVALID, "4 for row 0", "0 to 3"),
    case("lengths of other rows", with_lengths(1, 2, 3), INVALID, "'lengths'", "'batch' must be 2"),
    case("state of other rows", with_state("h", [1, 1, 8]), INVALID, "'h'", "'batch' must be 2"),
    case("state not batch-first", with_state("h", [1, 2, 8]), INVALID, "'h'", "[1, 2, 8]"),
    case("state of another width", with_state("c", [2, 1, 9]), INVALID, "'c'", "[2, 1, 9]", "8"),
    case("state of another type", with_state("h", [2, 1, 8], "FP64", 8), INVALID, "'h'", "FP64", "FP32"),
    case("state output sent as input", with_state("h_out", [2, 1, 8]), INVALID, "'h_out'"),
    case("unknown output", edited(lambda r: r.outputs.add(name="tag")), INVALID, "'tag'", "'tags'"),
    case("output twice", edited(lambda r: [r.outputs.add(name="last") for _ in "ab"]), INVALID, "'last'", "once"),
    case(
        "classification",
        edited(lambda r: r.outputs.add(name="last", parameters={"classification": {"int64_param": 3}})),
        INVALID,
        "'classification'",
    ),
    case(
        "shared memory",
        edited(lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "a")),
        INVALID,
        "shared memory",
    ),
    case("step before the start", stepping(sequence_id=901), NOT_FOUND, "901", "never started"),
    case("end before the start", stepping(sequence_id="x", sequence_end=True), NOT_FOUND, "'x'", "never started"),
    case("start without an id", stepping(sequence_start=True), INVALID, "'sequence_start'", "'sequence_id'"),
    case("start of id 0", stepping(sequence_id=0, sequence_start=True), INVALID, "'sequence_id' is 0"),
    case("end of an empty id", stepping(sequence_id="", sequence_end=True), INVALID, "'sequence_end'"),
    case("fraction as id", stepping(sequence_id=1.5), INVALID, "'sequence_id'", "1.5"),
    case("boolean as id", stepping(sequence_id=True), INVALID, "'sequence_id'", "True"),
    case("number as start", stepping(sequence_id=5, sequence_start=1), INVALID, "'sequence_start'", "bool_param"),
    case("long id", stepping(sequence_id="i" * 300, sequence_start=True), INVALID, "300 characters", "256"),
    case("two rows of one id", stepping(rows=2, sequence_id=5, sequence_start=True), INVALID, "2 rows", "1 row"),
    case("sequence of a stateless model", stepping("fussy", sequence_id=5, sequence_start=True), INVALID, "no states"),
    case(
        "sequence of an acausal model", stepping("acausal", sequence_id=5, sequence_start=True), INVALID, "not causal"
    ),
    case("negative timeout", with_parameter("timeout", int64_param=-5), INVALID, "'timeout'", "-5"),
    case("timeout in words", with_parameter("timeout", string_param="soon"), INVALID, "'timeout'", "'soon'"),
    case("negative priority", with_parameter("priority", int64_param=-1), INVALID, "priority", "-1"),
]


@pytest.fixture
def call(server: Server) -> Any:
    with grpc.insecure_channel(server.address) as channel:
        yield channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")


def test_there_are_at_least_forty_cases_and_their_names_differ() -> None:
    assert len({each.name for each in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("wrong", CASES, ids=lambda case: case.name)
def test_a_wrong_request_is_refused_by_name_and_a_good_one_is_answered_as_before(call: Any, wrong: Case) -> None:
    before = call(good().SerializeToString(), timeout=30)
    with pytest.raises(grpc.RpcError) as refusal:
        call(wrong.request.SerializeToString(), timeout=30)
    assert refusal.value.code() == wrong.status, refusal.value.details()
    for part in wrong.parts:
        assert part in refusal.value.details()
    after = call(good().SerializeToString(), timeout=30)
    assert ModelInferResponse.FromString(after) == ModelInferResponse.FromString(before)


def test_bytes_that_are_no_message_are_refused(call: Any) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        call(b"\xff\xff\xff", timeout=30)
    assert refusal.value.code() == INVALID
    assert "3 bytes" in refusal.value.details()
    assert "ModelInferRequest" in refusal.value.details()


def test_a_refusal_of_a_long_value_keeps_its_status() -> None:
    """gRPC would turn a message above its limit on metadata into RESOURCE_EXHAUSTED, which means: try again."""
    status, text = status_of(InvalidRequestError("語" * 20_000))
    assert status is Status.INVALID_ARGUMENT
    assert text.endswith("…")
    assert len(quote(text)) < 8192
    assert status_of(InvalidRequestError("short")) == (Status.INVALID_ARGUMENT, "short")
