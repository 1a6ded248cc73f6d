"""Models that come and go while others serve."""

import functools
import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from cellport.errors import ModelLoadError, ModelNotFoundError, SequenceNotFoundError, UnavailableError
from cellport.protos import inference_pb2
from cellport.serve import Client, Engine, EngineSettings, Model, Server, ServerSettings
from cellport.serve.loading import Loader
from cellport.serve.repository import ModelFile, Repository
from cellport.serve.server import Front
from cellport.serve.versions import RepositorySettings, VersionPolicy

from . import models
from .wire import tokens_of, triton_input

EXPLICIT = RepositorySettings(control="explicit", load=("*",))
STATUS = health_pb2.HealthCheckResponse
Start = Callable[..., tuple[Server, triton.InferenceServerClient]]


def place(path: Path, seed: int = 0) -> None:
    """Write an LSTM and move it into its place at once, as whoever serves a folder should."""
    path.parent.mkdir(parents=True, exist_ok=True)
    models.save_lstm(path.with_name("next"), seed=seed).replace(path)


def break_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no model")


def engine_settings(**changes: Any) -> EngineSettings:
    return EngineSettings(warm_seconds=0.02, repository=RepositorySettings(**changes) if changes else EXPLICIT)


@pytest.fixture
def start(tmp_path: Path, front: Front) -> Iterator[Start]:
    """Starts a server of the folder, with a client of tritonclient's."""
    with ExitStack() as stack:

        def begin(**changes: Any) -> tuple[Server, triton.InferenceServerClient]:
            settings = ServerSettings(front=front, engine=engine_settings(**changes))
            server = stack.enter_context(Server(tmp_path, settings, port=0))
            client = triton.InferenceServerClient(server.address)
            stack.callback(client.close)
            return server, client

        yield begin


def index(client: triton.InferenceServerClient) -> dict[tuple[str, str], tuple[str, str]]:
    return {(each.name, each.version): (each.state, each.reason) for each in client.get_model_repository_index().models}


def tags(
    client: triton.InferenceServerClient, tokens: Any, name: str = "a", version: str = "", **parameters: Any
) -> Any:
    return client.infer(name, [triton_input("tokens", tokens)], version, **parameters).as_numpy("tags")


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as refused:
        call()
    return refused.value.status().removeprefix("StatusCode."), refused.value.message()


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_models_are_loaded_and_unloaded_as_a_client_says(tmp_path: Path, start: Start) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    place(tmp_path / "b" / "1" / "model.onnx")
    _, client = start(control="explicit", load=("b",))
    assert index(client) == {("a", "1"): ("UNAVAILABLE", "not loaded"), ("b", "1"): ("READY", "")}
    assert refusal(lambda: tags(client, [[1]])) == ("NOT_FOUND", "model 'a' is not served; accepted: 'b'")
    client.load_model("a")
    assert client.is_model_ready("a")
    assert tags(client, [[1]]).shape == (1, 1, 4)
    client.unload_model("a")
    assert not client.is_model_ready("a")
    assert index(client)["a", "1"] == ("UNAVAILABLE", "unloaded")
    assert refusal(lambda: tags(client, [[1]])) == ("UNAVAILABLE", "model 'a' version 1 is UNAVAILABLE: unloaded")
    client.unload_model("a")
    client.load_model("a")
    assert tags(client, [[1]]).shape == (1, 1, 4)
    for call in (client.load_model, client.unload_model):
        status, message = refusal(lambda call=call: call("c"))
        assert status == "NOT_FOUND"
        assert message == f"model 'c' is not in {tmp_path}; accepted: 'a', 'b'"


def test_the_index_has_every_version_with_its_reason_and_can_be_asked_for_the_ready_alone(
    tmp_path: Path, start: Start
) -> None:
    for version in ("1", "2", "3"):
        place(tmp_path / "a" / version / "model.onnx")
    break_file(tmp_path / "b" / "1" / "model.onnx")
    server, client = start(versions=VersionPolicy(latest=2), exit_on_error=False)
    found = index(client)
    assert found.pop(("a", "1")) == ("UNAVAILABLE", "the version policy latest:2 leaves it out")
    state, reason = found.pop(("b", "1"))
    assert state == "UNAVAILABLE"
    assert "b/1/model.onnx cannot be loaded" in reason
    assert found == {("a", "2"): ("READY", ""), ("a", "3"): ("READY", "")}
    with grpc.insecure_channel(server.address) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryIndex",
            inference_pb2.RepositoryIndexRequest.SerializeToString,
            inference_pb2.RepositoryIndexResponse.FromString,
        )
        ready = ask(inference_pb2.RepositoryIndexRequest(ready=True), timeout=30)
    assert [(each.name, each.version) for each in ready.models] == [("a", "2"), ("a", "3")]
    status, message = refusal(lambda: tags(client, [[1]], "b"))
    assert status == "UNAVAILABLE"
    assert "b/1/model.onnx cannot be loaded" in message
    assert client.get_model_config("a").config.version_policy.latest.num_versions == 2


