"""The server: models, engine and front together."""

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from .async_engine import AsyncEngine
from .calls import Lifecycle
from .engine import Engine, EngineSettings
from .grpc_front import GrpcFront
from .table import build_table

try:
    from uvloop import new_event_loop
except ImportError:  # it has no build for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server works.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 for a free one.
        engine: how its engine works.
        receive_bytes: largest message that is taken.
        send_bytes: largest message that is sent.
        stream_window: requests of one stream whose answers may be on the way before no more are read from it, so that
            a client that does not read cannot fill the server's memory.
        grace_seconds: how long a shutdown waits for running requests, and for clients to take their answers.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    engine: EngineSettings = field(default_factory=EngineSettings)
    receive_bytes: int = 64 * 2**20
    send_bytes: int = 64 * 2**20
    stream_window: int = 1024
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; accepted: 0 to 65535")
        for name in ("receive_bytes", "send_bytes", "stream_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 1")
        if self.grace_seconds < 0:
            raise ValueError(f"grace_seconds is {self.grace_seconds}; accepted: at least 0")


class Server:
    """Serves models over gRPC.

    As a context manager it runs on a thread of its own; `serve_forever` runs it on the caller's until a signal comes.

    Args:
        models: a path (see `cellport.serve.repository.find_files`), or an engine to share, which is left open.
        settings: how it works.
        host: instead of the settings' host.
        port: instead of the settings' port.

    Attributes:
        engine: runs the models; also for callers in this process.
        settings: how it works.

    Raises:
        ModelLoadError: a model cannot be loaded.
    """

    def __init__(
        self,
        models: str | Path | Engine,
        settings: ServerSettings | None = None,
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        settings = settings or ServerSettings()
        self.settings = replace(
            settings,
            host=settings.host if host is None else host,
            port=settings.port if port is None else port,
        )
        self._owned = not isinstance(models, Engine)
        self.engine = models if isinstance(models, Engine) else Engine(models, self.settings.engine)
        self._port: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on.

        Raises:
            RuntimeError: it has not been started.
        """
        if self._port is None:
            raise RuntimeError("the server has not been started")
        return self._port

    @property
    def address(self) -> str:
        """Where clients reach the server: host and port."""
        host = self.settings.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def start(self) -> None:
        """Run the server on a thread of its own; return when it listens.

        Raises:
            AddressError: the address cannot be listened on.
        """
        started = threading.Event()
        failure: list[BaseException] = []

        def run() -> None:
            try:
                with asyncio.Runner(loop_factory=new_event_loop) as runner:
                    runner.run(self._serve(started.set, handle_signals=False))
            except BaseException as error:
                failure.append(error)
            finally:
                started.set()

        self._thread = threading.Thread(target=run, name="cellport-server", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            self._thread = None
            self.stop()
            raise failure[0]

    def stop(self) -> None:
        """Shut down: refuse new calls, let running ones finish within the grace time, and close the engine."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        if self._owned:
            self.engine.close()

    def serve_forever(self, on_start: Callable[[], None] | None = None) -> None:
        """Run the server on this thread until SIGTERM or SIGINT, then shut down as `stop` does.

        Args:
            on_start: called when it listens.

        Raises:
            AddressError: the address cannot be listened on.
        """
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(self._serve(on_start or (lambda: None), handle_signals=True))
        finally:
            if self._owned:
                self.engine.close(self.settings.grace_seconds)

    async def _serve(self, on_start: Callable[[], None], *, handle_signals: bool) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        lifecycle = Lifecycle()
        settings = self.settings
        table = build_table(
            AsyncEngine(self.engine), lifecycle, window=settings.stream_window, send_bytes=settings.send_bytes
        )
        front = GrpcFront(table, self.engine, receive_bytes=settings.receive_bytes, send_bytes=settings.send_bytes)
        if handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
        self._port = await front.start(self.settings.host, self.settings.port)
        self._loop, self._stop = loop, stop
        on_start()
        await stop.wait()
        lifecycle.close()
        end = loop.time() + settings.grace_seconds
        await lifecycle.wait_idle(settings.grace_seconds)
        # Handlers have returned; what is left for grpc is to send their last bytes, which a slow client may delay.
        await front.stop(max(0.0, end - loop.time()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
