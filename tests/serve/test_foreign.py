"""Stateful files that other tools wrote, described by a manifest beside them: served as cellport's own."""

import copy
import itertools
import json
import queue
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cellport.errors import ModelLoadError
from cellport.serve import Client, Engine, EngineSettings, Server, ServerSettings
from cellport.serve.server import Front
from cellport.serve.versions import RepositorySettings

from .foreign_models import HIDDEN, MANIFESTS, WIDTH, export, save_cell, save_meter
from .wire import triton_input

Outputs = dict[str, Any]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, with their manifests beside them."""
    root = tmp_path_factory.mktemp("foreign")
    for name, save in (("cell", save_cell), ("meter", save_meter)):
        folder = root / name / "1"
        folder.mkdir(parents=True)
        save(folder / "model.onnx")
        (folder / "manifest.json").write_text(json.dumps(MANIFESTS[name]))
    return root


@pytest.fixture(scope="module")
def served(foreign: Path, front: Front) -> Iterator[Server]:
    with Server(foreign, ServerSettings(front=front), port=0) as server:
        yield server


@pytest.fixture
def triton(served: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    connected = triton_grpc.InferenceServerClient(served.address)
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def serial(foreign: Path) -> Callable[[str, list[Any]], list[Outputs]]:
    """The truth: one sequence's steps, batch-first, one after another, by onnxruntime."""
    sessions = {name: onnxruntime.InferenceSession(foreign / name / "1" / "model.onnx") for name in MANIFESTS}

    def run(name: str, steps: list[Any]) -> list[Outputs]:
        session, pairs = sessions[name], [(each["input"], each["output"]) for each in MANIFESTS[name]["states"]]
        states = {
            state["input"]: np.zeros([1 if axis == "batch" else axis for axis in state["axes"]], np.float32)
            for state in MANIFESTS[name]["states"]
        }
        answers = []
        for x in steps:
            names = [each.name for each in session.get_outputs()]
            feeds = {"x": x if name == "cell" else x.swapaxes(0, 1), **states}
            found = dict(zip(names, session.run(names, feeds), strict=True))
            states = {before: found[after] for before, after in pairs}
            timed = {each["name"] for each in MANIFESTS[name]["outputs"] if "time" in each["axes"]}
            first = {**dict.fromkeys(timed, (0, 1)), "hn": (0, 1), "cn": (0, 1)}
            answers.append({key: array.swapaxes(*first.get(key, (0, 0))) for key, array in found.items()})
        return answers

    return run


def steps_of(name: str, seed: int, count: int = 8) -> list[Any]:
    """Steps of one sequence: of a row each, and for the model that has a time axis of 1 to 6 steps each."""
    drawn = np.random.default_rng(seed)
    shapes = [(1, WIDTH) if name == "cell" else (1, int(drawn.integers(1, 7)), WIDTH) for _ in range(count)]
    return [drawn.normal(0, 1, shape).astype(np.float32) for shape in shapes]


def same(answer: Any, expected: Outputs) -> None:
    for output in ("y", "totals"):
        if output in expected:
            np.testing.assert_allclose(answer.as_numpy(output), expected[output], atol=1e-5)


@pytest.mark.parametrize("name", MANIFESTS)
def test_sequences_by_calls_equal_a_serial_run(name: str, served: Server, serial: Any) -> None:
    """Of many clients at once, whose steps share runs."""

    def run(seed: int) -> None:
        client, steps = triton_grpc.InferenceServerClient(served.address), steps_of(name, seed)
        for number, (x, expected) in enumerate(zip(steps, serial(name, steps), strict=True)):
            control = {"sequence_start": number == 0, "sequence_end": number == len(steps) - 1}
            answer = client.infer(name, [triton_input("x", x)], sequence_id=1 + seed, **control)
            same(answer, expected)
        client.close()

    with ThreadPoolExecutor(8) as pool:
        assert len([*pool.map(run, range(16))]) == 16


