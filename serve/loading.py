"""Loading, replacing and unloading the models of a folder while others are served."""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cellport.errors import ModelLoadError, ModelNotFoundError, UnavailableError

from .model import SIDE_CAR, Model
from .repository import FILE_NAME, ModelFile, ModelStatus, Repository, find_files, scan
from .status import log_id
from .versions import RepositorySettings, VersionPolicy

_log = logging.getLogger(__name__)

_MOST_FILES = 1000
"""Files of one folder that are looked at for changes."""

Stamp = tuple[tuple[str, int, int, int], ...]
_Files = dict[str, dict[str, ModelFile]]


class Loader:
    """Brings the models of a folder into a repository, and takes them out again. Thread-safe.

    One load, unload or look at the folder takes place at a time. A model is loaded, and has run, before it replaces
    another; what cannot be loaded is remarked on in the repository, and whatever serves goes on.

    Args:
        path: see `cellport.serve.repository.find_files`.
        repository: where the models go.
        settings: which versions, and who decides.
        load: loads a file; raises ModelLoadError.
        ended: called with the name of a model that has been unloaded as a whole.
    """

    def __init__(
        self,
        path: Path,
        repository: Repository,
        settings: RepositorySettings,
        *,
        load: Callable[[ModelFile], Model],
        ended: Callable[[str], None],
    ) -> None:
        self.path = path
        self.settings = settings
        self._repository = repository
        self._load_file = load
        self._ended = ended
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        # Of each model that was last asked for, the files of its chosen versions as they were then.
        self._stamps: dict[str, dict[str, Stamp]] = {}
        self._policies: dict[str, VersionPolicy] = {}
        self._trouble = ""

    def start(self) -> None:
        """Load what is served from the start.

        Raises:
            ModelLoadError: the path does not exist; there is no model and none can come; or a model cannot be loaded
                and that is an error (`RepositorySettings.exit_on_error`).
        """
        settings = self.settings
        files = _by_name(find_files(self.path) if settings.control == "none" else scan(self.path))
        names = sorted(files)
        if settings.control == "explicit" and "*" not in settings.load:
            names = sorted(set(settings.load))
        for name in names:
            if name in files:
                problems = self._replace(name, files[name])
            else:
                problems = [f"model {name!r} is not in {self.path}; accepted: {_names(files)}"]
                self._repository.set(name, (), [_status(name, "", problems[0])])
            if problems and settings.strict:
                raise ModelLoadError(problems[0])

    def watch(self) -> None:
        """Follow the folder from now on, on a thread of its own, if that is what the settings say."""
        if self.settings.control == "poll":
            self._thread = threading.Thread(target=self._watch, name="cellport-poll", daemon=True)
            self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Begin no more loads, and wait for the one that takes place, but not longer than `seconds`."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def policy(self, name: str) -> VersionPolicy:
        """Return which versions of a model are served."""
        return self._policies.get(name, self.settings.versions)

    def load(self, name: str, policy: VersionPolicy | None = None) -> None:
        """Load a model's chosen versions from their files, and let them replace those that serve.

        Args:
            name: the model's name.
            policy: which versions, until it is loaded again; None for the settings' policy.

        Raises:
            ModelNotFoundError: there is no file of that name.
            ModelLoadError: a version cannot be loaded; the others are served.
            UnavailableError: the server shuts down.
        """
        with self._lock:
            files = _by_name(scan(self.path))
            if name not in files:
                raise ModelNotFoundError(f"model {name!r} is not in {self.path}; accepted: {_names(files)}")
            self._policies.pop(name, None)
            if policy is not None:
                self._policies[name] = policy
            problems = self._replace(name, files[name])
        if problems:
            raise ModelLoadError("; ".join(problems))

    def unload(self, name: str) -> None:
        """Take no more requests for a model; its running ones finish, its sequences end.

        Raises:
            ModelNotFoundError: it is neither served nor known.
        """
        with self._lock:
            known = [each for each in self._repository.index() if each.name == name]
            if not known:
                files = _by_name(scan(self.path))
                if name in files:
                    return
                raise ModelNotFoundError(f"model {name!r} is not in {self.path}; accepted: {_names(files)}")
            self._take_out(name, [_status(name, each.version, "unloaded") for each in known])

    def index(self) -> list[ModelStatus]:
        """Return what is known of each version of each model, those that nobody has asked for yet among them."""
        known = self._repository.index()
        if self.settings.control == "explicit":
            have = {(each.name, each.version) for each in known}
            known += [
                _status(each.name, each.version, "not loaded")
                for each in scan(self.path)
                if (each.name, each.version) not in have
            ]
        return known

    def poll(self) -> None:
        """Look at the folder once, and load and unload what has changed.

        Raises:
            ModelLoadError: it does not exist, or has a model twice; what serves goes on.
            OSError: it cannot be read; what serves goes on.
        """
        with self._lock:
            files = _by_name(scan(self.path))
            for name in sorted(self._stamps.keys() - files.keys()):
                self._take_out(name, [])
            for name, versions in files.items():
                if self._closed.is_set():
                    return
                chosen = self.policy(name).choose(versions)
                if {each: stamp_of(versions[each].path) for each in chosen} != self._stamps.get(name):
                    for problem in self._replace(name, versions, changed_only=True):
                        _log.warning("%s", problem)

    def _watch(self) -> None:
        while not self._closed.wait(self.settings.poll_seconds):
            try:
                self.poll()
                self._trouble = ""
            except UnavailableError:
                return
            except Exception as error:
                if str(error) != self._trouble:  # a folder that is away for a day is no news every time
                    _log.warning("%s cannot be looked at; what is served stays as it is: %s", self.path, error)
                self._trouble = str(error)

    def _take_out(self, name: str, remarks: Iterable[ModelStatus]) -> None:
        self._stamps.pop(name, None)
        self._policies.pop(name, None)
        self._repository.set(name, (), remarks)
        self._ended(name)

    def _replace(self, name: str, files: Mapping[str, ModelFile], *, changed_only: bool = False) -> list[str]:
        """Load the chosen versions of a model and serve them in place of those that are served.

        If one of them cannot be loaded, all that serve now go on, but for those that have been replaced.

        Args:
            name: the model's name.
            files: its versions.
            changed_only: keep those whose files are as they were when they were last asked for.

        Returns:
            What went wrong, for each version that could not be loaded.
        """
        policy = self.policy(name)
        chosen = policy.choose(files)
        before = {each.version: each for each in self._repository.index() if each.name == name}
        current = {each: self._repository.get(name, each) for each in self._repository.versions(name)}
        remarks = {
            each: _status(name, each, f"the version policy {policy} leaves it out")
            for each in files
            if each not in chosen
        }
        loading = [ModelStatus(name=name, version=each, state="LOADING") for each in chosen if each not in current]
        self._repository.set(name, current.values(), [*remarks.values(), *loading])
        known, stamps = self._stamps.get(name, {}), dict[str, Stamp]()
        models: dict[str, Model] = {}
        problems: list[str] = []
        for version in chosen:
            old = current.get(version)
            try:
                # Before it is loaded, so that a change meanwhile is seen.
                stamps[version] = stamp_of(files[version].path)
                if changed_only and stamps[version] == known.get(version):
                    if version in before and before[version].reason:
                        remarks[version] = before[version]
                    if old is not None:
                        models[version] = old
                    continue
                if self._closed.is_set():
                    raise UnavailableError("the engine is closed")
                models[version] = self._load_file(files[version])
            except Exception as error:
                reason = _reason(error)
                problems.append(f"model {name!r} version {version}: {reason}")
                remarks[version] = _status(name, version, reason)
                if old is not None:
                    models[version] = old
                    kept = f"the file that was to replace it: {reason}"
                    remarks[version] = ModelStatus(name=name, version=version, state="READY", reason=kept)
        if not chosen:
            problems.append(f"model {name!r} has versions {', '.join(files)}; the version policy {policy} chooses none")
        if any(version in remarks for version in chosen) or not chosen:
            for version, model in current.items():
                if version not in models:
                    models[version] = model
                    kept = f"kept, since of the chosen versions {', '.join(chosen) or 'none'} not all could be loaded"
                    remarks[version] = ModelStatus(name=name, version=version, state="READY", reason=kept)
        self._stamps[name] = stamps
        self._repository.set(name, models.values(), remarks.values())
        return problems


