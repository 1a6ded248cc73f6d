"""Tensors survive the way to the wire and back, and no bytes make the codec fail in an unforeseen way."""

import contextlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellport.errors import InvalidRequestError
from cellport.protos.inference_pb2 import InferTensorContents, ModelInferRequest
from cellport.serve import codec

DTYPES = ["bool", "float16", "float32", "float64"] + [f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)]
FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMBERS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
BYTES = hnp.arrays(object, SHAPES, elements=st.binary(max_size=8), fill=st.nothing())


def request_of(**tensor: Any) -> ModelInferRequest:
    request = ModelInferRequest()
    request.inputs.add(name="x", **tensor)
    return request


@settings(deadline=None)
@given(st.one_of(NUMBERS, BYTES))
def test_raw_contents_round_trip_bit_for_bit(array: Any) -> None:
    request = ModelInferRequest()
    codec.write_inputs(request, {"x": array})
    read = codec.read_inputs(ModelInferRequest.FromString(request.SerializeToString()))["x"]
    assert (read.shape, read.dtype) == (array.shape, array.dtype)
    assert codec.encode(read) == codec.encode(array)


@settings(deadline=None)
@given(st.one_of(NUMBERS.filter(lambda array: array.dtype != np.float16), BYTES))
def test_typed_contents_are_read_as_the_same_array(array: Any) -> None:
    datatype = codec.datatype_of(codec.dtype_of(array))
    contents = InferTensorContents(**{FIELDS[datatype]: array.ravel().tolist()})
    read = codec.read_inputs(request_of(datatype=datatype, shape=array.shape, contents=contents))["x"]
    assert (read.shape, read.dtype) == (array.shape, array.dtype)
    if array.dtype == object:
        assert read.tolist() == array.tolist()
    else:
        np.testing.assert_array_equal(read, array)


def test_bfloat16_is_read_as_opaque_elements_that_ml_dtypes_can_view() -> None:
    numbers = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    request = ModelInferRequest()
    codec.write_inputs(request, {"x": numbers})
    assert request.inputs[0].datatype == "BF16"
    read = codec.read_inputs(request)["x"]
    assert read.dtype == codec.BFLOAT16
    np.testing.assert_array_equal(read.view(ml_dtypes.bfloat16), numbers)
    assert codec.encode(read) == codec.encode(numbers)


def test_raw_contents_are_read_without_a_copy() -> None:
    request = ModelInferRequest()
    codec.write_inputs(request, {"x": np.arange(4)})
    read = codec.read_inputs(request)["x"]
    assert not read.flags.owndata
    assert not read.flags.writeable


def test_big_endian_and_strided_arrays_are_written_little_endian_in_row_major_order() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    datatype, data = codec.encode(array)
    assert (datatype, data) == ("INT32", np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes())


@pytest.mark.parametrize("array", [np.zeros(1, "datetime64[s]"), np.zeros(1, complex), np.array([1], object)])
def test_an_array_without_a_form_on_the_wire_is_refused(array: Any) -> None:
    with pytest.raises(InvalidRequestError, match="accepted"):
        codec.encode(array)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**62, 2**62], "more than 9223372036854775807 bytes"),
        ([2**33, 2**33, 2**33, 0], "x"),
        ([-1, -1], "axis 0 must be at least 0"),
        ([1] * 65, "65 axes; accepted: at most 64"),
        ([3], "8 raw bytes; shape [3] of INT64 needs 24"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: list[int], message: str) -> None:
    request = request_of(datatype="INT64", shape=shape)
    request.raw_input_contents.append(b"\0" * 8)
    with pytest.raises(InvalidRequestError) as refusal:
        codec.read_inputs(request)
    assert message in str(refusal.value)


def test_an_empty_tensor_may_have_any_other_axis_that_numpy_holds() -> None:
    request = request_of(datatype="INT64", shape=[0, 5])
    request.raw_input_contents.append(b"")
    assert codec.read_inputs(request)["x"].shape == (0, 5)


TENSORS = st.builds(
    ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["a", "b", ""]),
    datatype=st.sampled_from([*FIELDS, "FP16", "BF16", "", "INT65"]),
    shape=st.lists(st.one_of(st.integers(-2, 4), st.integers(-(2**63), 2**63 - 1)), max_size=4),
    contents=st.one_of(
        st.none(),
        st.builds(InferTensorContents, int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4)),
        st.builds(InferTensorContents, bytes_contents=st.lists(st.binary(max_size=4), max_size=4)),
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(TENSORS, max_size=3), st.lists(st.binary(max_size=40), max_size=3))
def test_any_combination_of_fields_is_read_or_refused(tensors: list[Any], raw: list[bytes]) -> None:
    request = ModelInferRequest(inputs=tensors, raw_input_contents=raw)
    with contextlib.suppress(InvalidRequestError):
        arrays = codec.read_inputs(request)
        assert [array.shape for array in arrays.values()] == [tuple(each.shape) for each in tensors]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 4), st.binary(max_size=40))
def test_any_raw_bytes_of_a_bytes_tensor_are_read_or_refused(count: int, data: bytes) -> None:
    request = request_of(datatype="BYTES", shape=[count])
    request.raw_input_contents.append(data)
    with contextlib.suppress(InvalidRequestError):
        assert codec.encode(codec.read_inputs(request)["x"]) == ("BYTES", data)
