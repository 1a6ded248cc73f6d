"""Serving: the engine, the gRPC server and its clients.

Names are imported when they are first used, so that a client needs neither onnxruntime nor the engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_client import AsyncClient
    from .async_engine import AsyncEngine
    from .client import Client
    from .engine import Engine
    from .model import Model
    from .server import Server, ServerSettings
    from .settings import BatchSettings, EngineSettings, SequenceSettings, SessionSettings

_MODULES = {
    "AsyncClient": "async_client",
    "AsyncEngine": "async_engine",
    "BatchSettings": "settings",
    "Client": "client",
    "Engine": "engine",
    "EngineSettings": "settings",
    "Model": "model",
    "SequenceSettings": "settings",
    "Server": "server",
    "ServerSettings": "server",
    "SessionSettings": "settings",
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
