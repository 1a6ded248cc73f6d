"""Graph networks with smaller weights: what their files compute, and what their reports say."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GraphLSTM, TreeLSTM, levels_of, unite_graphs
from cellport.export import Report, to_onnx
from cellport.unions import union_axes

from .graph_draws import any_neighbours, children, planar, tree, with_features

F, H = 5, 128
AXES = {"features": {0: "nodes"}, "neighbours": {0: "nodes", 1: "degree"}, "levels": {0: "levels", 1: "width"}}


class Nodes(nn.Module):
    """The output of a network over a graph, without its state."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """Features of each node."""
        return self.network(features, neighbours, levels)[0]


def drawn_tree(rng: np.random.Generator, sizes: Any) -> dict[str, np.ndarray]:
    forest = children(rng, sizes)
    return {"neighbours": forest["children"], "levels": forest["levels"]}


def graph_of(kind: str, number: int = 0) -> dict[str, np.ndarray]:
    """A graph, or a tree."""
    if kind == "graph":
        return with_features(planar(9 + number, number), 9 + number, F, number)
    grown = tree(3, seed=number)
    found = {"neighbours": grown["children"], "levels": grown["levels"]}
    return with_features(found, len(found["neighbours"]), F, number)


def export(kind: str, path: Path, **options: Any) -> tuple[nn.Module, Report]:
    torch.manual_seed(0)
    model = Nodes(GraphLSTM(F, H, layers=2) if kind == "graph" else TreeLSTM(F, H)).eval()
    args = tuple(torch.from_numpy(each) for each in graph_of(kind).values())
    said = {"draw": any_neighbours if kind == "graph" else drawn_tree, **options}
    return model, to_onnx(model, args, path, dynamic_shapes=AXES, **said)


def run(path: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, given)[0]


# h is within 1, and a few rounding steps of the type (2⁻¹¹ and 1/254 of a value) add up in an output.
@pytest.mark.parametrize(("weights", "bound"), [("float16", 16 / 2**11), ("int8", 16 / 254)])
@pytest.mark.parametrize("kind", ["graph", "tree"])
def test_graphs_and_trees_are_timed_on_drawn_ones(kind: str, weights: Any, bound: float, tmp_path: Path) -> None:
    model, report = export(kind, tmp_path / "m.onnx", weights=weights)
    (told,) = [note for note in report.notes if "than float32, on this machine" in note]
    for size in (16, 64):
        assert f"at nodes {size}, degree {size}, levels {size}, width {size}" in told
    assert "batch" not in told
    assert "steps" not in told
    given = graph_of(kind, 3)
    with torch.no_grad():
        wanted = model(*(torch.from_numpy(each) for each in given.values())).numpy()
    np.testing.assert_allclose(run(tmp_path / "m.onnx", given), wanted, atol=bound)


def alone_and_in_a_union(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a graph gives alone, and with another that has much larger features."""
    one, other = graph_of("graph", 3), graph_of("graph", 5)
    other["features"] = other["features"] * 30
    parts = [one["neighbours"], other["neighbours"]]
    nodes = [len(part) for part in parts]
    union = unite_graphs(parts, [np.arange(size) for size in nodes])
    features = np.concatenate([one["features"], other["features"]])
    levels = levels_of(union.neighbours, union.order)
    together = run(path, {"features": features, "neighbours": union.neighbours, "levels": levels})
    return run(path, {**one, "levels": levels_of(parts[0], np.arange(nodes[0]))}), together[: nodes[0]]


def test_graphs_are_not_united_where_int8_products_share_the_range_of_their_values(tmp_path: Path) -> None:
    _, report = export("graph", tmp_path / "m.onnx", weights="int8", verify=False)
    alone, together = alone_and_in_a_union(tmp_path / "m.onnx")
    assert np.abs(alone - together).max() > 1e-3
    assert not union_axes(report.manifest)
    assert any(each.index_of == "nodes" for each in report.manifest.inputs)  # the server still looks at indices
    assert "graphs run apart: int8 products share the range of their values" in report.notes
    assert not any("proved equal" in note for note in report.notes)


def test_calibrated_products_of_a_graph_lstm_do_not_depend_on_other_graphs(tmp_path: Path) -> None:
    """Those inside of the loop over its steps too."""
    model, report = export(
        "graph", tmp_path / "m.onnx", weights="int8", calibration=[graph_of("graph", number) for number in range(8)]
    )
    assert not any("share the range" in note or "calibration gives no range" in note for note in report.notes)
    assert union_axes(report.manifest) == {"nodes", "width"}
    np.testing.assert_allclose(*alone_and_in_a_union(tmp_path / "m.onnx"), atol=1e-6)
    given = graph_of("graph", 3)
    with torch.no_grad():
        wanted = model(*(torch.from_numpy(each) for each in given.values())).numpy()
    np.testing.assert_allclose(run(tmp_path / "m.onnx", given), wanted, atol=16 / 254)
