"""Graphs share a run only where the module itself does not see that they do."""

from typing import Any

import numpy as np
import pytest

from cellport.export.union_proof import Union, proved_union

from .graph_draws import any_neighbours

INPUTS: dict[str, Any] = {
    "features": ("nodes", 2),
    "neighbours": ("nodes", "degree"),
    "types": ("nodes", "degree"),
    "levels": ("levels", "width"),
}
OUTPUTS: dict[str, Any] = {"sums": ("nodes",), "edges": ("nodes", "degree")}
EXAMPLES: dict[str, Any] = {
    "features": np.zeros((3, 2)),
    "neighbours": np.zeros((3, 1), np.int64),
    "types": np.zeros((3, 1), np.int64),
    "levels": np.zeros((3, 1), np.int64),
}
AXES = {"features": "nodes", "neighbours": "nodes", "types": "nodes", "levels": "width"}


def drawn(rng: Any, sizes: Any) -> Any:
    graph = any_neighbours(rng, sizes)
    return {**graph, "types": rng.integers(0, 4, graph["neighbours"].shape)}


def summed(feeds: Any) -> Any:
    """Of each node's neighbours, times the edge's type and the number of the node's level."""
    values = feeds["features"].sum(1)
    near = feeds["neighbours"]
    edges = np.where(near < 0, 0, values[near] * feeds["types"])
    row, place = np.nonzero(feeds["levels"] >= 0)
    level = np.zeros(len(values))
    level[feeds["levels"][row, place]] = row
    return {"sums": edges.sum(1) + level, "edges": edges}


def with_mean(feeds: Any) -> Any:
    found = summed(feeds)
    return {**found, "sums": found["sums"] + 1e-3 * feeds["features"].mean()}


def last_for_none(feeds: Any) -> Any:
    return {**summed(feeds), "sums": feeds["features"].sum(1)[feeds["neighbours"]].sum(1)}


def test_a_module_over_each_nodes_neighbours_is_proved() -> None:
    union, told = proved_union(summed, INPUTS, OUTPUTS, EXAMPLES, drawn)
    assert union == Union({"neighbours": "nodes", "levels": "nodes"}, AXES)
    assert told == "graphs: unions along 'nodes', 'width' proved equal to each alone"


@pytest.mark.parametrize("run", [with_mean, last_for_none], ids=["all nodes", "the last node"])
def test_a_module_that_sees_other_graphs_is_not_but_its_indices_are_known(run: Any) -> None:
    union, told = proved_union(run, INPUTS, OUTPUTS, EXAMPLES, drawn)
    assert union == Union({"neighbours": "nodes", "levels": "nodes"})
    assert "'sums' of a graph depends on the others in a union" in told


def test_the_last_position_for_none_is_found_out_though_no_draw_has_it() -> None:
    """In a union the last node is another graph's."""
    inputs: Any = {"features": ("nodes", 2), "parent": ("nodes",)}
    outputs: Any = {"sums": ("nodes",)}
    examples: Any = {"features": np.zeros((3, 2)), "parent": np.zeros(3, np.int64)}

    def parents(rng: Any, sizes: Any) -> Any:
        return {"parent": rng.integers(0, sizes["nodes"], sizes["nodes"])}

    def of_parent(feeds: Any) -> Any:
        return {"sums": feeds["features"].sum(1)[feeds["parent"]]}

    def of_parent_or_none(feeds: Any) -> Any:
        return {"sums": np.where(feeds["parent"] < 0, 0, of_parent(feeds)["sums"])}

    union, _ = proved_union(of_parent, inputs, outputs, examples, parents)
    assert union == Union({"parent": "nodes"})
    union, _ = proved_union(of_parent_or_none, inputs, outputs, examples, parents)
    assert union.axes == {"features": "nodes", "parent": "nodes"}


def test_lists_of_edges_and_results_of_whole_graphs() -> None:
    inputs: Any = {"features": ("nodes",), "edges": ("edges", 2), "weights": ("edges",), "roots": ("batch",)}
    outputs: Any = {"at_root": ("batch",)}
    examples: Any = {
        "features": np.zeros(3),
        "edges": np.zeros((4, 2), np.int64),
        "weights": np.zeros(4),
        "roots": np.zeros(1, np.int64),
    }

    def lists(rng: Any, sizes: Any) -> Any:
        nodes = sizes["nodes"]
        return {
            "edges": rng.integers(0, nodes, (sizes["edges"], 2)),
            "roots": rng.integers(0, nodes, sizes["batch"]),
        }

    def run(feeds: Any) -> Any:
        sums = feeds["features"].copy()
        reader, source = feeds["edges"].T
        known = (reader >= 0) & (source >= 0)
        np.add.at(sums, reader[known], (feeds["weights"] * feeds["features"][source])[known])
        return {"at_root": np.where(feeds["roots"] < 0, 0, sums[feeds["roots"]])}

    union, _ = proved_union(run, inputs, outputs, examples, lists)
    assert union.indices == {"edges": "nodes", "roots": "nodes"}
    assert union.axes == {"features": "nodes", "edges": "edges", "weights": "edges", "roots": "batch"}


def test_states_other_axes_and_no_draw_leave_it_unproved() -> None:
    assert proved_union(summed, INPUTS, OUTPUTS, EXAMPLES, None) == (Union(), "")
    assert not proved_union(summed, INPUTS, OUTPUTS, EXAMPLES, drawn, stateful=True)[0].axes
    assert not proved_union(summed, INPUTS, {"sums": ("others",)}, EXAMPLES, drawn)[0].axes
    more = {**EXAMPLES, "more": np.zeros(2)}
    assert not proved_union(summed, {**INPUTS, "more": (2,)}, OUTPUTS, more, drawn)[0].axes

    def broken(rng: Any, sizes: Any) -> Any:
        raise ValueError("no graph")

    union, told = proved_union(summed, INPUTS, OUTPUTS, EXAMPLES, broken)
    assert union == Union()
    assert "no graph" in told
