"""A step function over levels sees what a loop over nodes sees, and is refused by name where it does not fit."""

import numpy as np
import pytest
import torch

from cellport.cells import CellError, level_recurrence, levels_of, neighbours_of
from cellport.cells.levels import surplus


def test_states_and_outputs_of_any_structure_and_rank():
    """The sum of the neighbours' states, new where they come before, and of a node's input."""
    rng = np.random.default_rng(0)
    neighbours, order = neighbours_of(rng.integers(0, 4, (5, 2)) + np.array([0, 4]), 8), rng.permutation(8)
    inputs = {"x": torch.arange(8.0, dtype=torch.float64), "y": torch.ones(8, 2, 3, dtype=torch.float64)}
    start = (torch.ones(8, dtype=torch.float64), torch.zeros(8, 2, 3, dtype=torch.float64))

    def step(near, node):
        new = near[0].sum(1) + node["x"], near[1].sum(1) + node["y"]
        return new, [new[0] * 2]

    (doubled,), (x, y) = level_recurrence(
        step, start, inputs, torch.tensor(neighbours), torch.tensor(levels_of(neighbours, order))
    )
    wanted_x, wanted_y = np.ones(8), np.zeros((8, 2, 3))
    for i in order:
        near = neighbours[i][neighbours[i] >= 0]
        wanted_x[i] = wanted_x[near].sum() + i
        wanted_y[i] = wanted_y[near].sum(0) + 1
    np.testing.assert_allclose(x, wanted_x)
    np.testing.assert_allclose(y, wanted_y)
    np.testing.assert_allclose(doubled, 2 * wanted_x)


def test_a_node_in_no_level_keeps_its_state_and_its_output_is_0():
    start = torch.full((3, 1), 7.0)
    none = torch.full((3, 1), -1)
    output, state = level_recurrence(lambda near, _: (near.sum(1) + 1, near.sum(1) + 1), start, (), none, none[:1] + 2)
    assert output[:, 0].tolist() == [0, 1, 0]
    assert state[:, 0].tolist() == [7, 1, 7]


@pytest.mark.parametrize("cut", [None, 1, 3])
def test_an_earlier_reader_of_an_old_state_is_never_cut_behind_its_writer(cut):
    """Node 0 reads node 2, which comes later and reads no one: both may share a level, in this order."""
    neighbours, order = np.array([[2], [-1], [-1], [2]]), [0, 3, 1, 2]
    levels = torch.tensor(levels_of(neighbours, order, width=cut))
    start = torch.tensor([[1.0], [1.0], [5.0], [1.0]])
    _, state = level_recurrence(lambda near, _: (near.sum(1) + 10, ()), start, (), torch.tensor(neighbours), levels)
    assert state[:, 0].tolist() == [15, 10, 10, 15]


ONE = torch.zeros(2, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("step", "state", "levels", "message"),
    [
        (lambda near, _: ((near, near), ()), torch.zeros(2, 1), ONE[:1], "the step's new state is"),
        (lambda near, _: (near.sum(1)[:, :0], ()), torch.zeros(2, 1), ONE[:1], "behind the axis of nodes"),
        (lambda near, _: (near.sum(1).double(), ()), torch.zeros(2, 1), ONE[:1], "torch.float64"),
        (None, torch.zeros(2, 1), ONE, "levels hold node 0 2 times; accepted is once"),
        (
            None,
            torch.zeros(2, 1),
            ONE.float(),
            "levels are torch.float32 [2, 1]; accepted are integers [levels, width]",
        ),
        (None, torch.zeros(3, 1), ONE, "neighbours are [2, 1]; accepted is [nodes, degree] of 3 nodes"),
        (None, (torch.zeros(2, 1), torch.zeros(3, 1)), ONE, "state and inputs have [2, 3] nodes"),
        (None, (), ONE, "hold no tensor"),
        (None, torch.zeros(()), ONE, "something else than tensors"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(step, state, levels, message):
    with pytest.raises(CellError) as caught:
        level_recurrence(step, state, (), ONE - 1, levels)
    assert message in str(caught.value)


def test_rows_beyond_those_of_others_are_counted_by_an_operator_of_torchs_rules():
    values, others = torch.zeros(5, 2), torch.zeros(3, 1, dtype=torch.int64)
    assert surplus(values, others).tolist() == [2]
    assert surplus(others, values).tolist() == [-2]
    torch.library.opcheck(surplus, (values.requires_grad_(), others))
