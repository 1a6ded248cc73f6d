"""The Tree-LSTMs are the specification's section 7.2, from the leaves to the roots, whatever the tree."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cellport.cells import LSTM, CellError, TreeLSTM, levels_of, neighbours_of, unite_graphs

from .graph_oracle import child_sum, n_ary

F, H = 3, 2
KINDS = [
    {"kind": "child_sum"},
    {"kind": "n_ary", "arity": 1},
    {"kind": "n_ary", "arity": 2},
    {"kind": "n_ary", "arity": 3},
]


def close(actual, wanted, tolerance=1e-12):
    wanted = torch.as_tensor(wanted) if isinstance(wanted, np.ndarray) else wanted
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def build(seed=0, **options):
    torch.manual_seed(seed)
    cell = TreeLSTM(F, H, dtype=torch.float64, **options)
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.7)
    return cell


def draw_tree(nodes, arity=None, seed=0):
    """Children [nodes, degree] of a random forest; `arity` slots of which some stay empty, or any number."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(nodes)
    slots = {i: [] for i in range(nodes)}
    found = np.full((nodes, arity), -1) if arity is not None else None
    for place in range(1, nodes):
        parent = names[rng.integers(max(0, place - 4), place)]
        if found is None:
            slots[parent].append(names[place])
        elif (free := np.flatnonzero(found[parent] < 0)).size:
            found[parent, rng.choice(free)] = names[place]
    if found is not None:
        return found
    return neighbours_of([(parent, child) for parent, each in slots.items() for child in each], nodes, directed=True)


def draw(nodes, seed=1):
    return torch.randn(nodes, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grow(cell, x, children, **options):
    return cell(x, torch.tensor(children), torch.tensor(levels_of(children, **options)))


def oracle(cell, x, children):
    values = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    weights = {"W": values["weight_ih"], "b": values["bias"], "U": values["weight_hh"]}
    if cell.arity is None:
        return child_sum(weights, x.numpy(), [[k for k in each if k >= 0] for each in children.tolist()])
    names = ["i", "o", "u", *(f"f_{k}" for k in range(cell.arity))]
    for name, rows in zip(names, np.split(values["weight_hh"], 3 + cell.arity), strict=True):
        for slot, block in enumerate(np.split(rows, cell.arity, 1)):
            weights[f"U_{name}_{slot}"] = block
    return n_ary(weights, x.numpy(), children.tolist())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_forest_of_any_kind(data):
    options, nodes = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(1, 14))
    children = draw_tree(nodes, options.get("arity"), data.draw(st.integers(0, 99)))
    cell, x = build(**options), draw(nodes)
    output, state = grow(cell, x, children, width=data.draw(st.sampled_from([None, 1, 3])))
    h, c = oracle(cell, x, children)
    close(output.detach(), h)
    close(state.h.detach(), h)
    close(state.c.detach(), c)


@pytest.mark.parametrize("options", KINDS[:2], ids=str)
def test_a_chain_is_the_lstm(options):
    """Child-sum with one child each, and one slot; the LSTM's i, f, g, o are i, f, u, o."""
    steps = 7
    lstm, cell = LSTM(F, H, dtype=torch.float64), build(**options)
    with torch.no_grad():
        for name, own in {"weight_ih": "weight_ih_l0", "weight_hh": "weight_hh_l0"}.items():
            i, f, g, o = lstm.get_parameter(own).chunk(4)
            cell.get_parameter(name).copy_(torch.cat([i, o, g, f]))
        i, f, g, o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
        cell.bias.copy_(torch.cat([i, o, g, f]))
    x = draw(steps)
    output, state = grow(cell, x, np.arange(steps)[:, None] - 1)
    wanted, final = lstm(x[:, None])
    close(output, wanted[:, 0])
    close(state.c[-1], final.c[0, 0])


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_trees_of_a_union_are_what_they_are_alone(options):
    trees = [draw_tree(nodes, options.get("arity"), seed) for nodes, seed in ((5, 0), (1, 1), (8, 2))]
    union = unite_graphs(trees)
    cell, x = build(**options), draw(14)
    together = grow(cell, x, union.neighbours)[0]
    for tree, start, stop in zip(trees, union.starts, union.starts[1:], strict=False):
        close(together[start:stop], grow(cell, x[start:stop], tree)[0])


