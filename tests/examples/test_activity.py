"""The example of labels for every step: its series are disjoint, and a stream is labelled as PyTorch labels it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cellport.serve import Server
from examples.activity import data, demo

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recordings() -> dict[str, data.Recordings]:
    return {part: data.load(part) for part in ("TRAIN", "TEST")}


def test_no_recording_is_both_trained_on_and_tested(recordings: dict[str, data.Recordings]) -> None:
    """Not even a piece of one: no two seconds of one part are in the other."""
    seen = {
        part: {each[at : at + 20].tobytes() for each in x for at in range(81)} for part, (x, _) in recordings.items()
    }
    assert not seen["TRAIN"] & seen["TEST"]
    for x, y in recordings.values():
        assert x.shape == (40, 100, data.CHANNELS)
        assert np.bincount(y).tolist() == [10] * len(data.ACTIVITIES)


def test_a_tested_series_has_every_recording_once_and_changes_its_activity(
    recordings: dict[str, data.Recordings],
) -> None:
    series = data.join(recordings["TEST"], 5, np.random.default_rng(0))
    pieces = {each.tobytes() for each in series.x.reshape(-1, 100, data.CHANNELS)}
    assert pieces == {each.tobytes() for each in recordings["TEST"].x}
    assert (np.flatnonzero(np.diff(series.y[0])) == [99, 199, 299, 399]).all()


def test_a_drawn_series_is_labelled_with_what_it_was_cut_from(recordings: dict[str, data.Recordings]) -> None:
    steps = {step.tobytes(): y for x, y in zip(*recordings["TRAIN"], strict=True) for step in x}
    series = data.draw(recordings["TRAIN"], 3, 150, np.random.default_rng(0))
    assert [steps[step.tobytes()] for step in series.x.reshape(-1, data.CHANNELS)] == series.y.ravel().tolist()
    changes = np.flatnonzero(np.diff(series.y[0])) + 1
    assert len(changes)
    assert np.diff(changes, prepend=0).min() >= 3 * data.RATE


def test_a_stream_is_labelled_as_in_pytorch(recordings: dict[str, data.Recordings], tmp_path: Path) -> None:
    tested = data.join(recordings["TEST"], 5, np.random.default_rng(1))
    torch.manual_seed(0)
    model = demo.train(recordings["TRAIN"], 12, 16)
    path, x = demo.export(model, tmp_path, tested), tested.x[:3, 60:140]
    with Server(path, port=0) as server:
        labels = demo.stream(server.address, x)
    with torch.inference_mode():
        scores = model(torch.from_numpy(x))
    np.testing.assert_array_equal(labels, scores.argmax(2).numpy())
    assert len(np.unique(labels)) > 1


def test_the_baseline_sees_a_step_alone(recordings: dict[str, data.Recordings]) -> None:
    """The order of the steps makes no difference to it."""
    tested = data.join(recordings["TEST"], 5, np.random.default_rng(1))
    mixed = np.random.default_rng(0).permutation(500)
    found = demo.logistic(recordings["TRAIN"], tested)
    assert found == demo.logistic(recordings["TRAIN"], data.Series(tested.x[:, mixed], tested.y[:, mixed]))
    assert 0.25 < found < 0.75
