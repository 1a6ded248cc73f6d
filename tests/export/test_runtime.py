"""Exported files in plain onnxruntime."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellport.export.runs import Contract, in_chunks

from .conftest import Exported
from .models import CLASSES, VOCABULARY

ALL = ["lstm", "gru", "rnn", "sru", "sru_plain"]


@pytest.fixture(params=ALL)
def exported(request: pytest.FixtureRequest) -> Exported:
    made: Exported = request.getfixturevalue(request.param)
    return made


def tokens(batch: int, time: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, time))


def run(exported: Exported, **feeds: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    session = exported.session()
    names = [each.name for each in session.get_outputs()]
    dotted = {name.replace("__", "."): value for name, value in feeds.items()}
    return dict(zip(names, session.run(None, dotted), strict=True))


def states(exported: Exported, batch: int, value: float) -> dict[str, np.ndarray[Any, Any]]:
    return {
        each.input.replace(".", "__"): np.full((2, batch, 5), value, np.float32)
        for each in exported.report.manifest.states
    }


def test_a_state_that_is_left_out_starts_at_zero(exported: Exported) -> None:
    ids = tokens(3, 4)
    left_out, given = run(exported, tokens=ids), run(exported, tokens=ids, **states(exported, 3, 0.0))
    other = run(exported, tokens=ids, **states(exported, 3, 0.5))
    for name, value in left_out.items():
        np.testing.assert_array_equal(value, given[name])
        assert not np.array_equal(value, other[name])


def test_lengths_that_are_left_out_cover_the_whole_axis(exported: Exported) -> None:
    ids = tokens(2, 5)
    left_out, given = run(exported, tokens=ids), run(exported, tokens=ids, lengths=np.array([5, 5]))
    for name, value in left_out.items():
        np.testing.assert_array_equal(value, given[name])


@pytest.mark.parametrize("lengths", [[0, 4, 2], [0, 0, 0]])
def test_a_row_without_steps_keeps_its_state(exported: Exported, lengths: list[int]) -> None:
    """onnxruntime's own operators would return zeros."""
    given = states(exported, 3, 0.25)
    result = run(exported, tokens=tokens(3, 4), lengths=np.array(lengths), **given)
    for state in exported.report.manifest.states:
        np.testing.assert_array_equal(result[state.output][:, 0], given[state.input.replace(".", "__")][:, 0])


def test_what_stands_in_the_padding_changes_nothing(exported: Exported) -> None:
    ids, lengths = tokens(3, 6), np.array([6, 2, 4])
    other = np.where(np.arange(6) < lengths[:, None], ids, (ids + 7) % VOCABULARY)
    assert not np.array_equal(ids, other)
    first, second = (run(exported, tokens=each, lengths=lengths) for each in (ids, other))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_a_padded_row_is_the_row_alone(exported: Exported) -> None:
    ids, lengths = tokens(3, 6), np.array([6, 2, 4])
    together = run(exported, tokens=ids, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = run(exported, tokens=ids[row : row + 1, :length])
        np.testing.assert_allclose(together["scores"][row, :length], alone["scores"][0], rtol=0, atol=1e-6)
        for state in exported.report.manifest.states:
            np.testing.assert_allclose(together[state.output][:, row], alone[state.output][:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (1, 9), (5, 1), (4, 33)])
def test_sizes_are_the_callers(exported: Exported, batch: int, time: int) -> None:
    ids = tokens(batch, time)
    result = run(exported, tokens=ids)["scores"]
    assert result.shape == (batch, time, CLASSES)
    with torch.no_grad():
        truth = exported.model.double()(torch.from_numpy(ids)).numpy()
        exported.model.float()
    np.testing.assert_allclose(result, truth, rtol=0, atol=2e-6)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_chunks_of_any_length_give_what_one_pass_gives(exported: Exported, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 12), label="steps")
    cuts = sorted({0, steps, *data.draw(st.lists(st.integers(1, steps), max_size=4), label="cuts")})
    lengths = np.array(data.draw(st.lists(st.integers(0, steps), min_size=3, max_size=3), label="lengths"))
    session = exported.session()
    names = [each.name for each in session.get_outputs()]

    def run(feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return dict(zip(names, session.run(None, feeds), strict=True))

    feeds = {"tokens": tokens(3, steps), "lengths": lengths}
    whole = run(feeds)
    pieces = in_chunks(run, Contract.of(exported.report.manifest), feeds, cuts)
    for name, value in whole.items():
        np.testing.assert_allclose(pieces[name], value, rtol=0, atol=2e-6)
