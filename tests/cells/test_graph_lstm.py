"""The Graph LSTM is the specification's section 7.1, one node after the other, whatever its options and levels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cellport.cells import LSTM, CellError, GraphLSTM, levels_of, neighbours_of, unite_graphs, visiting_order

from .graph_oracle import sweep

F, H = 3, 2
OPTIONS = [
    {"gate_states": gate_states, "output": output, "halved": halved}
    for gate_states in ("newest", "old")
    for output in ("tanh_o_m", "o_tanh_m")
    for halved in (False, True)
]
VECTORS = {
    ("old", "tanh_o_m"): "-0.2070374350 0.0911329253 -0.0089743394 -0.1311016578 -0.1842350496 -0.0246134023",
    ("newest", "tanh_o_m"): "-0.2070771746 0.0916568776 -0.0089743394 -0.1311016578 -0.1818703311 -0.0228082927",
    ("old", "o_tanh_m"): "-0.1996539795 0.0905308456 -0.0089740635 -0.1288403576 -0.1800831799 -0.0255195499",
    ("newest", "o_tanh_m"): "-0.1996889463 0.0910354865 -0.0089740635 -0.1288403576 -0.1778788115 -0.0237654110",
}


def close(actual, wanted, tolerance=1e-12):
    wanted = torch.as_tensor(wanted) if isinstance(wanted, np.ndarray) else wanted
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def build(seed=0, **options):
    torch.manual_seed(seed)
    cell = GraphLSTM(F, H, dtype=torch.float64, **{"residual": False, **options})
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.7)
    return cell


def draw_graph(nodes, seed=0, share=0.4):
    """Undirected random neighbours, and an order."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((nodes, nodes)) < share, 1)
    return neighbours_of(np.argwhere(upper), nodes), rng.permutation(nodes)


def draw(nodes, seed=1, features=F):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(nodes, size, generator=generator, dtype=torch.float64) for size in (features, H, H))


def visit(cell, x, neighbours, order, state=None, **options):
    return cell(x, torch.tensor(neighbours), torch.tensor(levels_of(neighbours, order, **options)), state)


def oracle(cell, x, neighbours, order, h, m):
    """All layers of a cell, one node after the other."""
    weights = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    x, h, m = x.numpy(), h.numpy(), m.numpy()
    if cell.projects:
        x = x @ weights["weight_in"].T + weights["bias_in"]
    lists = [[j for j in each if j >= 0] for each in neighbours.tolist()]
    for layer in range(cell.layers):
        names = {"W": "weight_ih", "U": "weight_hh", "Un": "weight_nh", "b": "bias"}
        own = {short: weights[f"{name}_l{layer}"] for short, name in names.items()}
        h, m = sweep(own, x, lists, order, h, m, cell.gate_states, cell.output, cell.halved)
        x = x + h if cell.residual else h
    return x, h, m


def agree(cell, x, neighbours, order, h, m, **options):
    output, state = visit(cell, x, neighbours, order, (h, m), **options)
    for found, wanted in zip((output, *state), oracle(cell, x, neighbours, order, h, m), strict=True):
        close(found.detach(), wanted)