@pytest.mark.parametrize("name", MANIFESTS)
def test_sequences_by_one_stream_equal_serial_runs(name: str, triton: Any, serial: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    steps = {seed: steps_of(name, seed) for seed in range(6)}
    expected = {f"{seed}.{number}": each for seed in steps for number, each in enumerate(serial(name, steps[seed]))}
    left = [seed for seed in steps for _ in steps[seed]]
    random.Random(0).shuffle(left)
    sent = dict.fromkeys(steps, 0)
    for seed in left:
        number, sent[seed] = sent[seed], sent[seed] + 1
        triton.async_stream_infer(
            name,
            [triton_input("x", steps[seed][number])],
            request_id=f"{seed}.{number}",
            sequence_id=100 + seed,
            sequence_start=number == 0,
            sequence_end=number == 7,
        )
    for _ in left:
        result, error = answers.get(timeout=30)
        assert error is None
        same(result, expected.pop(result.get_response().id))
    triton.stop_stream()
    assert not expected


def test_one_request_equals_its_chunks(triton: Any, serial: Any) -> None:
    """Rows of different requests are joined in axis 1, and told apart there."""
    steps = steps_of("meter", 3)
    whole = np.concatenate(steps, 1)
    three = np.concatenate([whole, whole[:, ::-1], -whole])
    answer = triton.infer("meter", [triton_input("x", three)])
    for row in range(3):
        [expected] = serial("meter", [three[row : row + 1]])
        for output in ("y", "totals"):
            np.testing.assert_allclose(answer.as_numpy(output)[row : row + 1], expected[output], atol=1e-5)
    pieces = [each["y"] for each in serial("meter", steps)]
    np.testing.assert_allclose(answer.as_numpy("y")[:1], np.concatenate(pieces, 1), atol=1e-5)


@pytest.mark.parametrize("name", MANIFESTS)
def test_states_may_stay_with_the_client(name: str, triton: Any, serial: Any) -> None:
    """They are answered batch-first where `return_state` asks for them, and may be given back so."""
    steps = steps_of(name, 4)
    states: list[Any] = []
    for x, expected in zip(steps, serial(name, steps), strict=True):
        answer = triton.infer(name, [triton_input("x", x), *states], parameters={"return_state": True})
        same(answer, expected)
        states = []
        for each in MANIFESTS[name]["states"]:
            array = answer.as_numpy(each["output"])
            np.testing.assert_allclose(array, expected[each["output"]], atol=1e-5)
            states.append(triton_input(each["input"], array))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_sequence_is_exported_imported_and_forked(name: str, served: Server, serial: Any) -> None:
    steps = steps_of(name, 5)
    expected = serial(name, steps)
    with Client(served.address) as client:
        sequence = client.sequence(name, f"{name} 1")
        for x in steps[:4]:
            sequence.step({"x": x})
        snapshot = client.export_state(name, sequence.id)
        assert {*snapshot.states} == {each["input"] for each in MANIFESTS[name]["states"]}
        names = [sequence.id, client.import_state(snapshot, f"{name} 2"), client.fork(name, sequence.id)]
        for number, each in itertools.product(range(4, 8), names):
            control = {"sequence_id": each, "sequence_end": number == 7}
            other = triton_grpc.InferenceServerClient(served.address)
            same(other.infer(name, [triton_input("x", steps[number])], **control), expected[number])
            other.close()


def at(manifest: Any, *path: Any) -> Any:
    for each in path:
        manifest = manifest[each]
    return manifest


def changed(*path: Any, to: Any) -> Callable[[Any], Any]:
    def change(manifest: Any) -> None:
        at(manifest, *path[:-1])[path[-1]] = to

    return change


def without(*path: Any) -> Callable[[Any], Any]:
    def change(manifest: Any) -> None:
        del at(manifest, *path[:-1])[path[-1]]

    return change


def swapped_axes(manifest: Any) -> None:
    for each in (*manifest["inputs"], *manifest["outputs"]):
        each["axes"] = ["batch", "time", each["axes"][2]]


WRONG = [
    ("meter", changed("inputs", 0, "name", to="frames"), "the manifest has input 'frames', the graph has x, total"),
    ("meter", changed("outputs", 0, "name", to="z"), "the manifest has output 'z', the graph has y, totals"),
    ("meter", changed("states", 0, "output", to="sum"), "the manifest has output 'sum', the graph has y, totals"),
    ("meter", without("states", 2), "the graph has input 'c0', which the manifest does not describe"),
    ("meter", changed("states", 2, "output", to="hn"), "output name 'hn' appears more than once"),
    ("meter", changed("states", 2, "output", to="total_n"), "output name 'total_n' appears more than once"),
    ("meter", changed("states", 2, "dtype", to="float64"), "says input 'c0' is float64, the graph says float32"),
    ("meter", changed("states", 1, "axes", 2, to=5), "says axis 2 of input 'h0' is 5, the graph says 4"),
    ("meter", changed("states", 1, "axes", to=["batch", 2, 4]), "axis 0 of input 'h0' is 'batch', the graph says 2"),
    ("meter", changed("states", 1, "axes", to=[2, 1, 4]), "state 'h0' has no axis 'batch': [2, 1, 4]"),
    ("meter", changed("states", 1, "axes", to=[2, "batch"]), "'h0' has axes [2, 'batch'], the graph says [2, 'B', 4]"),
    ("meter", changed("states", 1, "required", to=False), "input 'h0' is optional, the graph has no default for it"),
    ("meter", changed("outputs", 1, "axes", to=["time", "batch", 4]), "says axis 2 of output 'totals' is 4, the graph"),
    ("meter", changed("outputs", 1, "axes", 0, to="seconds"), "is to be concatenated but has no axis 'time'"),
    ("meter", swapped_axes, "a trial of 5 rows and 17 steps failed; given: 'x' [5, 17, 3], 'total' [5, 3]"),
    ("cell", changed("inputs", 0, "axes", to=["time", 3]), "a trial of 5 rows and 17 steps failed; given: 'x' [17, 3]"),
    ("cell", changed("version", to="2.0"), "the manifest has version '2.0'; accepted: 1.x"),
    ("cell", without("outputs"), "manifest has no field 'outputs'"),
    ("cell", changed("states", 0, to="h_in"), "manifest.states[0] is 'h_in'; an object is needed"),
    ("cell", changed("states", 0, "initial", to="AAAA"), "initial value of state 'h_in' does not have shape [1, 4]"),
    ("cell", changed("causal", to="yes"), "manifest.causal is 'yes'; its type is wrong"),
]


def text_of(name: str, change: Callable[[Any], Any]) -> str:
    manifest = copy.deepcopy(MANIFESTS[name])
    change(manifest)
    return json.dumps(manifest)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        *((name, text_of(name, change), message) for name, change, message in WRONG),
        ("cell", "{", "the manifest is not JSON"),
        ("cell", "[]", "the manifest is a JSON list; an object is needed"),
        ("cell", b"\xff\xfe{", "it is not UTF-8"),
    ],
    ids=[*(message[:60] for _, _, message in WRONG), "json", "list", "bytes"],
)
def test_a_wrong_manifest_is_refused_with_the_reason_and_takes_nothing_down(
    foreign: Path, tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    for each in MANIFESTS:
        (tmp_path / each / "1").mkdir(parents=True)
        (tmp_path / each / "1" / "model.onnx").hardlink_to(foreign / each / "1" / "model.onnx")
        (tmp_path / each / "1" / "manifest.json").write_text(json.dumps(MANIFESTS[each]))
    repository = RepositorySettings(control="explicit", load=("*",))
    with Engine(tmp_path, EngineSettings(warm_seconds=0, repository=repository)) as engine:
        before = {each: engine.infer(each, {"x": steps_of(each, 0)[0]})["y"] for each in MANIFESTS}
        beside = tmp_path / name / "1" / "manifest.json"
        beside.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ModelLoadError) as refused:
            engine.load(name)
        assert message in str(refused.value)
        assert "internal error" not in str(refused.value)
        [status] = [each for each in engine.index() if each.name == name]
        assert (status.state, message in status.reason) == ("READY", True)
        for each in MANIFESTS:
            np.testing.assert_array_equal(engine.infer(each, {"x": steps_of(each, 0)[0]})["y"], before[each])
        beside.write_text(json.dumps(MANIFESTS[name]))
        engine.load(name)
        assert [each.reason for each in engine.index()] == ["", ""]


