"""Gathering requests into one run and giving each its own, for models with tensors of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellport.errors import InvalidRequestError
from cellport.serve import Engine, Model
from cellport.serve.jobs import Job, Part, Tick
from cellport.serve.ticks import group_key, run_tick

from . import models
from .wire import tokens_of


def job_of(model: Model, outputs: tuple[str, ...] = (), **inputs: Any) -> Job:
    return Job(model=model, bound=model.contract.bind(inputs, outputs), done=lambda _: None)


def run(model: Model, *jobs: Job) -> list[dict[str, Any]]:
    """Run jobs together, whole, and return their outputs."""
    parts = [
        Part(job, job.bound, position=0, steps=job.steps, rows=None, final=True, source=None, target=None)
        for job in jobs
        if job.bound is not None
    ]
    steps, rows = max(job.steps for job in jobs), sum(part.count for part in parts)
    assert run_tick(Tick(model=model, parts=parts, steps=steps, rows=rows)) == [None] * len(jobs)
    return [job.results for job in jobs]


def key(job: Job) -> Any:
    assert job.bound is not None
    return group_key(job.model, job.bound, cut=False, stateful=False)


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(models.save_scale(tmp_path_factory.mktemp("scale") / "scale.onnx"))


def test_requests_share_a_run_only_if_their_inputs_without_a_batch_axis_are_equal(scale: Model) -> None:
    x = np.ones((1, 2), np.float32)
    one, same, other = (job_of(scale, x=x, factor=np.array(value, np.float32)) for value in (2, 2, 3))
    assert key(one) == key(same) != key(other)
    np.testing.assert_array_equal([each["y"] for each in run(scale, one, same)], np.full((2, 1, 2), 102))


def test_requests_share_a_run_only_if_they_give_the_same_optional_inputs(scale: Model) -> None:
    factor = np.array(1, np.float32)
    x = np.zeros((1, 2), np.float32)
    without = job_of(scale, x=x, factor=factor)
    given = job_of(scale, x=x, factor=factor, offset=np.array([5], np.float32))
    assert key(without) != key(given)
    np.testing.assert_array_equal(run(scale, given)[0]["y"], [[5, 5]])


def test_requests_share_a_run_only_if_their_other_axes_are_equal(scale: Model) -> None:
    factor = np.array(1, np.float32)
    sizes = [job_of(scale, x=np.zeros((1, n), np.float32), factor=factor) for n in (2, 3)]
    assert key(sizes[0]) != key(sizes[1])


def test_a_graph_with_time_first_is_called_batch_first(tmp_path: Path) -> None:
    with Engine(models.save_time_first(tmp_path / "sums.onnx")) as engine:
        x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
        answer = engine.infer("sums", {"x": x})["y"]
    np.testing.assert_array_equal(answer, x.cumsum(axis=1))


def test_lengths_that_the_graph_requires_may_be_left_out_of_a_request(tmp_path: Path, folder: Path) -> None:
    required = Model.load(models.save_lstm(tmp_path / "lstm.onnx", lengths_default=False))
    optional = Model.load(folder / "lstm" / "2" / "model.onnx")
    tokens = tokens_of(4, seed=0, rows=2)
    [ours], [theirs] = (run(model, job_of(model, tokens=tokens)) for model in (required, optional))
    np.testing.assert_array_equal(ours["last"], theirs["last"])


def test_a_lone_request_is_given_to_the_graph_without_a_copy_and_without_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx")
    seen: list[Any] = []
    monkeypatch.setattr(model, "run", lambda feeds, fetches: seen.append(feeds) or Model.run(model, feeds, fetches))
    tokens = tokens_of(4, seed=0)
    run(model, job_of(model, tokens=tokens))
    assert list(seen[0]) == ["tokens"]
    assert seen[0]["tokens"] is tokens


def test_an_array_of_another_byte_order_is_refused(folder: Path) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx")
    with pytest.raises(InvalidRequestError, match="'tokens' has dtype >i8; accepted: this machine's byte order"):
        job_of(model, tokens=np.zeros((1, 2), ">i8"))
