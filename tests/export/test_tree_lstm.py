"""Exported Tree-LSTMs and sentence graph LSTMs equal PyTorch on trees of any depth and documents of any length."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import DAG, DAGLSTM, TreeLSTM, levels_of
from cellport.export import to_onnx, verify
from cellport.export.verification import Grid

from .graph_draws import children, document, earlier, slots, tree, with_features

F, H, TYPES = 5, 8, 4
REFUSED = "out of data bounds|invalid index"
MANY = Grid(batches=tuple(range(1, 9)))  # there is no batch: each is another draw
TREES: dict[str, tuple[int | None, dict[str, Any]]] = {
    "child-sum": (None, {"kind": "child_sum"}),
    "binary": (2, {"kind": "n_ary", "arity": 2}),
    "ternary": (3, {"kind": "n_ary", "arity": 3}),
}
VARIANTS: dict[str, dict[str, Any]] = {"full": {"variant": "full"}, "light": {"variant": "light", "type_size": 3}}


class Classifier(nn.Module):
    """Scores of each node."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tree = TreeLSTM(F, H, **options)
        self.head = nn.Linear(H, 3)

    def forward(self, features: Tensor, children: Tensor, levels: Tensor) -> Tensor:
        """Scores [nodes, 3]."""
        return self.head(self.tree(features, children, levels)[0])


