"""Which versions of a model are served, and who decides when models come and go."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

from cellport.errors import InvalidRequestError

Control = Literal["none", "explicit", "poll"]


@dataclass(frozen=True, kw_only=True)
class VersionPolicy:
    """Which of the versions in a folder are served: Triton's three policies.

    With neither attribute all versions are.

    Attributes:
        latest: so many of the highest; None for no such limit.
        specific: these, where they exist; empty for no such choice.
    """

    latest: int | None = None
    specific: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.latest is not None and self.latest < 1:
            raise ValueError(f"latest is {self.latest}; accepted: at least 1")
        if self.latest is not None and self.specific:
            raise ValueError("latest and specific are given; accepted: one of both")
        for version in self.specific:
            if not (version.isascii() and version.isdecimal()):
                raise ValueError(f"version is {version!r}; accepted: a decimal number")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``all``, ``latest`` (one), ``latest:2`` or versions such as ``1,3``.

        Raises:
            ValueError: it is none of these.
        """
        kind, colon, number = text.partition(":")
        if text == "all":
            return cls()
        if kind == "latest" and (not colon or (number.isascii() and number.isdecimal() and int(number) > 0)):
            return cls(latest=int(number) if colon else 1)
        versions = tuple(each.strip() for each in text.split(","))
        if not all(each.isascii() and each.isdecimal() for each in versions):
            raise ValueError(f"versions is {text!r}; accepted: all, latest, latest:<count>, or numbers such as 1,3")
        return cls(specific=versions)

    def choose(self, versions: Iterable[str]) -> list[str]:
        """Return those of some versions that are served, oldest first."""
        ordered = sorted(versions, key=int)
        if self.latest is not None:
            return ordered[-self.latest :]
        if self.specific:
            wanted = {int(each) for each in self.specific}
            return [each for each in ordered if int(each) in wanted]
        return ordered

    def __str__(self) -> str:
        if self.latest is not None:
            return f"latest:{self.latest}"
        return ",".join(self.specific) or "all"


@dataclass(frozen=True, kw_only=True)
class RepositorySettings:
    """How a folder of models is served.

    Attributes:
        versions: which versions of each model.
        control: who decides when models are loaded and unloaded, in Triton's words: ``"none"`` loads all models at the
            start, and that is that; ``"explicit"`` loads those in `load`, and then what the calls RepositoryModelLoad
            and RepositoryModelUnload say; ``"poll"`` loads all and follows the folder.
        load: names of the models that ``"explicit"`` loads at the start; ``"*"`` for all.
        poll_seconds: how often ``"poll"`` looks at the folder.
        exit_on_error: whether a model that cannot be loaded at the start is an error of the server. If not, it is
            listed as unavailable, and the others are served. None for yes with the control ``"none"``, where nothing
            would mend it later, and no with the others.
    """

    versions: VersionPolicy = field(default_factory=VersionPolicy)
    control: Control = "none"
    load: tuple[str, ...] = ()
    poll_seconds: float = 15.0
    exit_on_error: bool | None = None

    def __post_init__(self) -> None:
        if self.control not in get_args(Control):
            raise ValueError(f"control is {self.control!r}; accepted: {', '.join(get_args(Control))}")
        if self.load and self.control != "explicit":
            raise ValueError(f"load is {', '.join(self.load)} and control {self.control!r}; accepted: 'explicit'")
        if not self.poll_seconds > 0:
            raise ValueError(f"poll_seconds is {self.poll_seconds}; accepted: more than 0")

    @property
    def strict(self) -> bool:
        """A model that cannot be loaded at the start is an error."""
        return self.control == "none" if self.exit_on_error is None else self.exit_on_error


def read_policy(given: object) -> VersionPolicy:
    """Read the `version_policy` of a model configuration in JSON.

    Raises:
        InvalidRequestError: it is none of Triton's three.
    """
    match given:
        case {"all": _, **rest} if not rest:
            return VersionPolicy()
        case {"latest": {**latest}, **rest} if not rest and latest.keys() <= {"num_versions", "numVersions"}:
            number = next(iter(latest.values()), 1)
            if isinstance(number, int) and not isinstance(number, bool) and number > 0:
                return VersionPolicy(latest=number)
        case {"specific": {"versions": [*versions]}, **rest} if not rest and versions:
            if all(str(each).isascii() and str(each).isdecimal() for each in versions):
                return VersionPolicy(specific=tuple(map(str, versions)))
    raise InvalidRequestError(
        f"version_policy is {given!r:.200}; accepted: {{'all': {{}}}}, {{'latest': {{'num_versions': 1}}}} or "
        "{'specific': {'versions': [1]}}"
    )