def test_a_broken_model_ends_a_server_that_would_never_mend_it_and_no_other(tmp_path: Path) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    break_file(tmp_path / "b" / "1" / "model.onnx")
    with pytest.raises(ModelLoadError, match=r"model 'b' version 1: .*b/1/model\.onnx cannot be loaded"):
        Engine(tmp_path, EngineSettings(warm_seconds=0))
    for control in (EXPLICIT, RepositorySettings(control="poll"), RepositorySettings(exit_on_error=False)):
        with Engine(tmp_path, EngineSettings(warm_seconds=0, repository=control)) as engine:
            assert [each.name for each in engine.repository] == ["a"]
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        Engine(tmp_path, EngineSettings(repository=RepositorySettings(control="poll", exit_on_error=True)))


def test_a_folder_may_be_empty_where_models_can_come(tmp_path: Path) -> None:
    for control in ("explicit", "poll"):
        with Engine(tmp_path, engine_settings(control=control)) as engine:
            assert engine.index() == []
    with pytest.raises(ModelLoadError, match="does not exist"):
        Engine(tmp_path / "gone", engine_settings(control="poll"))


def test_a_model_to_load_at_the_start_that_is_not_there_is_told_in_the_index(tmp_path: Path) -> None:
    with Engine(tmp_path, engine_settings(control="explicit", load=("a",))) as engine:
        assert [(each.name, each.state) for each in engine.index()] == [("a", "UNAVAILABLE")]
        with pytest.raises(UnavailableError, match=r"model 'a' is not in .*; accepted: none"):
            engine.repository.get("a")
        place(tmp_path / "a" / "1" / "model.onnx")
        engine.load("a")
        assert [(each.name, each.state) for each in engine.index()] == [("a", "READY")]


def test_a_file_that_cannot_be_loaded_is_refused_with_the_reason_and_the_old_one_serves_on(
    tmp_path: Path, start: Start
) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    _, client = start()
    before = tags(client, [[1, 2]])
    break_file(tmp_path / "a" / "1" / "model.onnx")
    status, message = refusal(lambda: client.load_model("a"))
    assert status == "FAILED_PRECONDITION"
    assert message.startswith(f"model 'a' version 1: {tmp_path}/a/1/model.onnx cannot be loaded")
    state, reason = index(client)["a", "1"]
    assert state == "READY"
    assert reason.startswith("the file that was to replace it: ")
    np.testing.assert_array_equal(tags(client, [[1, 2]]), before)
    place(tmp_path / "a" / "1" / "model.onnx", seed=5)
    client.load_model("a")
    assert index(client) == {("a", "1"): ("READY", "")}
    assert not np.array_equal(tags(client, [[1, 2]]), before)


def test_a_broken_newest_version_does_not_take_the_one_before_it_away(tmp_path: Path) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    with Engine(tmp_path, engine_settings(control="explicit", load=("a",), versions=VersionPolicy(latest=1))) as engine:
        break_file(tmp_path / "a" / "2" / "model.onnx")
        with pytest.raises(ModelLoadError, match=r"model 'a' version 2: .* cannot be loaded"):
            engine.load("a")
        assert engine.repository.get("a").version == "1"
        assert [each.state for each in engine.index()] == ["READY", "UNAVAILABLE"]
        place(tmp_path / "a" / "2" / "model.onnx")
        engine.load("a")
        assert engine.repository.versions("a") == ["2"]


@pytest.mark.parametrize("control", ["none", "poll"])
def test_a_server_that_is_not_told_what_to_load_refuses_to_be(tmp_path: Path, start: Start, control: str) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    _, client = start(control=control)
    for call, verb in ((client.load_model, "load"), (client.unload_model, "unload")):
        status, message = refusal(lambda call=call: call("a"))
        assert status == "UNIMPLEMENTED"
        assert f"does not {verb} models when it is told, since its model control is '{control}'; accepted:" in message


