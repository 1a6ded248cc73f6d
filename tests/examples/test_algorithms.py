"""The example of the Grid LSTM: its data is right, its models learn, and they answer the same when served."""

from pathlib import Path

import pytest
import torch

from examples.algorithms import demo, tasks, train
from examples.algorithms.models import Adder, parameters, stacked_like


def test_no_string_of_the_test_is_one_of_the_training() -> None:
    trained, _ = tasks.draw_parity(500, torch.Generator().manual_seed(0))
    tested, parities = tasks.draw_parity(500, torch.Generator().manual_seed(0), training=False)
    assert not tasks.held_out(trained > 0).any()
    assert tasks.held_out(tested > 0).all()
    assert parities.tolist() == [int((row > 0).sum()) % 2 for row in tested]
    assert 0.4 < float(parities.float().mean()) < 0.6


@pytest.mark.parametrize("digits", [1, 5])
def test_sums_are_sums(digits: int) -> None:
    read, wanted = tasks.draw_sums(50, torch.Generator().manual_seed(0), digits)
    assert read.shape == (50, 2 * digits + 1, 2)
    for row, answer in zip(read.tolist(), wanted.tolist(), strict=True):
        first, second = ("".join(str(pair[i]) for pair in row[:digits]) for i in (0, 1))
        assert int(first) + int(second) == int("".join(map(str, answer)))
        assert row[digits:] == [[tasks.NO_DIGIT] * 2] * (digits + 1)


def test_the_stacked_lstm_has_as_many_parameters() -> None:
    grid = Adder("grid")
    assert parameters(stacked_like(grid)) == pytest.approx(parameters(grid), rel=0.02)


def test_parity_of_few_steps_is_served_as_in_pytorch(tmp_path: Path) -> None:
    in_torch, served = demo.parity(tmp_path, steps=20, tested=200, layers=3)
    assert served == in_torch


def test_a_grid_learns_to_add_digits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Adder("grid", hidden=24, layers=2)
    said: list[str] = []
    assert train.train_adder(model, 300, said.append) == 300 * train.ROWS
    assert said[-1].startswith("  19,200 sums")
    read, wanted = tasks.draw_sums(200, torch.Generator().manual_seed(9), 1)
    assert train.exact_sums(model, read, wanted) > 0.5
    in_torch, served = demo.tested_sums(model, tmp_path / "grid.onnx", 200)
    assert served == in_torch
