"""Messages that are read and written by their form are what protobuf makes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from cellport.serve import codec
from cellport.serve.forms import ReplyWriter, RequestReader, size_of
from cellport.serve.parameters import read_outputs_wanted, read_parameters
from cellport.serve.requests import Reply

TYPES = ["INT64", "FP32", "UINT8", "FP64", "BOOL", "BYTES"]
NAMES = st.text(max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> ModelInferRequest:
    """A request with what may be right and wrong about one."""
    message = ModelInferRequest(model_name=draw(NAMES), model_version=draw(NAMES), id=draw(st.text(max_size=200)))
    for name in draw(st.lists(NAMES, max_size=3)):
        datatype = draw(st.sampled_from(TYPES))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        size = int(np.prod(shape)) * codec.numpy_dtype(datatype).itemsize + draw(st.sampled_from([0, 0, 0, 1]))
        if draw(st.integers(0, 9)):
            message.raw_input_contents.append(bytes(size))
        else:
            message.inputs[-1].contents.int64_contents.extend([1] * 2)
    for name in draw(st.lists(NAMES, max_size=2)):
        message.outputs.add(name=name)
    if draw(st.booleans()):
        message.parameters["sequence_id"].int64_param = draw(st.integers(-1, 2**63 - 1))
        message.parameters["sequence_start"].bool_param = draw(st.booleans())
    if draw(st.integers(0, 9)) == 9:
        message.parameters["timeout"].string_param = "soon"
    return message


def outcome(read: object) -> object:
    """What a call returns or refuses, in a form that can be compared."""
    assert callable(read)
    try:
        found = read()
    except InvalidRequestError as error:
        return str(error)
    if isinstance(found, dict):
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in found.items()}
    return found


@settings(max_examples=200, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4))
def test_a_request_is_read_as_protobuf_reads_it_the_first_time_and_ever_after(
    messages: list[ModelInferRequest],
) -> None:
    reader = RequestReader()
    for message in [*messages, *messages]:
        received = reader.read(message.SerializeToString())
        assert (received.model, received.version, received.id) == (
            message.model_name,
            message.model_version,
            message.id.encode(),
        )
        expected = outcome(lambda message=message: read_parameters(message.parameters))
        assert (str(received.error) if received.error else received.parameters) == expected
        assert outcome(received.inputs) == outcome(lambda message=message: codec.read_inputs(message))
        assert outcome(received.outputs) == read_outputs_wanted(message.outputs)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.binary(max_size=3))
def test_bytes_that_are_no_request_are_refused_and_not_guessed_at(data: bytes, at: int, wrong: bytes) -> None:
    whole = ModelInferRequest(model_name="m", id="1", raw_input_contents=[b"12345678"])
    whole.inputs.add(name="x", datatype="INT64", shape=[1])
    right = whole.SerializeToString()
    reader = RequestReader()
    assert reader.read(right).inputs()["x"].tolist() == np.frombuffer(b"12345678", np.int64).tolist()
    at = min(at, len(right))
    for each in (data, right[:at], right[:at] + wrong + right[at:]):
        try:
            expected = ModelInferRequest.FromString(each)
        except Exception:
            with pytest.raises(InvalidRequestError, match=rf"^{len(each)} bytes are not a ModelInferRequest$"):
                reader.read(each)
            continue
        received = reader.read(each)
        assert (received.model, received.id) == (expected.model_name, expected.id.encode())
        assert outcome(received.inputs) == outcome(lambda expected=expected: codec.read_inputs(expected))


def test_a_request_of_a_known_form_is_not_parsed_as_a_whole() -> None:
    reader = RequestReader()
    for number in range(3):
        message = ModelInferRequest(model_name="m", id=str(number), raw_input_contents=[bytes(8)])
        message.inputs.add(name="x", datatype="INT64", shape=[1])
        message.parameters["sequence_id"].int64_param = 7
        received = reader.read(message.SerializeToString())
        assert received.message is None
        assert received.form is not None
    assert received.form is reader.read(message.SerializeToString()).form


def step(length: int, **parameters: int) -> ModelInferRequest:
    """A request of one tensor, without an id, as most steps of a stream are."""
    message = ModelInferRequest(model_name="m", raw_input_contents=[bytes(range(8 * length))])
    message.inputs.add(name="x", datatype="INT64", shape=[1, length])
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return message


def test_messages_with_one_head_are_read_by_it_and_only_they() -> None:
    reader = RequestReader()
    messages = [step(length, **given) for length in (1, 2) for given in ({}, {"a": 7})]
    heads = [reader.read(message.SerializeToString()).head for message in messages]
    assert len({id(head) for head in heads}) == 4
    other = step(2)
    other.raw_input_contents[0] = bytes(16)
    received = reader.read(other.SerializeToString())
    assert received.head is heads[2]
    assert received.inputs()["x"].tolist() == [[0, 0]]


END = [
    b"",
    ModelInferRequest(id="seven").SerializeToString(),
    ModelInferRequest(id="123456").SerializeToString(),
    ModelInferRequest(raw_input_contents=[bytes(6)]).SerializeToString(),
    ModelInferRequest(raw_input_contents=[bytes(8)]).SerializeToString(),
    step(1, sequence_id=7).SerializeToString()[: -10 - 8],
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from([{}, {"sequence_id": 7}, {"sequence_id": 70_000}]),
            st.sampled_from(END),
            st.integers(0, 20),
        ),
        max_size=12,
    )
)
def test_what_was_read_before_changes_nothing(drawn: list[tuple[int, dict[str, int], bytes, int]]) -> None:
    """Messages of equal sizes, with fields behind the contents, or cut short, as a new reader reads them."""

    def read(reader: RequestReader, data: bytes) -> object:
        try:
            found = reader.read(data)
        except InvalidRequestError as error:
            return str(error)
        inputs = outcome(found.inputs)
        return found.model, found.id, str(found.error), found.parameters, inputs

    reader = RequestReader()
    for length, parameters, end, short in drawn:
        data = step(length, **parameters).SerializeToString() + end
        data = data[: len(data) - short] if short > 12 else data
        assert read(reader, data) == read(RequestReader(), data)


def test_an_identifier_that_is_no_text_is_refused_in_a_known_form_too() -> None:
    message = ModelInferRequest(model_name="m", id="@", raw_input_contents=[bytes(8)])
    message.inputs.add(name="x", datatype="INT64", shape=[1])
    data = message.SerializeToString()
    reader = RequestReader()
    assert reader.read(data).id == b"@"
    with pytest.raises(InvalidRequestError, match=r"bytes are not a ModelInferRequest"):
        reader.read(data.replace(b"@", b"\xff"))


ARRAYS = st.sampled_from(
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2],
        np.zeros((0, 3), np.float64),
        np.array([[b"a", "ü"]], object),
        np.array([True, False]),
        np.float16(1.5).reshape(()),
        np.zeros(40_000, np.uint8),
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.dictionaries(st.text(min_size=1, max_size=2), ARRAYS, max_size=3)), max_size=3),
    st.text(max_size=200),
    st.sampled_from([None, "stop"]),
    st.sampled_from([None, 7, "seven"]),
    st.sampled_from([None, True, False]),
)
def test_a_reply_is_written_so_that_protobuf_reads_it(
    replies: list[tuple[str, dict[str, codec.Array]]],
    request_id: str,
    finish: str | None,
    sequence_id: int | str | None,
    final: bool | None,
) -> None:
    writer = ReplyWriter()
    for model, outputs in [*replies, *replies]:
        reply = Reply(model=model, version="3", outputs=outputs, finish=finish, sequence_id=sequence_id)
        parameters = None if final is None else {"triton_final_response": final}
        message = ModelStreamInferResponse.FromString(
            writer.write_streamed(reply, request_id.encode(), parameters)
        ).infer_response
        if parameters is None:
            assert message == ModelInferResponse.FromString(writer.write(reply, request_id.encode()))
        assert (message.model_name, message.model_version, message.id) == (model, "3", request_id)
        expected = ModelInferResponse()
        codec.write_outputs(expected, outputs)
        assert message.outputs == expected.outputs
        assert message.raw_output_contents == expected.raw_output_contents
        values = {
            name: getattr(each, str(each.WhichOneof("parameter_choice"))) for name, each in message.parameters.items()
        }
        wanted = {"finish_reason": finish, "sequence_id": sequence_id, "triton_final_response": final}
        assert values == {name: value for name, value in wanted.items() if value is not None}


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16383, 16384, 2**21 - 1, 2**21])
def test_a_size_is_written_as_protobuf_does(size: int) -> None:
    data = ModelInferResponse(raw_output_contents=[bytes(size)]).SerializeToString()
    assert data == b"\x32" + size_of(size) + bytes(size)