def test_a_load_may_choose_the_versions_in_tritons_words(tmp_path: Path, start: Start) -> None:
    for version in ("1", "2"):
        place(tmp_path / "a" / version / "model.onnx")
    _, client = start()
    client.load_model("a", config=json.dumps({"version_policy": {"specific": {"versions": [1]}}}))
    assert {key: state for key, (state, _) in index(client).items()} == {("a", "1"): "READY", ("a", "2"): "UNAVAILABLE"}
    assert list(client.get_model_config("a").config.version_policy.specific.versions) == [1]
    client.load_model("a")
    assert client.get_model_config("a").config.version_policy.HasField("all")
    assert refusal(lambda: client.load_model("a", config='{"max_batch_size": 4}'))[0] == "INVALID_ARGUMENT"
    status, message = refusal(lambda: client.load_model("a", config="{}", files={"file:1/model.onnx": b"x"}))
    assert status == "INVALID_ARGUMENT"
    assert message.startswith("parameters are file:1/model.onnx; accepted: config")
    status, message = refusal(
        lambda: client.load_model("a", config='{"version_policy": {"specific": {"versions": [7]}}}')
    )
    assert (status, message) == (
        "FAILED_PRECONDITION",
        "model 'a' has versions 1, 2; the version policy 7 chooses none",
    )
    assert tags(client, [[1]]).shape == (1, 1, 4)


class _Caller:
    """Asks the model "a" for random tags, and compares them with those of each file that it has been loaded from.

    All steps of a sequence are to be one file's: that which served when the sequence began.
    """

    def __init__(self, address: str, number: int, truths: list[Model]) -> None:
        self.answered = 0
        self._address = address
        self._number = number
        self._truths = truths
        self._random = np.random.default_rng(number)

    def call_until(self, stop: threading.Event) -> None:
        call = (self._infer, self._step, self._infer, self._stream)[self._number % 4]
        with triton.InferenceServerClient(self._address) as stock, Client(self._address, timeout=60) as client:
            while not stop.is_set():
                call(client if call == self._stream else stock)
                self.answered += 1

    def _infer(self, client: triton.InferenceServerClient) -> None:
        piece = self._piece()
        self._check([piece], [tags(client, piece)])

    def _step(self, client: triton.InferenceServerClient) -> None:
        pieces = [self._piece() for _ in range(8)]
        answers = [
            tags(client, piece, sequence_id=self._number, sequence_start=step == 0, sequence_end=step == 7)
            for step, piece in enumerate(pieces)
        ]
        self._check(pieces, answers)

    def _stream(self, client: Client) -> None:
        """Send all steps without waiting for answers."""
        pieces = [self._piece() for _ in range(8)]
        steps = ({"tokens": piece} for piece in pieces)
        answers = list(client.stream("a", steps, ["tags"], sequence=self._number))
        assert [each.index for each in answers] == [*range(8)]
        self._check(pieces, [each.outputs["tags"] for each in answers])

    def _piece(self) -> Any:
        return self._random.integers(0, 50, (1, int(self._random.integers(1, 9))))

    def _check(self, pieces: list[Any], answers: list[Any]) -> None:
        tokens, given = np.concatenate(pieces, axis=1), np.concatenate(answers, axis=1)
        assert any(np.allclose(given, _whole(truth, tokens), atol=1e-5) for truth in self._truths)


def _whole(model: Model, tokens: Any) -> Any:
    return model.run({"tokens": np.asarray(tokens, np.int64)}, ["tags"])["tags"]


def test_eight_threads_infer_and_step_while_models_are_loaded_and_unloaded_and_nothing_fails(
    tmp_path: Path, start: Start
) -> None:
    truths = [Model.load(models.save_lstm(tmp_path / f"truth{seed}.onnx", seed=seed)) for seed in range(3)]
    path = tmp_path / "a" / "1" / "model.onnx"
    place(path, seed=0)
    place(tmp_path / "b" / "1" / "model.onnx")
    server, _ = start()
    stop = threading.Event()
    callers = [_Caller(server.address, number, truths) for number in range(8)]

    def all_go_on(seen: list[int]) -> bool:
        return stop.is_set() or all(each.answered > then for each, then in zip(callers, seen, strict=True))

    def call(caller: _Caller) -> None:
        try:
            caller.call_until(stop)
        finally:
            stop.set()  # one that fails ends the test

    with ThreadPoolExecutor(8) as pool, triton.InferenceServerClient(server.address) as control:
        calls = [pool.submit(call, caller) for caller in callers]
        try:
            for turn in range(1, 9):
                place(path, seed=turn % 3)
                control.load_model("a")
                control.unload_model("b")
                control.load_model("b")
                until(functools.partial(all_go_on, [each.answered for each in callers]))
        finally:
            stop.set()
        for each in calls:
            each.result()
    assert min(each.answered for each in callers) >= 8


