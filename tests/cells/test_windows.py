"""The windows of a wavefront hold every position of every image, and no more slots than they have to."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellport.cells.diagonals import Diagonals
from cellport.cells.windows import choose, widen, window


def of(grid: Any, along: int, apart: int | None, sizes: Any = None) -> Diagonals:
    batch = 2 if sizes is None else len(sizes)
    given_sizes = None if sizes is None else torch.tensor(sizes, dtype=torch.int64).reshape(batch, len(grid))
    return Diagonals(grid, along, apart, batch, given_sizes, None, torch.device("cpu"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_window_begins_at_the_first_slot_with_a_position_and_ends_at_the_last(data: Any) -> None:
    grid = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    along = data.draw(st.integers(0, len(grid) - 1))
    apart = data.draw(st.sampled_from([None, *(d for d in range(len(grid)) if d != along)]))
    sizes = data.draw(
        st.none() | st.lists(st.tuples(*(st.integers(0, n) for n in grid)), min_size=1, max_size=3), label="sizes"
    )
    diagonals = of(grid, along, apart, sizes)
    if not diagonals.in_rows:
        return
    first = diagonals.in_rows[0]
    found: dict[int, list[int]] = {}
    for size in [grid] if sizes is None else sizes:
        for position in itertools.product(*map(range, size)):
            found.setdefault(sum(position), []).append(position[first])
    low, high = (each.tolist() for each in diagonals.active())
    for diagonal, places in found.items():
        assert low[diagonal] <= min(places)
        assert high[diagonal] > max(places)
        if sizes is None:
            assert (low[diagonal], high[diagonal]) == (min(places), max(places) + 1)
    assert all(0 <= a <= b <= grid[first] for a, b in zip(low, high, strict=True))


def test_no_images_have_no_windows() -> None:
    low, high = of((3, 4), 1, None, []).active()
    assert not low.any()
    assert not high.any()


X = torch.arange(24.0).reshape(2, 4, 3).requires_grad_()


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("border", [None, torch.zeros(1, dtype=torch.int64)], ids=["all", "border"])
def test_a_tracer_sees_all_rows(border: torch.Tensor | None, in_front: bool) -> None:
    bound = torch.zeros(3, dtype=torch.int64)
    arguments = (X, bound, bound, border, in_front, [1, 2, 0], [1, 3, 0, 1])
    left_out = 0 if border is None else 1
    first = left_out if in_front else 0
    assert torch.equal(window(*arguments), X[0:1, first : first + 4 - left_out, 1:3])
    torch.library.opcheck(window, arguments)
    wide = widen(X, bound[:2], border, 1)
    assert torch.equal(wide[:, left_out:], X)
    assert not wide[:, :left_out].any()
    torch.library.opcheck(widen, (X, bound[:2], border, 1))


def test_without_a_file_the_bounds_are_those_of_all_rows() -> None:
    assert torch.equal(choose(torch.tensor([1]), torch.tensor([2])), torch.tensor([2]))
