"""What the server's process and Envoy's say to each other, over a pair of sockets that only they hold.

The server's process sends `ChildSettings`, then `Stop`. Envoy's process sends `Loaded` or `Failed`, then `Drained`.
When one end closes, the other knows that its partner is gone.
"""

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from cellport.manifest import Manifest

from .engine import Engine
from .settings import EngineSettings

VARIABLE = "CELLPORT_CONTROL"


@dataclass(frozen=True, kw_only=True)
class ChildSettings:
    """What Envoy's process serves, and how; as in `cellport.serve.server.ServerSettings`.

    Attributes:
        models: path of the models.
        folder: what both processes keep their files in; removed by whichever ends last.
    """

    models: Path
    folder: Path
    engine: EngineSettings
    receive_bytes: int
    send_bytes: int
    stream_window: int
    grace_seconds: float


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that is served.

    Attributes:
        name: what requests call it.
        version: its version.
        manifest: what it takes and returns.
        recurrent: it runs sequences.
    """

    name: str
    version: str
    manifest: Manifest
    recurrent: bool


def served_by(engine: Engine) -> tuple[ServedModel, ...]:
    """Return what an engine serves."""
    return tuple(
        ServedModel(name=model.name, version=model.version, manifest=model.manifest, recurrent=model.contract.recurrent)
        for model in engine.repository
    )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The models are loaded."""

    models: tuple[ServedModel, ...]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The models cannot be loaded.

    Attributes:
        kind: name of the error's class in `cellport.errors`; empty for an error that nobody foresaw.
        message: its words, or the whole traceback.
    """

    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Take no more calls; break off what still runs after `seconds`."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Drained:
    """No call runs any more."""


def inherited() -> Connection:
    """Return the end that Envoy's process was started with; its own children do not get it.

    Raises:
        RuntimeError: this process was not started as one.
    """
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        raise RuntimeError(
            "this module is the part of a server that runs in Envoy's process; use cellport.serve.Server"
        )
    os.set_inheritable(int(number), False)
    return Connection(int(number))
