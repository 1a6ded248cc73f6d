"""Joining requests into one run and cutting it again, for models with tensors of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellport.errors import InvalidRequestError
from cellport.serve import Engine, Model
from cellport.serve.assembly import Answer, join, key
from cellport.serve.batcher import Batch, Work
from cellport.serve.running import run_batch

from . import models
from .wire import tokens_of


def work_of(model: Model, carried: Any = None, **inputs: Any) -> Work:
    return Work(model=model, bound=model.contract.bind(inputs), done=lambda _: None, carried=carried)


def run(model: Model, *works: Work) -> list[Answer]:
    answers = run_batch(Batch(model=model, works=works))
    for answer in answers:
        assert isinstance(answer, Answer), answer
    return answers  # type: ignore[return-value]


def keys(*works: Work) -> list[Any]:
    return [key(work.model.contract, work.member) for work in works]


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(models.save_scale(tmp_path_factory.mktemp("scale") / "scale.onnx"))


def test_requests_share_a_run_only_if_their_inputs_without_a_batch_axis_are_equal(scale: Model) -> None:
    x = np.ones((1, 2), np.float32)
    one, same, other = (work_of(scale, x=x, factor=np.array(value, np.float32)) for value in (2, 2, 3))
    assert keys(one)[0] == keys(same)[0] != keys(other)[0]
    np.testing.assert_array_equal([each.outputs["y"] for each in run(scale, one, same)], np.full((2, 1, 2), 102))


def test_requests_share_a_run_only_if_they_give_the_same_optional_inputs(scale: Model) -> None:
    factor = np.array(1, np.float32)
    x = np.zeros((1, 2), np.float32)
    without = work_of(scale, x=x, factor=factor)
    given = work_of(scale, x=x, factor=factor, offset=np.array([5], np.float32))
    assert keys(without) != keys(given)
    np.testing.assert_array_equal(run(scale, given)[0].outputs["y"], [[5, 5]])


def test_requests_share_a_run_only_if_their_other_axes_are_equal(scale: Model) -> None:
    factor = np.array(1, np.float32)
    sizes = [work_of(scale, x=np.zeros((1, n), np.float32), factor=factor) for n in (2, 3)]
    assert keys(sizes[0]) != keys(sizes[1])


def test_a_graph_with_time_first_is_called_batch_first(tmp_path: Path) -> None:
    with Engine(models.save_time_first(tmp_path / "sums.onnx")) as engine:
        x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
        answer = engine.infer("sums", {"x": x})["y"]
    np.testing.assert_array_equal(answer, x.cumsum(axis=1))


def test_lengths_that_the_graph_requires_may_be_left_out_of_a_request(tmp_path: Path, folder: Path) -> None:
    required = Model.load(models.save_lstm(tmp_path / "lstm.onnx", lengths_default=False))
    optional = Model.load(folder / "lstm" / "2" / "model.onnx")
    tokens = tokens_of(4, seed=0, rows=2)
    [ours], [theirs] = (run(model, work_of(model, tokens=tokens)) for model in (required, optional))
    np.testing.assert_array_equal(ours.outputs["last"], theirs.outputs["last"])


def test_a_lone_request_is_given_to_the_graph_without_a_copy_and_without_defaults(folder: Path) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx")
    tokens = tokens_of(4, seed=0)
    feeds = join(model.contract, [work_of(model, tokens=tokens).member], model.required)
    assert list(feeds) == ["tokens"]
    assert feeds["tokens"] is tokens


def test_the_state_that_a_sequence_keeps_holds_no_other_sequences_rows_in_memory(folder: Path) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx")
    answers = run(model, *(work_of(model, {}, tokens=tokens_of(2, seed)) for seed in range(3)))
    for answer in answers:
        for state in answer.states.values():
            assert state.shape == (1, 1, 8)
            assert state.flags.owndata


def test_an_array_of_another_byte_order_is_refused(folder: Path) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx")
    with pytest.raises(InvalidRequestError, match="'tokens' has dtype >i8; accepted: this machine's byte order"):
        work_of(model, tokens=np.zeros((1, 2), ">i8"))