class Words(nn.Module):
    """Scores of each word."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.graph = DAGLSTM(F, H, TYPES, **options)
        self.head = nn.Linear(2 * H, 3)

    def forward(self, features: Tensor, ahead: DAG, back: DAG) -> Tensor:
        """Scores [nodes, 3]."""
        return self.head(self.graph(features, ahead, back)[0])


def grown(name: str, depth: int, seed: int = 0) -> dict[str, np.ndarray]:
    graph = tree(depth, TREES[name][0], seed)
    return with_features(graph, len(graph["children"]), F, seed)


def export_tree(path: Path, name: str) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    torch.manual_seed(0)
    arity, options = TREES[name]
    model = Classifier(**options).eval()
    slotted = {0: "nodes"} if arity is not None else {0: "nodes", 1: "degree"}
    axes = {"features": {0: "nodes"}, "children": slotted, "levels": {0: "levels", 1: "width"}}
    args = tuple(torch.from_numpy(value) for value in grown(name, 3).values())

    def draw(rng: np.random.Generator, sizes: Any) -> dict[str, np.ndarray]:
        return children(rng, sizes, arity)

    to_onnx(model, args, path, dynamic_shapes=axes, draw=draw)
    return model, args, draw


def session(path: Path, reuse: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_reuse = reuse
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["child-sum", "binary"])
def test_trees_equal_modules(name: str, tmp_path: Path) -> None:
    model, args, draw = export_tree(tmp_path / "model.onnx", name)
    cases = [grown(name, depth, depth) for depth in (0, 1, 6)]
    assert verify(model, tmp_path / "model.onnx", args=args, draw=draw, cases=cases, grid=MANY).cases == 11
    graph = onnx.load(tmp_path / "model.onnx").graph
    (scan,) = [node for node in graph.node if node.op_type == "Scan"]
    body = next(each.g for each in scan.attribute if each.name == "body")
    assert len(body.node) == (21 if name == "child-sum" else 22)


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_trees_of_a_depth_of_up_to_thirty(name: str, tmp_path: Path) -> None:
    model, args, draw = export_tree(tmp_path / "model.onnx", name)
    cases = [grown(name, depth, depth) for depth in range(31)]
    assert max(len(case["levels"]) for case in cases) >= 31
    verify(model, tmp_path / "model.onnx", args=args, draw=draw, cases=cases)


def test_a_child_out_of_range_is_an_error_of_the_runtime(tmp_path: Path) -> None:
    model, _, _ = export_tree(tmp_path / "model.onnx", "binary")
    case = grown("binary", 4)
    runs = session(tmp_path / "model.onnx")
    with torch.no_grad():
        wanted = model(*(torch.from_numpy(value) for value in case.values())).numpy()
    np.testing.assert_allclose(runs.run(None, case)[0], wanted, atol=1e-5)
    nodes = len(case["features"])
    for value in (-2, nodes, nodes + 1):
        bad = case["children"].copy()
        bad[0, 0] = value
        with pytest.raises(Exception, match="out of data bounds"):
            runs.run(None, {**case, "children": bad})


def test_children_that_do_not_come_before_their_parent_are_an_error_of_the_runtime(tmp_path: Path) -> None:
    """A cycle is one: whatever the levels, some node would read a state of zeros in silence."""
    export_tree(tmp_path / "model.onnx", "child-sum")
    runs = session(tmp_path / "model.onnx")
    x = with_features({}, 3, F)["features"]
    chain, cycle = np.array([[1], [2], [-1]]), np.array([[1], [2], [0]])
    good = np.array([[2], [1], [0]])
    assert runs.run(None, {"features": x, "children": chain, "levels": good})[0].shape == (3, 3)
    for near, levels in (
        (cycle, good),
        (cycle, good.T),
        (chain, good[::-1]),
        (chain, np.array([[2, 1], [0, -1]])),
        (chain, good[:2]),
        (np.array([[0], [-1], [-1]]), good.T),
    ):
        case = {"features": x, "children": near, "levels": np.ascontiguousarray(levels)}
        with pytest.raises(Exception, match=REFUSED):
            runs.run(None, case)


def refuse_other_rows(path: Path, case: dict[str, np.ndarray]) -> None:
    """The runtime itself refuses some where it has planned to write into memory of another size; the graph does all."""
    nodes = len(case["features"])
    for reuse, match in ((True, f"{REFUSED}|re-use buffer"), (False, REFUSED)):
        runs = session(path, reuse)
        runs.run(None, case)
        for rows in (nodes - 1, nodes + 1, nodes + 2, nodes + 100):
            with pytest.raises(Exception, match=match):
                runs.run(None, {**case, "features": np.ones((rows, F), np.float32)})


@pytest.mark.parametrize("name", TREES)
def test_features_that_are_not_one_row_a_node_are_an_error_of_the_runtime(name: str, tmp_path: Path) -> None:
    """Those beyond the nodes would be dropped, and one that is missing be zeros, in silence."""
    export_tree(tmp_path / "model.onnx", name)
    refuse_other_rows(tmp_path / "model.onnx", grown(name, 4))


def test_forests_without_nodes_and_without_edges_give_the_defined_result(tmp_path: Path) -> None:
    model, _, _ = export_tree(tmp_path / "model.onnx", "child-sum")
    runs = session(tmp_path / "model.onnx")
    for nodes in (0, 4):
        none = np.full((nodes, 1), -1)
        case = with_features({"children": none, "levels": levels_of(none)}, nodes, F)
        with torch.no_grad():
            wanted = model(*(torch.from_numpy(each) for each in case.values())).numpy()
        np.testing.assert_allclose(runs.run(None, case)[0], wanted, atol=1e-6)
        assert wanted.shape == (nodes, 3)


def draw_documents(rng: np.random.Generator, sizes: Any) -> dict[str, np.ndarray]:
    found = {}
    for way in ("ahead", "back"):
        levels = slots(rng, sizes, f"levels_{way}", f"width_{way}")
        predecessors = earlier(rng, levels, sizes["nodes"], sizes[f"degree_{way}"])
        types = rng.integers(0, TYPES, predecessors.shape)
        found |= {f"{way}.predecessors": predecessors, f"{way}.types": types, f"{way}.levels": levels}
    return found


def written(words: int, seed: int = 0) -> dict[str, np.ndarray]:
    return with_features(document(words, TYPES, seed), words, F, seed)


def export_words(path: Path, name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    model = Words(**VARIANTS[name]).eval()
    features, *rest = (torch.from_numpy(value) for value in written(6).values())
    args = (features, DAG(*rest[:3]), DAG(*rest[3:]))
    axes: dict[str, Any] = {"features": {0: "nodes"}}
    for way in ("ahead", "back"):
        near = {0: "nodes", 1: f"degree_{way}"}
        axes |= {f"{way}.predecessors": near, f"{way}.types": near}
        axes[f"{way}.levels"] = {0: f"levels_{way}", 1: f"width_{way}"}
    to_onnx(model, args, path, dynamic_shapes=axes, draw=draw_documents)
    return model, args


@pytest.mark.parametrize("name", VARIANTS)
def test_documents_equal_modules(name: str, tmp_path: Path) -> None:
    model, args = export_words(tmp_path / "model.onnx", name)
    cases = [written(words, words) for words in (1, 2, 12)]
    path = tmp_path / "model.onnx"
    assert verify(model, path, args=args, draw=draw_documents, cases=cases, grid=MANY).cases == 11
    case = written(7)
    with torch.no_grad():
        _, *rest = (torch.from_numpy(value) for value in case.values())
        wanted = model(torch.from_numpy(case["features"]), DAG(*rest[:3]), DAG(*rest[3:])).numpy()
    runs = session(path)
    np.testing.assert_allclose(runs.run(None, case)[0], wanted, atol=1e-5)
    for key, value in (("ahead.types", TYPES), ("back.types", -1), ("back.predecessors", 7), ("ahead.levels", -2)):
        bad = {**case, key: case[key].copy()}
        bad[key][
            tuple(np.argwhere(case[f"{key.split('.')[0]}.predecessors"] >= 0)[0]) if "types" in key else (0, 0)
        ] = value
        with pytest.raises(Exception, match="out of data bounds"):
            runs.run(None, bad)
    turned = {**case, "ahead.levels": np.ascontiguousarray(case["ahead.levels"][::-1])}
    with pytest.raises(Exception, match=REFUSED):
        runs.run(None, turned)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_that_are_not_one_row_a_word_are_an_error_of_the_runtime(name: str, tmp_path: Path) -> None:
    export_words(tmp_path / "model.onnx", name)
    refuse_other_rows(tmp_path / "model.onnx", written(7))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_documents_of_up_to_three_hundred_words(name: str, tmp_path: Path) -> None:
    model, args = export_words(tmp_path / "model.onnx", name)
    cases = [written(words, words) for words in (1, 2, 3, 5, 10, 30, 100, 300)]
    verify(model, tmp_path / "model.onnx", args=args, draw=draw_documents, cases=cases)


def test_levels_of_a_tree_are_as_many_as_it_is_high() -> None:
    assert len(levels_of(tree(12)["children"], width=10_000)) == 13
