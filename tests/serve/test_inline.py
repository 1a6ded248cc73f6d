"""The loop runs requests itself where that gets more of them done, and leaves them to workers where that does."""

import pytest

from cellport.serve.inline import WayChooser


def simulated(inline: float, workers: float, requests: int = 3000) -> float:
    """The part of requests that ran inline, where a request takes so many seconds this way or that."""
    chooser, now, chosen = WayChooser(), 0.0, 0
    for _ in range(requests):
        way = chooser.take(now)
        chosen += way
        now += inline if way else workers
    return chosen / requests


@pytest.mark.parametrize(
    ("inline", "workers", "least", "most"),
    [(1.0, 1.2, 0.7, 0.8), (1.0, 1.0, 0.7, 0.8), (1.0, 0.5, 0.0, 0.05), (0.1, 2.0, 0.7, 0.8)],
)
def test_the_way_that_gets_more_done_is_taken_but_for_the_trials(
    inline: float, workers: float, least: float, most: float
) -> None:
    assert least <= simulated(inline, workers) <= most


def test_the_way_changes_when_callers_become_many_and_few_again() -> None:
    chooser, now = WayChooser(), 0.0
    parts = []
    for inline, workers in ((1.0, 1.2), (1.0, 0.4), (1.0, 1.2)):
        chosen = 0
        for number in range(4000):
            way = chooser.take(now)
            chosen += way and number >= 2000
            now += inline if way else workers
        parts.append(chosen / 2000)
    assert parts[0] > 0.7
    assert parts[1] < 0.05
    assert parts[2] > 0.7
    assert "inline" in repr(chooser)


def test_a_caller_that_is_alone_is_served_by_the_loop_even_if_the_workers_seem_faster() -> None:
    chooser, now, chosen = WayChooser(), 0.0, 0
    for _ in range(64 * 64):
        way = chooser.take(now, met=False)
        chosen += way
        now += 1.0 if way else 0.9
    assert chosen / (64 * 64) > 0.9


def test_that_a_caller_was_alone_is_forgotten_when_others_come() -> None:
    chooser, now, chosen = WayChooser(), 0.0, 0
    for number in range(40_000):
        way = chooser.take(now, met=number >= 2000 and not chooser.inline)
        chosen += way and number >= 20_000
        now += 1.0 if way else 0.4
    assert chosen / 20_000 < 0.05
