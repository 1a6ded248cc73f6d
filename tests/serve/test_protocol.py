"""tritonclient's synchronous gRPC client works against the server."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from cellport import __version__
from cellport.serve import Server

from .wire import triton_input

Triton = triton_grpc.InferenceServerClient


def onnxruntime_alone(folder: Path, name: str, feeds: dict[str, Any], version: str = "1") -> dict[str, Any]:
    session = onnxruntime.InferenceSession(folder / name / version / "model.onnx")
    outputs = [each.name for each in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


def test_live_and_ready_answer_true(triton: Triton) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("lstm")
    assert triton.is_model_ready("lstm", "1")


def test_server_metadata_names_the_server_and_its_extensions(triton: Triton) -> None:
    metadata = triton.get_server_metadata()
    assert (metadata.name, metadata.version) == ("cellport", __version__)
    assert "sequence" in metadata.extensions


def test_model_metadata_lists_batch_first_tensors_and_no_states(triton: Triton) -> None:
    metadata = triton.get_model_metadata("lstm")
    assert list(metadata.versions) == ["1", "2"]
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
        ("tokens", "INT64", [-1, -1]),
        ("lengths", "INT64", [-1]),
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.outputs] == [
        ("tags", "FP32", [-1, -1, 4]),
        ("last", "FP32", [-1, 4]),
    ]


def test_model_metadata_lists_states_batch_first_when_the_calls_metadata_asks(triton: Triton) -> None:
    metadata = triton.get_model_metadata("lstm", headers={"cellport-states": "1"})
    states = [(each.name, list(each.shape)) for each in metadata.inputs][2:]
    assert states == [("h", [-1, 1, 8]), ("c", [-1, 1, 8])]
    assert [each.name for each in metadata.outputs][2:] == ["h_out", "c_out"]


def test_model_config_describes_tensors_without_the_batch_axis_and_the_sequences(triton: Triton) -> None:
    config = triton.get_model_config("gru").config
    assert (config.name, config.platform, config.max_batch_size) == ("gru", "onnxruntime_onnx", 64)
    assert [(each.name, list(each.dims), each.optional) for each in config.input] == [
        ("tokens", [-1], False),
        ("lengths", [], True),
    ]
    assert [(each.name, list(each.dims)) for each in config.output] == [("tags", [-1, 4]), ("last", [4])]
    assert [(each.input_name, each.output_name) for each in config.sequence_batching.state] == [("h", "h_out")]


def test_repository_index_lists_every_version_as_ready(triton: Triton) -> None:
    index = {(each.name, each.version, each.state) for each in triton.get_model_repository_index().models}
    assert {("lstm", "1", "READY"), ("lstm", "2", "READY"), ("gru", "1", "READY")} <= index


def test_an_inference_answers_what_onnxruntime_answers(triton: Triton, folder: Path) -> None:
    tokens = np.arange(10, dtype=np.int64).reshape(2, 5)
    result = triton.infer("lstm", [triton_input("tokens", tokens)], request_id="r1")
    expected = onnxruntime_alone(folder, "lstm", {"tokens": tokens}, "2")
    assert result.get_response().id == "r1"
    assert result.get_response().model_version == "2"
    assert [each.name for each in result.get_response().outputs] == ["tags", "last"]
    for name in ("tags", "last"):
        np.testing.assert_array_equal(result.as_numpy(name), expected[name])


def test_an_older_version_can_be_asked_for(triton: Triton, folder: Path) -> None:
    tokens = np.arange(5, dtype=np.int64).reshape(1, 5)
    result = triton.infer("lstm", [triton_input("tokens", tokens)], model_version="1")
    np.testing.assert_array_equal(
        result.as_numpy("last"), onnxruntime_alone(folder, "lstm", {"tokens": tokens})["last"]
    )


def test_only_the_outputs_asked_for_are_returned_and_states_are_batch_first(triton: Triton, folder: Path) -> None:
    tokens = np.arange(6, dtype=np.int64).reshape(3, 2)
    wanted = [triton_grpc.InferRequestedOutput("c_out"), triton_grpc.InferRequestedOutput("last")]
    result = triton.infer("lstm", [triton_input("tokens", tokens)], outputs=wanted)
    assert [each.name for each in result.get_response().outputs] == ["c_out", "last"]
    expected = onnxruntime_alone(folder, "lstm", {"tokens": tokens}, "2")["c_out"]
    np.testing.assert_array_equal(result.as_numpy("c_out"), expected.transpose(1, 0, 2))


def test_a_state_may_be_given_outside_a_sequence(triton: Triton) -> None:
    tokens = np.arange(12, dtype=np.int64).reshape(2, 6)
    whole = triton.infer("lstm", [triton_input("tokens", tokens)]).as_numpy("last")
    states = [triton_grpc.InferRequestedOutput(name) for name in ("h_out", "c_out")]
    first = triton.infer("lstm", [triton_input("tokens", tokens[:, :4])], outputs=states)
    inputs = [
        triton_input("tokens", tokens[:, 4:]),
        triton_input("h", first.as_numpy("h_out")),
        triton_input("c", first.as_numpy("c_out")),
    ]
    np.testing.assert_allclose(triton.infer("lstm", inputs).as_numpy("last"), whole, atol=1e-6)


def test_rows_start_at_a_learned_initial_value_and_at_a_required_states_zeros(triton: Triton, folder: Path) -> None:
    tokens = np.array([[3, 4]], np.int64)
    result = triton.infer("gru", [triton_input("tokens", tokens)])
    np.testing.assert_array_equal(result.as_numpy("last"), onnxruntime_alone(folder, "gru", {"tokens": tokens})["last"])
    result = triton.infer("sums", [triton_input("x", np.array([[1, 2, 3]], np.float32))])
    np.testing.assert_array_equal(result.as_numpy("sums"), [[1, 3, 6]])


def test_a_file_without_a_manifest_is_served_by_what_its_graph_says(triton: Triton) -> None:
    result = triton.infer("affine", [triton_input("x", np.ones((2, 3), np.float32))])
    np.testing.assert_array_equal(result.as_numpy("y"), np.full((2, 3), 3, np.float32))


def test_every_element_type_survives_the_way_there_and_back(triton: Triton) -> None:
    arrays = {
        "bool": np.array([[True, False]]),
        "string": np.array([[b"", "Zoë".encode()]], object),
        **{name: np.array([[1.5, -2]], name) for name in ("float16", "float32", "float64")},
        **{name: np.array([[np.iinfo(name).min, np.iinfo(name).max]], name) for name in _integers()},
    }
    result = triton.infer("every", [triton_input(name, array) for name, array in arrays.items()])
    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"{name}_out"), array)


def _integers() -> list[str]:
    return [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def test_asynchronous_calls_of_the_synchronous_client_are_answered(triton: Triton) -> None:
    import queue

    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    tokens = np.array([[1, 2, 3]], np.int64)
    for _ in range(5):
        triton.async_infer("lstm", [triton_input("tokens", tokens)], lambda result, error: answers.put((result, error)))
    expected = triton.infer("lstm", [triton_input("tokens", tokens)]).as_numpy("last")
    for _ in range(5):
        result, error = answers.get(timeout=30)
        assert error is None
        np.testing.assert_allclose(result.as_numpy("last"), expected, atol=1e-5)


def test_calls_that_are_not_served_answer_unimplemented(triton: Triton) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        triton.get_system_shared_memory_status()
    assert refusal.value.status() == "StatusCode.UNIMPLEMENTED"


def test_unknown_models_and_versions_answer_not_found(triton: Triton) -> None:
    for call in (triton.is_model_ready, triton.get_model_metadata, triton.get_model_config):
        with pytest.raises(InferenceServerException, match="'nobody' is not served") as refusal:
            call("nobody")
        assert refusal.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="no version '9'; accepted: 1, 2"):
        triton.is_model_ready("lstm", "9")


@pytest.mark.parametrize("front", ["grpcio"], indirect=True)
def test_a_server_may_share_an_engine_with_its_process(server: Server) -> None:
    with Server(server.engine, port=0) as second:
        connected = Triton(second.address)
        result = connected.infer("affine", [triton_input("x", np.zeros((1, 3), np.float32))])
        connected.close()
    np.testing.assert_array_equal(result.as_numpy("y"), np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(
        server.engine.infer("affine", {"x": np.zeros((1, 3), np.float32)})["y"], np.ones((1, 3), np.float32)
    )
