"""The server: models, engine and front together."""

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from .async_engine import AsyncEngine
from .calls import Lifecycle
from .engine import Engine
from .envoy_config import why_not
from .envoy_control import ServedModel, served_by
from .envoy_front import EnvoyFront
from .grpc_front import GrpcFront
from .repository import find_files, scan
from .settings import EngineSettings
from .table import build_table

try:
    from uvloop import new_event_loop
except ImportError:  # it has no build for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]

Front = Literal["auto", "grpcio", "envoy"]


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server works.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 for a free one.
        front: what carries the calls. ``"grpcio"`` runs in this process, with an engine that callers in it can use too.
            ``"envoy"`` starts Envoy as a child of this process, with the engine inside, and spends far less on a call.
            ``"auto"`` is ``"envoy"`` where that can be used (the extra `fast` is installed, and no engine is shared),
            else ``"grpcio"``.
        engine: how its engine works.
        receive_bytes: largest message that is taken.
        send_bytes: largest message that is sent.
        stream_window: requests of one stream whose answers may be on the way before no more are read from it, so that
            a client that does not read cannot fill the server's memory.
        grace_seconds: how long a shutdown waits for running requests, and for clients to take their answers.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    front: Front = "grpcio"
    engine: EngineSettings = field(default_factory=EngineSettings)
    receive_bytes: int = 64 * 2**20
    send_bytes: int = 64 * 2**20
    stream_window: int = 1024
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.front not in get_args(Front):
            raise ValueError(f"front is {self.front!r}; accepted: {', '.join(get_args(Front))}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; accepted: 0 to 65535")
        for name in ("receive_bytes", "send_bytes", "stream_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: at least 1")
        if self.grace_seconds < 0:
            raise ValueError(f"grace_seconds is {self.grace_seconds}; accepted: at least 0")


class Server:
    """Serves models over gRPC.

    As a context manager it runs beside the caller's thread; `serve_forever` keeps that thread until a signal comes.

    Args:
        models: a path (see `cellport.serve.repository.find_files`), or an engine to share, which is left open.
        settings: how it works.
        host: instead of the settings' host.
        port: instead of the settings' port.

    Attributes:
        front: what carries the calls: ``"grpcio"`` or ``"envoy"``.
        settings: how it works.

    Raises:
        ModelLoadError: a model cannot be loaded. The front ``"envoy"`` loads them when it is started; here it refuses
            only a path at which there is none.
        ValueError: the front asked for cannot be used here.
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
        self.front = _choose(self.settings.front, models)
        self._engine: Engine | None = None
        self._envoy: EnvoyFront | None = None
        self._owned = not isinstance(models, Engine)
        if isinstance(models, Engine):
            self._engine = models
        elif self.front == "grpcio":
            self._engine = Engine(models, self.settings.engine)
        else:
            find = find_files if self.settings.engine.repository.control == "none" else scan
            find(Path(models))
            self._envoy = EnvoyFront(
                host=self.settings.host,
                port=self.settings.port,
                models=Path(models).absolute(),
                engine=self.settings.engine,
                receive_bytes=self.settings.receive_bytes,
                send_bytes=self.settings.send_bytes,
                stream_window=self.settings.stream_window,
                grace_seconds=self.settings.grace_seconds,
            )
        self._port: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def engine(self) -> Engine:
        """What runs the models; also for callers in this process.

        Raises:
            RuntimeError: it is in Envoy's process.
        """
        if self._engine is None:
            raise RuntimeError("the engine is in Envoy's process; the front 'grpcio' has it in this one")
        return self._engine

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What is served; with the front ``"envoy"`` empty until it is started."""
        return self._envoy.models if self._envoy is not None else served_by(self.engine)

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
        """Run the server beside this thread; return when it listens.

        Raises:
            AddressError: the address cannot be listened on.
            ModelLoadError: a model cannot be loaded.
        """
        if self._envoy is not None:
            self._port = self._envoy.start()
            return
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
        if self._envoy is not None:
            self._envoy.stop()
        if self._thread is not None and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        if self._owned and self._engine is not None:
            self._engine.close()

    def serve_forever(self, on_start: Callable[[], None] | None = None) -> None:
        """Run the server on this thread until SIGTERM or SIGINT, then shut down as `stop` does.

        Args:
            on_start: called when it listens.

        Raises:
            AddressError: the address cannot be listened on.
            ModelLoadError: a model cannot be loaded.
            InternalServingError: Envoy has ended by itself.
        """
        on_start = on_start or (lambda: None)
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                if self._envoy is not None:
                    runner.run(self._supervise(self._envoy, on_start))
                else:
                    runner.run(self._serve(on_start, handle_signals=True))
        finally:
            if self._owned and self._engine is not None:
                self._engine.close(self.settings.grace_seconds)

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
            _on_signal(stop.set)
        self._port = await front.start(self.settings.host, self.settings.port)
        self._loop, self._stop = loop, stop
        on_start()
        await stop.wait()
        lifecycle.close()
        end = loop.time() + settings.grace_seconds
        await lifecycle.wait_idle(settings.grace_seconds)
        # Handlers have returned; what is left for grpc is to send their last bytes, which a slow client may delay.
        await front.stop(max(0.0, end - loop.time()))

    async def _supervise(self, envoy: EnvoyFront, on_start: Callable[[], None]) -> None:
        stop = asyncio.Event()
        _on_signal(stop.set)
        stopping = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(asyncio.to_thread(envoy.start))
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            envoy.interrupt()
            await asyncio.wait([starting])
            if starting.exception() is not None:
                return
        self._port = await starting
        ending = asyncio.create_task(asyncio.to_thread(envoy.wait))
        try:
            on_start()
            await asyncio.wait((ending, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                raise envoy.failure()
        finally:
            await asyncio.to_thread(envoy.stop)
            await ending

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _choose(front: Front, models: str | Path | Engine) -> Literal["grpcio", "envoy"]:
    """Return the front to use.

    Raises:
        ValueError: the one asked for cannot be used here.
    """
    if front == "grpcio":
        return "grpcio"
    reason = "an engine of this process is shared" if isinstance(models, Engine) else why_not()
    if reason is None:
        return "envoy"
    if front == "envoy":
        raise ValueError(f"front is 'envoy', but {reason}; accepted: 'auto' or 'grpcio'")
    return "grpcio"


def _on_signal(call: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, call)
