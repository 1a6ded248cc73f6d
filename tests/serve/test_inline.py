"""A caller who is alone is served by the loop; for several, as many runs take place at a time as get the most done."""

import pytest

from cellport.serve.inline import WayChooser


def simulated(chooser: WayChooser, now: float, one: float, several: float, requests: int) -> tuple[float, float]:
    """Where a request of many callers takes so many seconds: the part that ran beside others, and the time after."""
    chosen = 0
    for _ in range(requests):
        assert not chooser.alone
        chosen += chooser.several
        now += several if chooser.several else one
        chooser.take(now)
    return chosen / requests, now


@pytest.mark.parametrize(
    ("one", "several", "least", "most"),
    [(1.0, 1.2, 0.1, 0.2), (1.0, 1.0, 0.1, 0.2), (1.0, 0.5, 0.9, 1.0), (2.0, 0.1, 0.9, 1.0)],
)
def test_the_way_that_gets_more_done_is_taken_but_for_the_trials(
    one: float, several: float, least: float, most: float
) -> None:
    assert least <= simulated(WayChooser(), 0.0, one, several, 6400)[0] <= most


def test_the_way_changes_when_what_is_better_does() -> None:
    chooser, now = WayChooser(), 0.0
    parts = []
    for one, several in ((1.0, 1.2), (1.0, 0.4), (1.0, 1.2)):
        _, now = simulated(chooser, now, one, several, 4000)
        part, now = simulated(chooser, now, one, several, 4000)
        parts.append(part)
    assert parts[0] < 0.2
    assert parts[1] > 0.9
    assert parts[2] < 0.2
    assert "several" in repr(chooser)


def test_a_caller_that_is_alone_is_served_by_the_loop() -> None:
    chooser, now, chosen = WayChooser(), 0.0, 0
    for _ in range(64 * 64):
        chooser.take(now, met=False)
        chosen += chooser.alone
        now += 1.0
    assert 0.9 < chosen / (64 * 64) < 1.0
    assert "alone" in repr(chooser)


def test_that_a_caller_was_alone_is_forgotten_when_others_come() -> None:
    """The loop does not see them while it runs requests itself, so that only the workers' requests meet any."""
    chooser, now, chosen = WayChooser(), 0.0, 0
    for number in range(4000):
        chooser.take(now, met=number >= 2000 and not chooser.alone)
        chosen += chooser.alone and number >= 3000
        now += 1.0
    assert not chosen


def test_requests_that_come_together_are_not_of_one_caller() -> None:
    chooser, now = WayChooser(), 0.0
    while not chooser.alone:
        chooser.take(now, met=False)
        now += 1.0
    chooser.take(now, 2)
    assert not chooser.alone
