"""Version policies, and the settings of a folder of models."""

import pytest

from cellport.errors import InvalidRequestError
from cellport.serve.versions import RepositorySettings, VersionPolicy, read_policy


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("all", ["1", "2", "10"]),
        ("latest", ["10"]),
        ("latest:2", ["2", "10"]),
        ("latest:9", ["1", "2", "10"]),
        ("1,3,10", ["1", "10"]),
        ("02", ["2"]),
        ("3", []),
    ],
)
def test_a_policy_chooses_among_the_versions_that_there_are(text: str, chosen: list[str]) -> None:
    assert VersionPolicy.parse(text).choose(["10", "1", "2"]) == chosen


@pytest.mark.parametrize("text", ["", "newest", "latest:", "latest:0", "latest:-1", "1,", "1;2", "²"])
def test_a_policy_that_is_none_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match=r"accepted: all, latest, latest:<count>, or numbers such as 1,3"):
        VersionPolicy.parse(text)


@pytest.mark.parametrize("text", ["all", "latest:2", "1,3"])
def test_a_policy_prints_as_it_is_read(text: str) -> None:
    assert str(VersionPolicy.parse(text)) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"all": {}}, "all"),
        ({"latest": {}}, "latest:1"),
        ({"latest": {"num_versions": 3}}, "latest:3"),
        ({"latest": {"numVersions": 3}}, "latest:3"),
        ({"specific": {"versions": [1, "3"]}}, "1,3"),
    ],
)
def test_a_policy_of_tritons_configuration_is_read(given: object, text: str) -> None:
    assert str(read_policy(given)) == text


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"all": {}, "latest": {}},
        {"latest": {"num_versions": 0}},
        {"latest": {"num_versions": True}},
        {"specific": {"versions": []}},
        {"specific": {"versions": ["x"]}},
        {"some": 1},
    ],
)
def test_a_policy_that_triton_does_not_have_is_refused(given: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"version_policy is .*; accepted: "):
        read_policy(given)


def test_only_a_server_that_loads_nothing_later_is_strict_by_itself() -> None:
    assert RepositorySettings().strict
    assert not RepositorySettings(control="poll").strict
    assert not RepositorySettings(control="explicit").strict
    assert RepositorySettings(control="poll", exit_on_error=True).strict
    assert not RepositorySettings(exit_on_error=False).strict


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control": "sometimes"}, "control is 'sometimes'; accepted: none, explicit, poll"),
        ({"load": ("a",)}, "load is a and control 'none'; accepted: 'explicit'"),
        ({"poll_seconds": 0.0}, "poll_seconds is 0.0; accepted: more than 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RepositorySettings(**settings)  # type: ignore[arg-type]