def test_a_graph_whose_rows_see_each_other_is_found_out(tmp_path: Path) -> None:
    """As one does whose manifest calls time the batch: nothing in its shapes tells."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", WIDTH])
    axis = numpy_helper.from_array(np.array(0, np.int64), "axis")
    graph = helper.make_graph([helper.make_node("CumSum", ["x", "axis"], ["y"])], "sums", [x], [y], [axis])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "s.onnx")

    def describe(first: str, second: str) -> None:
        tensor = {"dtype": "float32", "axes": [first, second, WIDTH]}
        manifest = {
            "version": "1.1",
            "inputs": [{"name": "x", "role": "sequence", **tensor}],
            "outputs": [{"name": "y", "chunking": "concatenate", **tensor}],
        }
        (tmp_path / "s.manifest.json").write_text(json.dumps(manifest))

    describe("batch", "time")
    with pytest.raises(ModelLoadError, match=r"s\.manifest\.json.*output 'y' of one row differs .* independent rows"):
        Engine(tmp_path / "s.onnx", EngineSettings(warm_seconds=0))
    describe("time", "batch")
    with Engine(tmp_path / "s.onnx", EngineSettings(warm_seconds=0)) as engine:
        np.testing.assert_array_equal(
            engine.infer("s", {"x": np.ones((2, 3, WIDTH), np.float32)})["y"][1, :, 0], [1, 2, 3]
        )


def test_the_manifest_of_the_documentation_serves_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```json\n(\{\n  \"version\".*?)```", page, re.DOTALL)
    states = torch.zeros(2, 1, 64), torch.zeros(2, 1, 64)

    class Audio(nn.LSTM):
        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
            return super().forward(x, (h, c))

    lstm = Audio(40, 64, 2).eval()
    example = (torch.zeros(1, 1, 40), *states)
    export(lstm, example, tmp_path / "audio.onnx", ["x", "h0", "c0"], ["y", "hn", "cn"])
    (tmp_path / "audio.manifest.json").write_text(text)
    x = torch.randn(1, 9, 40)
    with Engine(tmp_path / "audio.onnx") as engine, engine.open_sequence("audio") as sequence, torch.inference_mode():
        found = [sequence.step({"x": x[:, part].numpy()})["y"] for part in (slice(0, 4), slice(4, 9))]
        expected = lstm(x.transpose(0, 1), *states)[0].transpose(0, 1)
    np.testing.assert_allclose(np.concatenate(found, 1), expected.numpy(), atol=1e-5)


def test_a_manifest_that_does_not_say_causal_is_served_without_sequences(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "cell.onnx").hardlink_to(foreign / "cell" / "1" / "model.onnx")
    (tmp_path / "cell.manifest.json").write_text(text_of("cell", without("causal")))
    with Server(tmp_path / "cell.onnx", port=0) as server, Client(server.address) as client:
        assert client.infer("cell", {"x": steps_of("cell", 0)[0]})["y"].shape == (1, HIDDEN)
        with pytest.raises(Exception, match="model 'cell' is not causal; accepted: requests without sequence_id"):
            client.sequence("cell").step({"x": steps_of("cell", 0)[0]})
