"""An exported Graph LSTM, which visits nodes in slices without padding, is the specification's section 7.1 too."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from cellport.cells import GraphLSTM, levels_of
from cellport.cells.graph_visits import GROUP_SLOTS, graph_schedule, graph_sweep

from .test_graph_lstm import OPTIONS, F, H, build, close, draw, draw_graph, oracle

CASES = [*OPTIONS, {"layers": 2}, {"layers": 2, "residual": True, "gate_states": "old"}, {"layers": 3, "halved": True}]


class WithoutState(nn.Module):
    """Starts from zeros."""

    def __init__(self, cell: GraphLSTM) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, features, neighbours, levels):
        output, state = self.cell(features, neighbours, levels)
        return output, *state


class WithState(WithoutState):
    """Starts from what it is given."""

    def forward(self, features, neighbours, levels, h, m):
        output, state = self.cell(features, neighbours, levels, (h, m))
        return output, *state


@cache
def exported(case, with_state):
    cell = build(**CASES[case])
    nodes = Dim("nodes")
    axes = [{0: nodes}, {0: nodes, 1: Dim("degree")}, {0: Dim("steps"), 1: Dim("width")}]
    neighbours, order = draw_graph(7)
    arguments = [torch.tensor(neighbours), torch.tensor(levels_of(neighbours, order, width=3))]
    x, h, m = draw(7)
    model = (WithState if with_state else WithoutState)(cell)
    arguments, axes = ([x, *arguments, h, m], [*axes, axes[0], axes[0]]) if with_state else ([x, *arguments], axes)
    with torch.no_grad():
        return cell, torch.export.export(model, tuple(arguments), dynamic_shapes=tuple(axes), strict=False).module()


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(each) for each in CASES])
def test_an_exported_program_visits_nodes_one_after_the_other(case, with_state):
    cell, program = exported(case, with_state)
    for nodes, share, width in ((1, 0.0, None), (2, 1.0, 1), (9, 0.4, 2), (14, 0.3, None), (14, 1.0, 5)):
        neighbours, order = draw_graph(nodes, nodes, share)
        x, h, m = draw(nodes)
        h, m = (h, m) if with_state else (0 * h, 0 * m)
        levels = levels_of(neighbours, order, width=width)
        arguments = (x, torch.tensor(neighbours), torch.tensor(levels), *((h, m) if with_state else ()))
        for found, wanted in zip(program(*arguments), oracle(cell, x, neighbours, order, h, m), strict=True):
            close(found, wanted)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_lists_and_levels_are_what_the_wavefront_makes_of_them(data):
    """Nodes that are their own neighbours, or each other's within a step; holes in lists and levels; empty steps."""
    cell, program = exported(data.draw(st.sampled_from(range(len(CASES)))), True)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    nodes, degree, width = (data.draw(st.integers(least, 12)) for least in (1, 1, 1))
    neighbours = rng.integers(-1, nodes, (nodes, degree))
    levels = np.full((-(-nodes // width) + data.draw(st.integers(0, 4))) * width, -1)
    levels[rng.permutation(levels.size)[:nodes]] = rng.permutation(nodes)
    x, h, m = draw(nodes)
    x[rng.random(nodes) < 0.1] = torch.nan
    arguments = x, torch.tensor(neighbours), torch.tensor(levels.reshape(-1, width))
    output, state = cell(*arguments, (h, m))
    for found, wanted in zip(program(*arguments, h, m), (output, *state), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-12, equal_nan=True)


def schedule_of(neighbours, levels):
    names = ("order", "place", "near", "before", "step", "earlier", "later", "starts", "begins")
    found = graph_schedule(torch.tensor(neighbours), torch.tensor(levels), [])
    return {name: each.tolist() for name, each in zip(names, found, strict=True)}


def test_a_schedule_numbers_nodes_by_their_steps():
    found = schedule_of([[2, -1], [0, 2], [-1, -1]], [[2, -1], [-1, -1], [1, 0]])
    assert found["order"] == [2, 1, 0]
    assert found["place"] == [2, 1, 0]
    assert found["near"] == [[0, 0], [3, 1], [1, 0]]  # places plus one; 0 is none
    assert found["before"] == [0, 1, 1]
    assert found["step"] == [0, 2, 2]
    assert found["earlier"] == [0, 1, 1]
    assert found["later"] == [0, 1, 0]
    assert found["starts"] == [0, 1, 1]
    assert found["begins"] == [True, False, True]


def test_steps_that_do_not_read_each_other_are_visited_together():
    chain = [[-1], [0], [1], [-1], [3], [-1]]
    one_by_one = [[node] for node in (0, 3, 5, 1, 4, 2)]
    assert schedule_of(chain, one_by_one)["begins"] == [True, False, False, True, False, True]


def test_a_step_that_reads_what_a_later_one_changes_is_visited_with_it():
    """Within a group all read what was there before the group."""
    assert schedule_of([[1], [-1]], [[0], [1]])["begins"] == [True, False]
    assert schedule_of([[1], [-1]], [[1], [0]])["begins"] == [True, True]


def test_steps_visited_together_have_room_for_a_bounded_number_of_neighbours():
    """Beside a node that reads very many others, a group holds few nodes, but no step is cut."""
    nodes, hub = 1600, 800
    neighbours = np.full((nodes, hub), -1)
    neighbours[hub], neighbours[hub + 1 :, 0] = np.arange(hub), np.arange(hub - 1)
    for width in (10, 30, 64):
        found = schedule_of(neighbours, levels_of(neighbours, np.arange(nodes), width=width))
        starts = np.array(found["starts"])[found["begins"]]
        sizes = np.diff([*starts, nodes])
        assert sizes.max() <= max(width, GROUP_SLOTS // hub)
        assert sizes.max() > min(width, GROUP_SLOTS // hub) // 2


def test_rows_that_are_not_one_a_node_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\] rows; accepted is one for each of 2 nodes"):
        graph_schedule(torch.tensor([[1], [-1]]), torch.tensor([[1], [0]]), [torch.zeros(2, F), torch.zeros(3, F)])


def test_the_operators_keep_torchs_rules():
    neighbours, order = draw_graph(9)
    graph = torch.tensor(neighbours), torch.tensor(levels_of(neighbours, order))
    torch.library.opcheck(graph_schedule, (*graph, [torch.randn(9, F)]))
    _, _, *schedule = graph_schedule(*graph, [])
    x = torch.randn(9, F)
    gates, forget, kept = x @ torch.randn(F, 3 * H), x @ torch.randn(F, H), torch.randn(9, H)
    weights = torch.randn(3 * H, H), torch.randn(H, H)
    old = [torch.randn(9, H) for _ in range(3)]
    for state in ((None, []), (kept, old)):
        torch.library.opcheck(graph_sweep, (gates, forget, *state, kept[:, :1], schedule, *weights, True, True, False))