@pytest.mark.parametrize(("gate_states", "output"), VECTORS)
def test_the_published_numbers_of_the_specification(gate_states, output):
    cell = GraphLSTM(2, 2, gate_states=gate_states, output=output, residual=False, dtype=torch.float64)
    start = 0
    for name in ("weight_ih_l0", "weight_hh_l0", "weight_nh_l0", "bias_l0"):
        parameter = cell.get_parameter(name)
        places = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
        parameter.data = (0.4 * torch.sin(1.3 * places + 0.2)).view_as(parameter)
        start += parameter.numel()
    x = torch.cos(0.9 * torch.arange(6, dtype=torch.float64) + 0.1).view(3, 2)
    h, _ = visit(cell, x, neighbours_of([[0, 1], [0, 2]], 3), [1, 0, 2], symmetric=True)
    wanted = torch.tensor([float(value) for value in VECTORS[gate_states, output].split()], dtype=torch.float64)
    close(h.detach().flatten(), wanted, 1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_levels_give_what_one_node_after_the_other_gives(options):
    neighbours, order = draw_graph(14)
    agree(build(**options), *draw_three(14, neighbours, order))


@pytest.mark.parametrize("residual", [False, True])
def test_layers_hand_on_states_and_with_residual_their_features(residual):
    neighbours, order = draw_graph(9)
    x, h, m = draw(9)
    agree(build(layers=3, residual=residual), x, neighbours, order, h, m)
    x, h, m = draw(9, features=H)
    torch.manual_seed(1)
    agree(GraphLSTM(H, H, layers=2, residual=residual, dtype=torch.float64), x, neighbours, order, h, m)


def test_a_state_that_is_left_out_is_zeros():
    neighbours, order = draw_graph(9)
    x, h, _ = draw(9)
    cell = build(layers=2)
    close(visit(cell, x, neighbours, order), visit(cell, x, neighbours, order, (0 * h, 0 * h)), 1e-15)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_graph_in_any_order_cut_to_any_width(data):
    nodes = data.draw(st.integers(1, 12))
    neighbours, order = draw_graph(
        nodes, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    )
    if data.draw(st.booleans()):  # edges of one direction, as of a chain
        neighbours = np.where(np.random.default_rng(nodes).random(neighbours.shape) < 0.5, neighbours, -1)
    options = data.draw(st.sampled_from(OPTIONS))
    agree(build(**options), *draw_three(nodes, neighbours, order), width=data.draw(st.sampled_from([None, 1, 2, 5])))


def draw_three(nodes, neighbours, order):
    x, h, m = draw(nodes)
    return x, neighbours, order, h, m


def test_a_directed_chain_is_the_lstm():
    """With N(i) = {i - 1}, states of zeros and the newest gate states; old ones or an undirected chain are not."""
    steps = 7
    lstm = LSTM(F, H, dtype=torch.float64)
    cell = build(output="o_tanh_m")
    with torch.no_grad():
        for name, own in {"weight_ih": "weight_ih_l0", "weight_nh": "weight_hh_l0"}.items():
            cell.get_parameter(f"{name}_l0").copy_(lstm.get_parameter(own))  # blocks u, f, c, o are i, f, g, o
        cell.bias_l0.copy_(lstm.bias_ih_l0 + lstm.bias_hh_l0)
    x, _, _ = draw(steps)
    chain = np.arange(steps)[:, None] - 1
    h, (_, m) = visit(cell, x, chain, np.arange(steps))
    output, state = lstm(x[:, None])
    close(h, output[:, 0])
    close(m[-1], state.c[0, 0])
    both = neighbours_of(np.stack([np.arange(steps - 1), np.arange(1, steps)], 1), steps)
    assert (visit(cell, x, both, np.arange(steps))[0] - h).abs().max() > 1e-3
    old = build(output="o_tanh_m", gate_states="old")
    old.load_state_dict(cell.state_dict())
    assert (visit(old, x, chain, np.arange(steps))[0] - h).abs().max() > 1e-3


def test_graphs_of_a_union_are_what_they_are_alone():
    graphs = [draw_graph(nodes, seed) for nodes, seed in ((6, 0), (1, 1), (9, 2))]
    union = unite_graphs([each[0] for each in graphs], [each[1] for each in graphs])
    cell = build(layers=2)
    x, _, _ = draw(16)
    together = visit(cell, x, union.neighbours, union.order)[0]
    for (neighbours, order), start, stop in zip(graphs, union.starts, union.starts[1:], strict=False):
        close(together[start:stop], visit(cell, x[start:stop], neighbours, order)[0])


def test_numbers_of_nodes_do_not_matter_while_the_order_is_the_same():
    neighbours, order = draw_graph(10)
    cell = build(layers=2)
    x, _, _ = draw(10)
    new = np.random.default_rng(5).permutation(10)  # node i becomes new[i]
    renamed = np.full_like(neighbours, -1)
    renamed[new] = np.where(neighbours < 0, -1, new[neighbours])
    found = visit(cell, x[np.argsort(new)], renamed, new[order])[0]
    close(found[new], visit(cell, x, neighbours, order)[0])


def test_numbers_of_superpixels_do_not_matter_where_ties_are_broken_by_something_else():
    """Of equally confident nodes the upper left one comes first, whatever its number."""
    neighbours, _ = draw_graph(12)
    rng = np.random.default_rng(3)
    confidence, place = rng.integers(0, 3, 12) / 4, rng.permutation(12)
    cell = build(layers=2)
    x, _, _ = draw(12)
    new = rng.permutation(12)
    renamed = np.full_like(neighbours, -1)
    renamed[new] = np.where(neighbours < 0, -1, new[neighbours])

    def ordered(confidence, place):
        by_place = np.argsort(place)
        return by_place[visiting_order(confidence[by_place])]

    wanted = visit(cell, x, neighbours, ordered(confidence, place))[0]
    old = np.argsort(new)
    found = visit(cell, x[old], renamed, ordered(confidence[old], place[old]))[0]
    close(found[new], wanted)
    assert (visit(cell, x[old], renamed, visiting_order(confidence[old]))[0][new] - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_float32_stays_within_1e_5_of_the_oracle_over_100_nodes(options):
    neighbours, order = draw_graph(100, share=0.05)
    cell = build(**options)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.5)
    x, h, m = draw(100)
    wanted = oracle(cell, x, neighbours, order, h, m)[0]
    single = visit(cell.float(), x.float(), neighbours, order, (h.float(), m.float()))[0]
    np.testing.assert_allclose(single.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nodes", [1, 3])
def test_one_feature_and_one_unit_are_the_oracles(nodes):
    torch.manual_seed(0)
    cell = GraphLSTM(1, 1, dtype=torch.float64)
    x, h, m = (torch.randn(nodes, 1, dtype=torch.float64) for _ in range(3))
    agree(cell, x, *draw_graph(nodes, share=1.0), h, m)


def test_an_isolated_node_has_no_neighbour_terms():
    """Its hb is 0 and its memory its own; a graph of several parts is a graph."""
    cell = build()
    x, h, m = draw(4)
    neighbours = neighbours_of([[0, 1], [0, 3]], 4)
    agree(cell, x, neighbours, [2, 0, 1, 3], h, m)
    alone = visit(cell, x[2:3], np.full((1, 1), -1), [0], (h[2:3], m[2:3]))[0]
    close(visit(cell, x, neighbours, [2, 0, 1, 3], (h, m))[0][2:3], alone)


@pytest.mark.parametrize("options", [*OPTIONS[::3], {"layers": 2, "residual": True}], ids=str)
def test_gradients_are_finite_differences(options):
    cell = build(**options)
    neighbours, order = draw_graph(6)
    x, h, m = draw(6)
    names = [name for name, _ in cell.named_parameters()]
    values = [each.detach().requires_grad_() for each in (x, h, m, *cell.parameters())]

    def run(x, h, m, *weights):
        lists, levels = torch.tensor(neighbours), torch.tensor(levels_of(neighbours, order))
        arguments = (x, lists, levels, (h, m))
        output, state = torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), arguments)
        return output, *state

    assert torch.autograd.gradcheck(run, values, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


def test_no_nodes_give_an_empty_result():
    cell = build(layers=2, residual=True)
    none = np.zeros((0, 3), np.int64)
    assert levels_of(none, np.zeros(0, np.int64)).tolist() == [[-1]]
    output, state = visit(cell, torch.zeros(0, F, dtype=torch.float64), none, np.zeros(0, np.int64))
    assert [list(each.shape) for each in (output, *state)] == [[0, H]] * 3


def test_memories_grow_linearly_with_the_levels_and_not_at_all_where_halved():
    nodes = 40
    chain = neighbours_of(np.stack([np.arange(nodes - 1), np.arange(1, nodes)], 1), nodes)
    for halved in (False, True):
        cell = build(halved=halved)
        x, h, m = draw(nodes)
        _, state = visit(cell, 100 * x, chain, np.arange(nodes), (h, m))
        bound = m.abs().max() + 1
        limits = bound * (1 if halved else torch.arange(2, nodes + 2)[:, None])
        assert (state.c.abs() <= limits).all()


def test_the_order_is_by_descending_confidence_and_ties_by_number():
    assert visiting_order([0.5, 0.9, 0.5, 0.1]).tolist() == [1, 0, 2, 3]
    labels = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.8, 0.2]]
    assert visiting_order(labels).tolist() == [0, 1, 3, 2]
    assert visiting_order(labels, background=0).tolist() == [1, 2, 0, 3]