def test_a_sequence_stays_on_the_model_that_it_began_with_which_is_let_go_of_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1" / "model.onnx"
    place(path, seed=0)
    tokens = tokens_of(6, seed=3)
    with Engine(tmp_path, engine_settings()) as engine:
        expected = _whole(engine.repository.get("a"), tokens)
        sequence = engine.open_sequence("a")
        first = sequence.step({"tokens": tokens[:, :2]})["tags"]
        old = weakref.ref(engine.repository.get("a"))
        place(path, seed=1)
        engine.load("a")
        rest = sequence.step({"tokens": tokens[:, 2:]})["tags"]
        np.testing.assert_allclose(np.concatenate([first, rest], axis=1), expected, atol=1e-6)
        assert not np.allclose(engine.infer("a", {"tokens": tokens})["tags"], expected, atol=1e-3)
        gc.collect()
        assert old() is not None
        sequence.end()
        del sequence
        engine.infer("a", {"tokens": tokens})  # the workers have let go of their last run
        gc.collect()
        assert old() is None


def test_a_model_that_nothing_runs_on_is_let_go_of_when_it_is_replaced_or_unloaded(tmp_path: Path) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    with Engine(tmp_path, engine_settings()) as engine:
        for leave in (engine.load, engine.unload):
            engine.infer("a", {"tokens": tokens_of(3, seed=0)})
            old = weakref.ref(engine.repository.get("a"))
            leave("a")
            gc.collect()
            assert old() is None


def test_the_sequences_of_an_unloaded_model_end_with_a_reason_after_the_steps_that_were_accepted(
    tmp_path: Path, start: Start
) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    _, client = start()
    tags(client, [[1]], sequence_id=7, sequence_start=True)
    client.unload_model("a")
    expected = (
        "NOT_FOUND",
        "sequence 7 of model 'a' was ended when the model was unloaded; accepted: sequence_start with its first step",
    )
    assert refusal(lambda: tags(client, [[1]], sequence_id=7)) == expected
    assert refusal(lambda: tags(client, [[1]], sequence_id=8))[0] == "UNAVAILABLE"
    assert refusal(lambda: tags(client, [[1]], sequence_id=7, sequence_start=True))[0] == "UNAVAILABLE"
    client.load_model("a")
    assert refusal(lambda: tags(client, [[1]], sequence_id=7)) == expected
    assert tags(client, [[1]], sequence_id=7, sequence_start=True).shape == (1, 1, 4)


def test_what_was_accepted_before_an_unload_is_answered(tmp_path: Path) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    models.save_slow(tmp_path / "slow" / "1" / "model.onnx", loops=200)
    with Engine(tmp_path, EngineSettings(warm_seconds=0.02, workers=1, repository=EXPLICIT)) as engine:
        tokens = tokens_of(4, seed=0)
        sequence = engine.open_sequence("a")
        slots = engine.repository.get("a").slots
        with ThreadPoolExecutor(4) as pool:
            slow = pool.submit(engine.infer, "slow", {"x": np.ones((1, 1), np.float32)})
            until(lambda: engine.runs > 0)
            waiting = pool.submit(engine.infer, "a", {"tokens": tokens})
            until(lambda: engine.waiting == 1)
            step = pool.submit(sequence.step, {"tokens": tokens})
            until(lambda: engine.waiting == 2)
            engine.unload("slow")
            engine.unload("a")
            assert not slow.done()
            np.testing.assert_allclose(step.result()["tags"], waiting.result()["tags"], atol=1e-6)
            slow.result()
        assert slots.used == 0
        with pytest.raises(SequenceNotFoundError, match="was ended when the model was unloaded"):
            sequence.step({"tokens": tokens})
        with pytest.raises(UnavailableError, match="unloaded"):
            engine.open_sequence("a")


