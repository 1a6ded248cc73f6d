"""Padding in plain onnxruntime, for every cell in both directions: NaN is never read, rows without steps stay."""

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from cellport.export import to_onnx

from .models import FEATURES, Features, cell

BATCH, TIME, LENGTHS = 4, 6, np.array([6, 0, 2, 1])


@pytest.fixture(
    scope="module", params=["rnn-tanh", "lstm", "lstm-projected", "gru", "gru-reset-before", "sru-v2", "sru-v1"]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bidirectional cell that is given its state, as a function of features, lengths and state."""
    torch.manual_seed(0)
    made = cell(request.param, bidirectional=True, batch_first=True)
    names = list(made.state_names)
    path = tmp_path_factory.mktemp("padding") / "m.onnx"
    report = to_onnx(
        Features(made).eval(),
        (torch.randn(2, 3, FEATURES), *(torch.zeros(shape) for shape in made.state_shapes(2))),
        path,
        input_names=["features", *names],
        output_names=["output", *(f"{name}_out" for name in names)],
        dynamic_shapes={"features": {0: "batch", 1: "time"}, **{name: {1: "batch"} for name in names}},
        state={f"{name}_out": name for name in names},
        verify=False,
    )
    assert report.manifest.lengths is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = dict(zip(names, made.state_shapes(BATCH), strict=True))

    @cache
    def state(name: str) -> np.ndarray[Any, Any]:
        return np.random.default_rng(len(name)).standard_normal(shapes[name]).astype(np.float32)

    def go(features: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], rows: Any = slice(None)) -> Any:
        feeds = {"features": features, "lengths": lengths} | {name: state(name)[:, rows] for name in names}
        output, *final = session.run(None, feeds)
        return output, {name: (value, state(name)[:, rows]) for name, value in zip(names, final, strict=True)}

    return go


def features(padding: float = 0.0) -> np.ndarray[Any, Any]:
    value = np.random.default_rng(1).standard_normal((BATCH, TIME, FEATURES)).astype(np.float32)
    valid = np.arange(TIME) < LENGTHS[:, None]
    return np.where(valid[..., None], value, np.float32(padding))


def test_nan_in_the_padding_stays_there(run: Any) -> None:
    clean, garbage = run(features(), LENGTHS), run(features(np.nan), LENGTHS)
    np.testing.assert_array_equal(garbage[0], clean[0])
    for name, (value, _) in clean[1].items():
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(garbage[1][name][0], value)


def test_outputs_in_the_padding_are_zero_and_no_others_are(run: Any) -> None:
    output, _ = run(features(np.nan), LENGTHS)
    valid = np.arange(TIME) < LENGTHS[:, None]
    assert not output[~valid].any()
    assert output[valid].any(-1).all()


@pytest.mark.parametrize("lengths", [LENGTHS, np.zeros(BATCH, np.int64)])
def test_a_row_without_steps_keeps_its_states(run: Any, lengths: np.ndarray[Any, Any]) -> None:
    _, final = run(features(np.nan), lengths)
    for value, initial in final.values():
        np.testing.assert_array_equal(value[:, lengths == 0], initial[:, lengths == 0])
        assert (value != initial).any(axis=(0, 2))[lengths > 0].all()


def test_a_padded_row_is_the_row_alone(run: Any) -> None:
    output, final = run(features(np.nan), LENGTHS)
    for row, length in enumerate(LENGTHS):
        if length:
            alone, states = run(features()[row : row + 1, :length], np.array([-1]), slice(row, row + 1))
            np.testing.assert_allclose(output[row, :length], alone[0], rtol=0, atol=2e-6)
            for name, (value, _) in states.items():
                np.testing.assert_allclose(final[name][0][:, row], value[:, 0], rtol=0, atol=2e-6)