BAD = {
    "node 0 has the neighbours [1, 3]; accepted is 0 to 2": lambda: levels_of([[1, 3], [0, -1], [0, -1]], [0, 1, 2]),
    "node 1 has the neighbours [-2]": lambda: levels_of([[1], [-2]], [0, 1]),
    "order has node 0 2 times; accepted is each of the 2 nodes once": lambda: levels_of([[1], [0]], [0, 0]),
    "order has 3 nodes; accepted is each of the 2": lambda: levels_of([[1], [0]], [0, 1, 2]),
    "node 0 has the neighbour 1, but node 1 does not have 0": lambda: levels_of([[1], [-1]], [0, 1], symmetric=True),
    "node 1 is its own neighbour": lambda: levels_of([[-1], [1]], [0, 1]),
    "width is 0": lambda: levels_of([[1], [0]], [0, 1], width=0),
    "edge 1 is [0, 2]; accepted are nodes 0 to 1": lambda: neighbours_of([[0, 1], [0, 2]], 2),
    "node 1 is its own neighbour; accepted": lambda: neighbours_of([[1, 1]], 2),
    "confidence has shape [2]": lambda: visiting_order([0.1, np.nan]),
    "background is 2": lambda: visiting_order([[0.1, 0.2]], background=2),
    "there are 1 orders and 2 graphs": lambda: unite_graphs([[[-1]], [[-1]]], [[0]]),
    "neighbours are float64": lambda: levels_of([[0.5]]),
    "gate_states is 'new'; accepted are 'newest' and 'old'": lambda: GraphLSTM(2, 2, gate_states="new"),
    "output is 'h'": lambda: GraphLSTM(2, 2, output="h"),
    "layers is 0": lambda: GraphLSTM(2, 2, layers=0),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_graph_or_order_is_refused_by_name(message):
    with pytest.raises(CellError) as caught:
        BAD[message]()
    assert message in str(caught.value)


def call(levels=((0, 1), (2, -1)), neighbours=((1,), (0,), (-1,)), x=None, state=None):
    cell = build()
    x = torch.zeros(3, F, dtype=torch.float64) if x is None else x
    as_integers = [each if isinstance(each, torch.Tensor) else torch.tensor(each) for each in (neighbours, levels)]
    return cell(x, *as_integers, state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": ((0, 1),)}, "levels have node 2 0 times; accepted is each node once"),
        ({"levels": ((0, 1), (2, 0))}, "levels have node 0 2 times"),
        ({"levels": ((0, 1), (3, -1))}, "levels hold 3; accepted is 0 to 2"),
        ({"neighbours": ((1,), (0,), (-2,))}, "neighbours hold -2; accepted is 0 to 2, a node, or -1"),
        ({"neighbours": ((1,), (0,))}, "neighbours are [2, 1]; accepted is [3, degree]"),
        ({"neighbours": torch.zeros(3, 1)}, "neighbours are torch.float32 [3, 1]; accepted are integers"),
        ({"x": torch.zeros(3, F)}, "input has dtype torch.float32"),
        ({"state": torch.zeros(3, H)}, "state is a Tensor; accepted is (h, m)"),
        ({"state": (torch.zeros(2, H), torch.zeros(3, H))}, "state 'h' has shape [2, 2]; accepted is [3, 2]"),
    ],
)
def test_calls_with_what_does_not_fit_are_refused_by_name(arguments, message):
    with pytest.raises(CellError) as caught:
        call(**arguments)
    assert message in str(caught.value)
