"""The sentence graph LSTM is the specification's section 7.3, one word after the other, ahead and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cellport.cells import DAG, DAGLSTM, LSTM, CellError, dags_of, levels_of

from .graph_oracle import dag

F, H, TYPES = 3, 2, 4
SUFFIXES = ("", "_reverse")
VARIANTS = [{"variant": "full"}, {"variant": "light", "type_size": 3}]


def close(actual, wanted, tolerance=1e-12):
    wanted = torch.as_tensor(wanted) if isinstance(wanted, np.ndarray) else wanted
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def build(seed=0, **options):
    torch.manual_seed(seed)
    cell = DAGLSTM(F, H, options.pop("edge_types", TYPES), dtype=torch.float64, **options)
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.7)
    return cell


def draw_edges(nodes, seed=0, share=0.3):
    """(source, target, type) in both directions; two words may be joined by several edges."""
    rng = np.random.default_rng(seed)
    pairs = np.argwhere(~np.eye(nodes, dtype=bool) & (rng.random((nodes, nodes)) < share))
    pairs = pairs[rng.integers(len(pairs), size=len(pairs))] if len(pairs) else pairs
    return [(int(j), int(t), int(rng.integers(TYPES))) for j, t in pairs]


def draw(nodes, seed=1):
    return torch.randn(nodes, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graphs(edges, nodes):
    made = dags_of([each[:2] for each in edges], [each[2] for each in edges], nodes)
    return [DAG(*map(torch.tensor, each)) for each in made]


def weights_of(cell, suffix):
    names = {"W": "weight_ih", "U": "weight_hh", "b": "bias", "e": "types"}
    values = {short: getattr(cell, name + suffix, None) for short, name in names.items()}
    return {short: value.detach().numpy() for short, value in values.items() if value is not None}


@settings(max_examples=40, deadline=None)
@given(
    options=st.sampled_from(VARIANTS),
    nodes=st.integers(1, 10),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_any_graph_of_any_variant(options, nodes, seed, share):
    edges, cell, x = draw_edges(nodes, seed, share), build(**options), draw(nodes)
    output, state = cell(x, *graphs(edges, nodes))
    light = cell.variant == "light"
    ways = [dag(weights_of(cell, s), x.numpy(), edges, s != "", light) for s in ("", "_reverse")]
    close(output.detach(), np.concatenate([h for h, _ in ways], 1))
    close(state.c.detach(), np.concatenate([c for _, c in ways], 1))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_adjacent_words_alone_are_the_bidirectional_lstm(options):
    """With one type of edge, whose embedding is 1."""
    steps = 6
    cell = build(edge_types=1, **options | ({"type_size": 1} if "type_size" in options else {}))
    lstm = LSTM(F, H, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for suffix in ("", "_reverse"):
            both = {name: lstm.get_parameter(f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh")}
            both["bias"] = lstm.get_parameter(f"bias_ih_l0{suffix}") + lstm.get_parameter(f"bias_hh_l0{suffix}")
            for name, value in both.items():
                i, f, g, o = value.chunk(4)
                own = cell.get_parameter(name + suffix)
                own.copy_(torch.cat([i, o, g, f]).view_as(own))
            if cell.variant == "light":
                nn.init.ones_(cell.get_parameter(f"types{suffix}"))
    x = draw(steps)
    edges = [(t - 1, t, 0) for t in range(1, steps)] + [(t, t - 1, 0) for t in range(1, steps)]
    close(cell(x, *graphs(edges, steps))[0], lstm(x[:, None])[0][:, 0])


def test_the_full_form_is_the_light_one_with_one_hot_embeddings():
    full, light = build(variant="full"), build(variant="light", type_size=TYPES)
    light.load_state_dict(full.state_dict() | {f"types{s}": torch.eye(TYPES).double() for s in ("", "_reverse")})
    edges, x = draw_edges(8), draw(8)
    close(light(x, *graphs(edges, 8)), full(x, *graphs(edges, 8)))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_documents_of_a_union_are_what_they_are_alone(options):
    parts = [(5, draw_edges(5, 0)), (1, []), (7, draw_edges(7, 1))]
    cell, x, start, united = build(**options), draw(13), 0, []
    for nodes, edges in parts:
        united += [(j + start, t + start, kind) for j, t, kind in edges]
        start += nodes
    together, start = cell(x, *graphs(united, 13))[0], 0
    for nodes, edges in parts:
        close(together[start : start + nodes], cell(x[start : start + nodes], *graphs(edges, nodes))[0])
        start += nodes


def test_numbers_of_nodes_do_not_matter():
    """What a node reads is what counts; where an edge leads in the numbering plays no part in one graph."""
    cell, x, graph = build(bidirectional=False), draw(9), graphs(draw_edges(9), 9)[0]
    new = np.random.default_rng(5).permutation(9)
    old = np.argsort(new)
    near, types = graph.predecessors.numpy()[old], graph.types[torch.tensor(old)]
    renamed = np.where(near < 0, -1, new[near])
    found = cell(x[old], DAG(torch.tensor(renamed), types, torch.tensor(levels_of(renamed))))[0]
    close(found[new], cell(x, graph)[0])


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_float32_stays_within_1e_5_of_the_oracle_over_60_words(options):
    """With a sum over predecessors that stays small, as it is not normalised."""
    edges, cell, x = draw_edges(60, share=0.03), build(**options), draw(60)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(0.5)
    wanted = [dag(weights_of(cell, s), x.numpy(), edges, s != "", cell.variant == "light")[0] for s in SUFFIXES]
    found = cell.float()(x.float(), *graphs(edges, 60))[0]
    np.testing.assert_allclose(found.detach().numpy(), np.concatenate(wanted, 1), rtol=1e-5, atol=1e-5)


def test_one_direction_alone_is_the_first_half():
    edges, x = draw_edges(8), draw(8)
    both, ahead = build(), build(bidirectional=False)
    ahead.load_state_dict({name: value for name, value in both.state_dict().items() if "reverse" not in name})
    graph = graphs(edges, 8)
    close(ahead(x, graph[0])[0], both(x, *graph)[0][:, :H])


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gradients_are_finite_differences(options):
    cell, graph = build(**options), graphs(draw_edges(6), 6)
    names = [name for name, _ in cell.named_parameters()]
    values = [each.detach().requires_grad_() for each in (draw(6), *cell.parameters())]

    def run(x, *weights):
        output, state = torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (x, *graph))
        return output, state.c

    assert torch.autograd.gradcheck(run, values, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_no_nodes_give_an_empty_result(options):
    output, state = build(**options)(draw(0), *graphs([], 0))
    assert [list(each.shape) for each in (output, *state)] == [[0, 2 * H]] * 3


def with_types(types):
    predecessors = torch.tensor([[-1], [0]])
    graph = DAG(predecessors, types, torch.tensor(levels_of(predecessors.numpy())))
    return build(bidirectional=False)(draw(2), graph)


BAD = {
    "edge 0 is [5, 0]; accepted are nodes 0 to 2": lambda: dags_of([[0, 5]], [0], 3),
    "node 1 is its own neighbour": lambda: dags_of([[1, 1]], [0], 3),
    "types have shape [2]; accepted is one type for each of 1 edges": lambda: dags_of([[0, 1]], [0, 1], 3),
    "types hold 4; accepted is 0 to 3": lambda: with_types(torch.tensor([[0], [4]])),
    "types hold -1": lambda: with_types(torch.tensor([[0], [-1]])),
    "types are [1, 1]; accepted is [2, 1]": lambda: with_types(torch.tensor([[0]])),
    "types are no integers": lambda: with_types(torch.zeros(2, 1)),
    "back is None; accepted is a DAG": lambda: build()(draw(2), *graphs([], 2)[:1]),
    "the graph has the cycle 0 -> 1 -> 0": lambda: levels_of([[1], [0]]),
    "node 1 is in level 0 and its predecessors include 0, in level 0": lambda: build(bidirectional=False)(
        draw(2), DAG(torch.tensor([[-1], [0]]), torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[0, 1]]))
    ),
    "variant is 'small'": lambda: DAGLSTM(2, 2, 2, variant="small"),
    "type_size is None": lambda: DAGLSTM(2, 2, 2, variant="light"),
    "type_size is 3 and variant 'full'": lambda: DAGLSTM(2, 2, 2, type_size=3),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_graph_is_refused_by_name(message):
    with pytest.raises(CellError) as caught:
        BAD[message]()
    assert message in str(caught.value)


def test_what_stands_where_there_is_no_edge_is_no_type():
    """Types are padded with anything."""
    cell = build(bidirectional=False)
    graph = graphs([(0, 1, 2), (0, 2, 1), (1, 2, 3)], 3)[0]
    types = torch.where(graph.predecessors < 0, 99, graph.types)
    close(cell(draw(3), graph._replace(types=types)), cell(draw(3), graph))
