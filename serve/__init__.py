"""Serving: the engine, the gRPC server and its clients.

Names are imported when they are first used, so that a client needs neither onnxruntime nor the engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_client import AsyncClient
    from .async_engine import AsyncEngine
    from .client import Client
    from .engine import Engine, EngineSettings
    from .model import Model, SessionSettings
    from .scheduler import BatchSettings
    from .sequences import SequenceSettings
    from .server import Server, ServerSettings

_MODULES = {
    "AsyncClient": "async_client",
    "AsyncEngine": "async_engine",
    "BatchSettings": "scheduler",
    "Client": "client",
    "Engine": "engine",
    "EngineSettings": "engine",
    "Model": "model",
    "SequenceSettings": "sequences",
    "Server": "server",
    "ServerSettings": "server",
    "SessionSettings": "model",
}

__all__ = [
    "AsyncClient",
    "AsyncEngine",
    "BatchSettings",
    "Client",
    "Engine",
    "EngineSettings",
    "Model",
    "SequenceSettings",
    "Server",
    "ServerSettings",
    "SessionSettings",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
