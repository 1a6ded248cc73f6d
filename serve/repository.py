"""Finding the models under a path, and looking them up by name and version."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from cellport.errors import ModelLoadError, ModelNotFoundError, UnavailableError

from .model import Model
from .settings import SessionSettings

FILE_NAME = "model.onnx"
State = Literal["READY", "UNAVAILABLE", "LOADING"]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file to load, and the name and version that it is served under."""

    name: str
    version: str
    path: Path


def find_files(path: str | Path) -> list[ModelFile]:
    """Return the model files under a path.

    A file is one model, named after its stem; a ``model.onnx`` after its folder, and if that is a version, after the
    folder above. A folder holds ``<name>/<version>/model.onnx``, or is itself such a ``<name>``; versions are decimal
    numbers.

    Raises:
        ModelLoadError: there is no such path, or no model in it.
    """
    path = Path(path).resolve()
    if path.is_file():
        if path.name != FILE_NAME:
            return [ModelFile(name=path.stem, version="1", path=path)]
        folder = path.parent
        if _is_version(folder):
            return [ModelFile(name=folder.parent.name, version=folder.name, path=path)]
        return [ModelFile(name=folder.name, version="1", path=path)]
    found = _scan(path)
    if not found:
        raise ModelLoadError(f"{path} holds no model; accepted: <name>/<version>/{FILE_NAME} with a number as version")
    return found


def scan(path: str | Path) -> list[ModelFile]:
    """Return the model files under a path as `find_files` does; none of a folder that has none.

    Raises:
        ModelLoadError: there is no such path.
    """
    path = Path(path).resolve()
    return _scan(path) if path.is_dir() else find_files(path)


def _scan(path: Path) -> list[ModelFile]:
    if not path.is_dir():
        raise ModelLoadError(f"{path} does not exist; accepted: an ONNX file, or a folder <name>/<version>/{FILE_NAME}")
    candidates = [path, *sorted(each for each in path.iterdir() if each.is_dir() and not _is_version(each))]
    return [
        ModelFile(name=folder.name, version=version.name, path=version / FILE_NAME)
        for folder in candidates
        for version in sorted(folder.iterdir())
        if _is_version(version) and (version / FILE_NAME).is_file()
    ]


def _is_version(folder: Path) -> bool:
    return folder.is_dir() and folder.name.isascii() and folder.name.isdecimal()


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """What the index says of a version of a model.

    Attributes:
        name: the model's name.
        version: the version.
        state: one of Triton's states.
        reason: why it is not ready, or what was wrong with a file that was to replace it; empty if nothing is.
    """

    name: str
    version: str
    state: State
    reason: str = ""


class Repository:
    """The models by name and version: those that are served, and what is known of others. Thread-safe.

    Args:
        models: those that are served at first.

    Raises:
        ModelLoadError: two of them have the same name and version.
    """

    def __init__(self, models: Iterable[Model] = ()) -> None:
        # What readers see is replaced as a whole and never changed, so they need no lock. Versions are oldest first.
        self._models: Mapping[str, dict[str, Model]] = {}
        self._remarks: Mapping[str, dict[str, ModelStatus]] = {}
        self._watchers: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        found: dict[str, list[Model]] = {}
        for model in models:
            if any(each.version == model.version for each in found.setdefault(model.name, [])):
                raise ModelLoadError(f"model {model.name!r} has version {model.version} twice")
            found[model.name].append(model)
        for name, versions in found.items():
            self.set(name, versions)

    @classmethod
    def load(cls, path: str | Path, settings: SessionSettings | None = None) -> "Repository":
        """Load every model under a path; see `find_files`.

        Raises:
            ModelLoadError: there is none, or one cannot be loaded.
        """
        return cls(
            Model.load(each.path, name=each.name, version=each.version, settings=settings) for each in find_files(path)
        )

    def __iter__(self) -> Iterator[Model]:
        models = self._models
        for name in sorted(models):
            yield from models[name].values()

    def names(self) -> list[str]:
        """Return the names that are served or of which there is something to tell, sorted."""
        return sorted({*self._models, *self._remarks})

    def versions(self, name: str) -> list[str]:
        """Return a model's versions that are served, oldest first; none for an unknown name."""
        return list(self._models.get(name, ()))

    def get(self, name: str, version: str = "") -> Model:
        """Return a model; an empty version asks for the newest that is served.

        Raises:
            ModelNotFoundError: there is none of that name or version.
            UnavailableError: there is, but it is not served at present.
        """
        versions = self._models.get(name)
        if versions:
            model = versions.get(version) if version else versions[next(reversed(versions))]
            if model is not None:
                return model
        remarks = self._remarks.get(name, {})
        remark = remarks.get(version) if version else max(remarks.values(), key=_number, default=None)
        if remark is not None:
            reason = remark.reason or "it has not been loaded yet"
            raise UnavailableError(f"model {name!r} version {remark.version} is {remark.state}: {reason}")
        if not versions and not remarks:
            accepted = ", ".join(map(repr, sorted(self._models))) or "none"
            raise ModelNotFoundError(f"model {name!r} is not served; accepted: {accepted}")
        accepted = ", ".join(versions or ()) or "none"
        raise ModelNotFoundError(f"model {name!r} has no version {version!r}; accepted: {accepted}")

    def find(self, name: str, version: str) -> Model | None:
        """Return a model if that version of it is served."""
        return self._models.get(name, {}).get(version)

    def index(self) -> list[ModelStatus]:
        """Return what is known of each version of each model."""
        models, remarks = self._models, self._remarks
        found = []
        for name in sorted({*models, *remarks}):
            ready = {each: ModelStatus(name=name, version=each, state="READY") for each in models.get(name, ())}
            found += sorted({**ready, **remarks.get(name, {})}.values(), key=_number)
        return found

    def set(self, name: str, models: Iterable[Model], remarks: Iterable[ModelStatus] = ()) -> None:
        """Set which versions of a name are served from now on, and what there is to tell of others; then tell watchers.

        Requests that have been accepted stay on the models that they were given.
        """
        versions = {each.version: each for each in sorted(models, key=lambda model: int(model.version))}
        told = {each.version: each for each in remarks}
        with self._lock:
            self._models = _with(self._models, name, versions)
            self._remarks = _with(self._remarks, name, told)
            watchers = list(self._watchers)
        for tell in watchers:
            tell()

    @contextlib.contextmanager
    def watching(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` after every change, on whatever thread makes it, as long as the context lasts."""
        with self._lock:
            self._watchers.append(tell)
        try:
            yield
        finally:
            with self._lock:
                self._watchers.remove(tell)

    def __repr__(self) -> str:
        states = ", ".join(f"{each.name} {each.version} {each.state}" for each in self.index())
        return f"<Repository {states or 'empty'}>"


def _with(every: Mapping[str, dict[str, _T]], name: str, values: dict[str, _T]) -> Mapping[str, dict[str, _T]]:
    rest = {key: value for key, value in every.items() if key != name}
    return {**rest, name: values} if values else rest


def _number(status: ModelStatus) -> tuple[int, str]:
    return int(status.version or 0), status.version
