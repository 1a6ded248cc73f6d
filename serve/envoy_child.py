"""The part of a server that runs in Envoy's process: the engine, and the table of calls as an ASGI application."""

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import traceback
from multiprocessing.connection import Connection

from cellport.errors import CellportError

from .asgi import GrpcApplication, Scope
from .asgi_exchange import Receive, Send
from .async_engine import AsyncEngine
from .calls import Lifecycle
from .engine import Engine
from .envoy_control import ChildSettings, Drained, Failed, Loaded, ServedModel, Stop, inherited, served_by
from .memory import settle
from .table import build_table
from .threads import name_thread

# What calls that are broken off may take to end.
_BREAK_SECONDS = 2.0


class _Child:
    """The engine and what is around it, from the application's start to its end.

    Args:
        control: the way to the server's process.
        settings: what to serve, and how.

    Raises:
        ModelLoadError: a model cannot be loaded.
    """

    def __init__(self, control: Connection, settings: ChildSettings) -> None:
        self._control = control
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._engine = Engine(settings.models, settings.engine)
        self._lifecycle = Lifecycle()
        table = build_table(
            AsyncEngine(self._engine), self._lifecycle, window=settings.stream_window, send_bytes=settings.send_bytes
        )
        self.application = GrpcApplication(
            table,
            self._lifecycle,
            self._engine.clock,
            receive_bytes=settings.receive_bytes,
            send_bytes=settings.send_bytes,
        )

    def models(self) -> tuple[ServedModel, ...]:
        """Return what is served."""
        return served_by(self._engine)

    def obey(self) -> None:
        """Do what the server's process says, on a thread of its own; end this process when that one is gone."""
        threading.Thread(target=self._obey, name="cellport-control", daemon=True).start()

    def _obey(self) -> None:
        orphaned = False
        try:
            stop = self._control.recv()
            assert isinstance(stop, Stop)
            seconds = stop.seconds
        except (EOFError, OSError):
            orphaned = True
            seconds = self._settings.grace_seconds
        asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop).result()
        if orphaned:
            shutil.rmtree(self._settings.folder, ignore_errors=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        with contextlib.suppress(OSError):
            self._control.send(Drained())

    async def _drain(self, seconds: float) -> None:
        self._lifecycle.close()
        await self._lifecycle.wait_idle(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.application.close(), _BREAK_SECONDS)

    async def close(self) -> None:
        """Close the engine, and let the server's process know by hanging up.

        What still runs after the grace time is not waited for.
        """
        await asyncio.to_thread(self._engine.close, self._settings.grace_seconds)
        self._control.close()


_child: _Child | None = None


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application: ASGI's entry, which pyvoy calls."""
    if scope["type"] == "http":
        assert _child is not None
        await _child.application(scope, receive, send)
    elif scope["type"] == "lifespan":
        await _live(receive, send)
    else:
        raise RuntimeError(f"ASGI scope {scope['type']!r} is not served")


async def _live(receive: Receive, send: Send) -> None:
    global _child
    await receive()
    name_thread("cellport-loop")
    control = inherited()
    try:
        _child = _Child(control, control.recv())
    except CellportError as error:
        control.send(Failed(kind=type(error).__name__, message=str(error)))
        await send({"type": "lifespan.startup.failed", "message": ""})
        return
    except Exception:
        control.send(Failed(kind="", message=traceback.format_exc()))
        await send({"type": "lifespan.startup.failed", "message": ""})
        return
    settle()
    control.send(Loaded(models=_child.models()))
    _child.obey()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await _child.close()
    await send({"type": "lifespan.shutdown.complete"})
