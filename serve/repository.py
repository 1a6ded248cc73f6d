"""Finding the models under a path, and looking them up by name and version."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cellport.errors import ModelLoadError, ModelNotFoundError

from .model import Model, SessionSettings

FILE_NAME = "model.onnx"


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
    if not path.is_dir():
        raise ModelLoadError(f"{path} does not exist; accepted: an ONNX file, or a folder <name>/<version>/{FILE_NAME}")
    candidates = [path, *sorted(each for each in path.iterdir() if each.is_dir() and not _is_version(each))]
    found = [
        ModelFile(name=folder.name, version=version.name, path=version / FILE_NAME)
        for folder in candidates
        for version in sorted(folder.iterdir())
        if _is_version(version) and (version / FILE_NAME).is_file()
    ]
    if not found:
        raise ModelLoadError(f"{path} holds no model; accepted: <name>/<version>/{FILE_NAME} with a number as version")
    return found


def _is_version(folder: Path) -> bool:
    return folder.is_dir() and folder.name.isascii() and folder.name.isdecimal()


class Repository:
    """Loaded models by name and version.

    Args:
        models: the models.

    Raises:
        ModelLoadError: two of them have the same name and version.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        for model in models:
            versions = self._models.setdefault(model.name, {})
            if model.version in versions:
                raise ModelLoadError(f"model {model.name!r} has version {model.version} twice")
            versions[model.version] = model

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
        for name in sorted(self._models):
            for version in self.versions(name):
                yield self._models[name][version]

    def versions(self, name: str) -> list[str]:
        """Return a model's versions, oldest first; none for an unknown name."""
        return sorted(self._models.get(name, {}), key=int)

    def get(self, name: str, version: str = "") -> Model:
        """Return a model; an empty version asks for the newest.

        Raises:
            ModelNotFoundError: there is none of that name or version.
        """
        versions = self.versions(name)
        if not versions:
            accepted = ", ".join(map(repr, sorted(self._models))) or "none"
            raise ModelNotFoundError(f"model {name!r} is not served; accepted: {accepted}")
        if version and version not in versions:
            raise ModelNotFoundError(f"model {name!r} has no version {version!r}; accepted: {', '.join(versions)}")
        return self._models[name][version or versions[-1]]