def stamp_of(path: Path) -> Stamp:
    """Return what tells whether a model's files have changed: their names, sizes, times of change and numbers.

    Args:
        path: its ONNX file. All files beside a ``model.onnx`` belong to it; beside any other file those that begin with
            its stem, and the manifest.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    with os.scandir(path.parent) as entries:
        for each in itertools.islice(entries, _MOST_FILES):
            if path.name == FILE_NAME or each.name.startswith(path.stem) or each.name == SIDE_CAR:
                if not each.is_file():
                    continue
                status = each.stat()
                found.append((each.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(sorted(found))


def _by_name(files: Iterable[ModelFile]) -> _Files:
    found: _Files = {}
    for each in files:
        versions = found.setdefault(each.name, {})
        if each.version in versions:
            raise ModelLoadError(f"model {each.name!r} has version {each.version} twice")
        versions[each.version] = each
    return found


def _names(files: _Files) -> str:
    return ", ".join(map(repr, sorted(files))) or "none"


def _status(name: str, version: str, reason: str) -> ModelStatus:
    return ModelStatus(name=name, version=version, state="UNAVAILABLE", reason=reason)


def _reason(error: Exception) -> str:
    if isinstance(error, ModelLoadError | UnavailableError | OSError):
        return str(error)
    found = log_id()
    _log.error("a model could not be loaded (%s)", found, exc_info=error)
    return f"internal error; the server's log has the reason under {found}"