def test_the_folder_is_followed(tmp_path: Path, start: Start) -> None:
    place(tmp_path / "a" / "1" / "model.onnx", seed=0)
    server, client = start(control="poll", poll_seconds=0.05)
    before = tags(client, [[1, 2]])
    place(tmp_path / "b" / "3" / "model.onnx")
    until(lambda: client.is_server_live() and index(client).get(("b", "3")) == ("READY", ""))
    place(tmp_path / "a" / "1" / "model.onnx", seed=1)
    until(lambda: not np.array_equal(tags(client, [[1, 2]]), before))
    break_file(tmp_path / "b" / "4" / "model.onnx")
    until(lambda: index(client).get(("b", "4"), ("", ""))[0] == "UNAVAILABLE")
    assert tags(client, [[1]], "b").shape == (1, 1, 4)
    place(tmp_path / "b" / "4" / "model.onnx")
    until(lambda: index(client).get(("b", "4")) == ("READY", ""))
    shutil.rmtree(tmp_path / "b" / "3")
    until(lambda: ("b", "3") not in index(client))
    shutil.rmtree(tmp_path / "b")
    until(lambda: set(index(client)) == {("a", "1")})
    assert refusal(lambda: tags(client, [[1]], "b")) == ("NOT_FOUND", "model 'b' is not served; accepted: 'a'")
    assert server.front in ("grpcio", "envoy")


def test_a_side_car_manifest_that_changes_is_a_change_of_the_model(tmp_path: Path) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    with Engine(tmp_path, engine_settings(control="poll", poll_seconds=0.02)) as engine:
        old = weakref.ref(engine.repository.get("a"))
        (tmp_path / "a" / "1" / "manifest.json").write_text("{}")
        until(lambda: engine.repository.get("a") is not old())


class _Loads:
    """Counts how many loads take place at a time."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0
        self.lock = threading.Lock()

    def __call__(self, file: ModelFile) -> Model:
        with self.lock:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        model = Model.load(file.path, name=file.name, version=file.version)
        with self.lock:
            self.now -= 1
        return model


def test_loads_of_one_model_take_place_one_after_the_other_and_all_of_them_do(tmp_path: Path) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    loads = _Loads()
    loader = Loader(tmp_path, Repository(), EXPLICIT, load=loads, ended=lambda _: None)
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(loader.load, "a") for _ in range(8)]:
            each.result()
    assert (loads.most, loads.all) == (1, 8)


def test_an_unchanged_folder_loads_nothing_and_one_that_is_away_takes_nothing_away(tmp_path: Path) -> None:
    root = tmp_path / "models"
    place(root / "a" / "1" / "model.onnx")
    break_file(root / "b" / "1" / "model.onnx")
    loads, repository = _Loads(), Repository()
    loader = Loader(root, repository, RepositorySettings(control="poll"), load=loads, ended=lambda _: None)
    loader.start()
    assert loads.all == 2
    loader.poll()
    assert loads.all == 2
    assert [each.state for each in repository.index()] == ["READY", "UNAVAILABLE"]
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="does not exist"):
        loader.poll()
    assert repository.versions("a") == ["1"]


def test_an_engine_of_loaded_models_has_no_folder_to_load_from(folder: Path) -> None:
    model = Model.load(folder / "affine" / "1" / "model.onnx", name="affine")
    with Engine([model]) as engine, pytest.raises(ModelLoadError, match="accepted: one made from a path"):
        engine.load("affine")


def test_load_of_an_unknown_name_tells_which_there_are(tmp_path: Path) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    with Engine(tmp_path, engine_settings()) as engine, pytest.raises(ModelNotFoundError, match="accepted: 'a'"):
        engine.load("b")


def test_health_knows_models_that_come_and_go(tmp_path: Path, start: Start) -> None:
    place(tmp_path / "a" / "1" / "model.onnx")
    server, client = start(control="explicit")
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="a")
        watch = health.Watch(request, timeout=30)
        assert next(watch).status == STATUS.SERVICE_UNKNOWN
        client.load_model("a")
        assert next(each for each in watch if each.status != STATUS.NOT_SERVING).status == STATUS.SERVING
        assert health.Check(request, timeout=30).status == STATUS.SERVING
        client.load_model("a")  # again, which is no change
        client.unload_model("a")
        assert next(watch).status == STATUS.NOT_SERVING
        assert health.Check(request, timeout=30).status == STATUS.NOT_SERVING
        watch.cancel()