def test_the_children_of_a_sum_have_no_order_and_slots_have_one():
    children, turned = np.array([[1, 2], [-1, -1], [-1, -1]]), np.array([[2, 1], [-1, -1], [-1, -1]])
    x = draw(3)
    for options, same in ((KINDS[0], True), (KINDS[2], False)):
        cell = build(**options)
        assert torch.allclose(grow(cell, x, children)[0], grow(cell, x, turned)[0], atol=1e-14) == same


def test_numbers_of_nodes_do_not_matter():
    children, x, cell = draw_tree(9), draw(9), build(kind="child_sum")
    new = np.random.default_rng(5).permutation(9)
    renamed = np.full_like(children, -1)
    renamed[new] = np.where(children < 0, -1, new[children])
    close(grow(cell, x[np.argsort(new)], renamed)[0][new], grow(cell, x, children)[0])


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_float32_stays_within_1e_5_of_the_oracle_over_100_nodes(options):
    cell, children, x = build(**options), draw_tree(100, options.get("arity")), draw(100)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.5)
    wanted = oracle(cell, x, children)[0]
    found = grow(cell.float(), x.float(), children)[0]
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [{"kind": "child_sum"}, {"kind": "n_ary", "arity": 2}], ids=str)
def test_one_feature_and_one_unit_are_the_oracles(kind):
    torch.manual_seed(0)
    cell, x = TreeLSTM(1, 1, dtype=torch.float64, **kind), draw(6)[:, :1]
    children = draw_tree(6, kind.get("arity"))
    close(grow(cell, x, children)[0].detach(), oracle(cell, x, children)[0])


def test_levels_are_heights():
    children = np.array([[1, 2], [3, -1], [-1, -1], [-1, -1]])
    assert levels_of(children, width=2).tolist() == [[2, 3], [1, -1], [0, -1]]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_gradients_are_finite_differences(options):
    cell, children = build(**options), draw_tree(6, options.get("arity"))
    names = [name for name, _ in cell.named_parameters()]
    values = [each.detach().requires_grad_() for each in (draw(6), *cell.parameters())]

    def run(x, *weights):
        arguments = (x, torch.tensor(children), torch.tensor(levels_of(children)))
        output, state = torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), arguments)
        return output, state.c

    assert torch.autograd.gradcheck(run, values, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_no_nodes_give_an_empty_result(options):
    none = np.zeros((0, options.get("arity", 1)), np.int64)
    output, state = grow(build(**options), draw(0), none)
    assert [list(each.shape) for each in (output, *state)] == [[0, H]] * 3


BAD = {
    "the graph has the cycle 1 -> 3 -> 2 -> 1": lambda: levels_of([[1], [3], [1], [2]]),
    "the graph has the cycle 0 -> 1 -> 0": lambda: levels_of([[1], [0], [1], [2]]),
    "node 2 is its own neighbour": lambda: levels_of([[-1], [-1], [2]]),
    "kind is 'sum'": lambda: TreeLSTM(2, 2, kind="sum"),
    "arity is None": lambda: TreeLSTM(2, 2, kind="n_ary"),
    "arity is 2 and kind 'child_sum'": lambda: TreeLSTM(2, 2, arity=2),
    "children have 3 slots; accepted is arity = 2": lambda: grow(build(**KINDS[2]), draw(4), draw_tree(4, 3)),
    "node 0 is in level 0 and its children include 1, in level 0": lambda: build()(
        draw(2), torch.tensor([[1], [-1]]), torch.tensor([[0, 1]])
    ),
    "children hold 2; accepted is 0 to 1": lambda: build()(draw(2), torch.tensor([[2], [-1]]), torch.tensor([[0, 1]])),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_tree_is_refused_by_name(message):
    with pytest.raises(CellError) as caught:
        BAD[message]()
    assert message in str(caught.value)
