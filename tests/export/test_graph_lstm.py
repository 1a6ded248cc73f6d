"""Exported Graph LSTMs equal PyTorch on graphs of any size, and bad indices are errors of the runtime."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GraphLSTM, TreeLSTM, levels_of, unite_graphs
from cellport.cells.graph_visits import GROUP_SLOTS
from cellport.errors import EquivalenceError, ExportError
from cellport.export import Report, to_onnx, verify
from cellport.export.graph_sweeps import REFUSES
from cellport.export.verification import Grid

from .graph_draws import any_neighbours, children, planar, with_features

F, H = 5, 8
AXES = {"features": {0: "nodes"}, "neighbours": {0: "nodes", 1: "degree"}, "levels": {0: "levels", 1: "width"}}
MANY = Grid(batches=tuple(range(1, 13)))  # there is no batch: each is another draw
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two-layers": {"layers": 2},
    "old-gates": {"gate_states": "old", "output": "o_tanh_m", "residual": False, "layers": 2},
    "halved": {"halved": True, "output": "o_tanh_m"},
}


class Segmenter(nn.Module):
    """Scores of each node."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.graph = GraphLSTM(F, H, **options)
        self.head = nn.Linear(H, 3)

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """Scores [nodes, 3]."""
        return self.head(self.graph(features, neighbours, levels)[0])


def united(sizes: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of graphs, as one."""
    rng = np.random.default_rng(seed)
    parts = [planar(nodes, nodes)["neighbours"] for nodes in sizes]
    union = unite_graphs(parts, [rng.permutation(nodes) for nodes in sizes])
    levels = levels_of(union.neighbours, union.order)
    return with_features({"neighbours": union.neighbours, "levels": levels}, sum(sizes), F, seed)


def tensors(graph: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(value) for value in graph.values())


def export(path: Path, model: nn.Module, **options: Any) -> tuple[Report, tuple[Tensor, ...]]:
    args = tensors(with_features(planar(9), 9, F))
    return to_onnx(model.eval(), args, path, dynamic_shapes=AXES, draw=any_neighbours, **options), args


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    model = Segmenter()
    return model, path, export(path, model)[1]


@pytest.mark.parametrize("name", ["two-layers", "old-gates"])
def test_files_equal_modules_at_drawn_graphs_and_at_real_ones(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter(**OPTIONS[name])
    report, args = export(tmp_path / "model.onnx", model)
    assert report.manifest.verification is not None
    assert report.manifest.verification.cases == 2
    cases = [with_features(planar(nodes, nodes), nodes, F, nodes) for nodes in (1, 2, 7, 50)]
    cases.append(united((5, 1, 20)))
    figures = verify(model, tmp_path / "model.onnx", args=args, draw=any_neighbours, cases=cases, grid=MANY)
    assert figures.cases == 12 + 5


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_graphs_of_up_to_a_thousand_nodes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter(**OPTIONS[name])
    _, args = export(tmp_path / "model.onnx", model)
    sizes = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 999, 1000]
    cases = [with_features(planar(nodes, nodes), nodes, F, nodes) for nodes in sizes]
    chain = np.arange(1000)[:, None] - 1
    cases.append(with_features({"neighbours": chain, "levels": levels_of(chain)}, 1000, F))
    cases += [united(sizes, seed) for seed, sizes in enumerate([(1, 1), (400, 1, 599), (10,) * 100])]
    assert verify(model, tmp_path / "model.onnx", args=args, draw=any_neighbours, cases=cases).cases == 3 + len(cases)


def test_a_sweep_is_one_loop_that_reads_what_a_step_has(segmenter: Any) -> None:
    graph = onnx.load(segmenter[1]).graph
    loops = [node for node in graph.node if node.op_type == "Loop"]
    assert len(loops) == 1
    body = next(each.g for each in loops[0].attribute if each.name == "body")
    operators = [node.op_type for node in body.node]
    assert len(operators) == 32
    assert operators.count("Gemm") == 2  # Un of the mean, and Un^f of the new h
    assert not [name for name in operators if name.startswith(("Scatter", "Transpose", "Reduce"))]


def test_layers_share_what_follows_from_the_graph(tmp_path: Path) -> None:
    export(tmp_path / "model.onnx", Segmenter(layers=3), verify=False)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Loop") == 3
    assert operators.count("Scan") == 1  # which steps are visited together
    assert operators.count("Compress") == 3  # earlier neighbours, the others, and where groups of steps begin


def test_it_is_called_with_plain_arrays(segmenter: Any) -> None:
    model, path, _ = segmenter
    case = with_features(planar(30), 30, F)
    (found,) = session(path).run(None, case)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(*tensors(case)).numpy(), atol=1e-5)


def test_one_node_a_step_is_the_same_sweep(segmenter: Any) -> None:
    """A caller without `levels_of` passes the order."""
    case = with_features(planar(30), 30, F)
    order = np.random.default_rng(0).permutation(30)
    levels = levels_of(case["neighbours"], order)
    runs = [session(segmenter[1]).run(None, {**case, "levels": each})[0] for each in (levels, order[:, None])]
    np.testing.assert_allclose(*runs, atol=1e-6)


def test_few_nodes_are_visited_together_beside_one_of_many_neighbours(segmenter: Any, tmp_path: Path) -> None:
    """A group has room for as many neighbours of each node as its busiest one has; the width of levels bounds it."""
    nodes, hub = 1600, 800
    neighbours = np.full((nodes, hub), -1)
    neighbours[hub], neighbours[hub + 1 :, 0] = np.arange(hub), np.arange(hub - 1)
    levels = levels_of(neighbours, np.arange(nodes), width=16)
    case = with_features({"neighbours": neighbours, "levels": levels}, nodes, F)
    model = onnx.load(segmenter[1])
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(scan.output[1], onnx.TensorProto.BOOL, None))
    onnx.save(model, tmp_path / "begins.onnx")
    found, begins = session(tmp_path / "begins.onnx").run(None, case)
    begins[0] = True
    starts = ((levels >= 0).sum(1).cumsum() - (levels >= 0).sum(1))[begins]
    assert np.diff([*starts, nodes]).max() <= max(16, GROUP_SLOTS // hub)
    with torch.no_grad():
        np.testing.assert_allclose(found, segmenter[0](*tensors(case)).numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [None, (1, 0), (2, 0), (2, 3)])
def test_without_nodes_the_file_gives_an_empty_result(segmenter: Any, shape: tuple[int, int] | None) -> None:
    none = np.zeros((0, 3), np.int64)
    levels = levels_of(none) if shape is None else np.full(shape, -1)
    case = with_features({"neighbours": none, "levels": levels}, 0, F)
    assert session(segmenter[1]).run(None, case)[0].shape == (0, 3)


@pytest.mark.parametrize("name", ["neighbours", "levels"])
@pytest.mark.parametrize("value", [-(2**40), -31, -2, 30, 31, 32, 33, 2**40])
def test_an_index_out_of_range_is_an_error_of_the_runtime(segmenter: Any, name: str, value: int) -> None:
    """Neither the rows behind the nodes nor, by negative indices, those in front are read in silence."""
    case = with_features(planar(30), 30, F)
    case[name] = case[name].copy()
    case[name][0, 0] = value
    with pytest.raises(Exception, match=REFUSES):
        session(segmenter[1]).run(None, case)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda levels: np.full((1, 1), -1),
        lambda levels: np.where(levels == 3, -1, levels),
        lambda levels: np.where(levels == 3, 4, levels),
        lambda levels: np.concatenate([levels, levels[:1]]),
        lambda levels: levels[:0],
    ],
    ids=["no-node", "one-missing", "one-for-another", "a-level-again", "no-level"],
)
def test_levels_that_do_not_hold_each_node_once_are_an_error_of_the_runtime(segmenter: Any, spoil: Any) -> None:
    """Such a node would keep its state, or be visited twice, in silence."""
    case = with_features(planar(30), 30, F)
    with pytest.raises(Exception, match=f"{REFUSES}|Scan"):
        session(segmenter[1]).run(None, {**case, "levels": spoil(case["levels"])})


def test_a_graph_in_parts_is_what_its_parts_are(segmenter: Any) -> None:
    """Disconnected graphs, isolated nodes, and a batch: the disjoint union."""
    sizes = (1, 12, 1, 30, 2)
    parts = [planar(nodes, nodes) for nodes in sizes]
    orders = [np.random.default_rng(nodes).permutation(nodes) for nodes in sizes]
    union = unite_graphs([each["neighbours"] for each in parts], orders)
    x = with_features({}, sum(sizes), F)["features"]
    runs = session(segmenter[1])

    def scores(features: np.ndarray, neighbours: np.ndarray, order: np.ndarray) -> np.ndarray:
        case = {"features": features, "neighbours": neighbours, "levels": levels_of(neighbours, order)}
        return runs.run(None, case)[0]

    together = scores(x, union.neighbours, union.order)
    for start, stop, part, order in zip(union.starts, union.starts[1:], parts, orders, strict=False):
        np.testing.assert_allclose(together[start:stop], scores(x[start:stop], part["neighbours"], order), atol=1e-6)


def test_what_is_not_a_number_stays_in_its_part(segmenter: Any) -> None:
    """Padding in lists of neighbours reads no other node, and nobody is multiplied by 0."""
    case = united((12, 30))
    case["features"][:12] = np.nan
    (found,) = session(segmenter[1]).run(None, case)
    with torch.no_grad():
        wanted = segmenter[0](*tensors(case)).numpy()
    assert np.isnan(found[:12]).all()
    np.testing.assert_allclose(found[12:], wanted[12:], atol=1e-6)


def test_lists_without_room_for_a_neighbour(segmenter: Any) -> None:
    case = with_features({"neighbours": np.zeros((5, 0), np.int64), "levels": np.arange(5)[None]}, 5, F)
    with torch.no_grad():
        wanted = segmenter[0](*tensors(case)).numpy()
    np.testing.assert_allclose(session(segmenter[1]).run(None, case)[0], wanted, atol=1e-6)


class FromState(nn.Module):
    """Features and state of each node, from a state that is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.graph = GraphLSTM(F, H, **options)

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, ...]:
        """All [nodes, H]."""
        output, state = self.graph(features, neighbours, levels, (h, m))
        return output, *state


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("given", [False, True], ids=["from-zeros", "from-states"])
def test_rows_that_are_not_one_a_node_are_an_error_of_the_runtime(given: bool, layers: int, tmp_path: Path) -> None:
    """The first ones would be taken for the nodes' own, in silence."""
    states = dict.fromkeys(("h", "m") if given else (), H)
    widths = {"features": F, **states}
    values = {key: np.ones((20, width), np.float32) for key, width in widths.items()}
    case = {"features": values.pop("features"), **planar(20), **values}
    model = (FromState if given else Segmenter)(layers=layers).eval()
    axes = {**AXES, **{key: {0: "nodes"} for key in states}}
    path = tmp_path / "model.onnx"
    to_onnx(model, tensors(case), path, dynamic_shapes=axes, draw=any_neighbours, state=None, verify=False)
    runs = session(path)
    runs.run(None, case)
    for key, width in widths.items():
        for rows in (19, 21, 120):
            with pytest.raises(Exception, match=REFUSES):
                runs.run(None, {**case, key: np.ones((rows, width), np.float32)})
    more = {key: np.ones((21, width), np.float32) for key, width in widths.items()}
    with pytest.raises(Exception, match=REFUSES):
        runs.run(None, {**case, **more})


@pytest.mark.parametrize("name", OPTIONS)
def test_a_file_in_float64_equals_its_module_to_the_last_digits(name: str, tmp_path: Path) -> None:
    """Any lists: nodes that are their own neighbours, or of more than four visited later, and all of a star."""
    torch.manual_seed(0)
    model = FromState(**OPTIONS[name]).double().eval()
    rng = np.random.default_rng(0)

    def case(graph: dict[str, np.ndarray], nodes: int) -> dict[str, np.ndarray]:
        sizes = {"features": F, "h": H, "m": H}
        values = {key: rng.standard_normal((nodes, size)) for key, size in sizes.items()}
        return {"features": values.pop("features"), **graph, **values}

    axes = {**AXES, "h": {0: "nodes"}, "m": {0: "nodes"}}
    to_onnx(
        model,
        tensors(case(planar(9), 9)),
        tmp_path / "model.onnx",
        dynamic_shapes=axes,
        draw=any_neighbours,
        state=None,
        verify=False,
    )
    sizes = ({"nodes": nodes, "degree": nodes + 1, "levels": 7, "width": 5} for nodes in (1, 3, 17, 40))
    cases = [case(any_neighbours(rng, each), each["nodes"]) for each in sizes]
    star = np.full((30, 29), -1)
    star[0], star[1:, 0] = np.arange(1, 30), 0
    orders = np.arange(30), np.arange(30)[::-1]
    cases += [case({"neighbours": star, "levels": levels_of(star, order)}, 30) for order in orders]
    runs = session(tmp_path / "model.onnx")
    for each in cases:
        with torch.no_grad():
            wanted = model(*tensors(each))
        for found, true in zip(runs.run(None, each), wanted, strict=True):
            np.testing.assert_allclose(found, true.numpy(), rtol=1e-12, atol=1e-12)


def test_threads_do_not_change_the_result(segmenter: Any) -> None:
    """The runtime's ScatterND loses sums where several threads add to one row; a file does not use it so."""
    case = with_features(planar(1500), 1500, F)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 4
    many = onnxruntime.InferenceSession(str(segmenter[1]), options, providers=["CPUExecutionProvider"])
    options.intra_op_num_threads = 1
    one = onnxruntime.InferenceSession(str(segmenter[1]), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(many.run(None, case)[0], one.run(None, case)[0], atol=1e-6)


class Words(nn.Module):
    """Output of each node, which is a token."""

    def __init__(self, before: nn.Module, graph: nn.Module) -> None:
        super().__init__()
        self.words, self.before, self.graph = nn.Embedding(30, F), before, graph

    def forward(self, tokens: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """[nodes, H]."""
        return self.graph(self.before(self.words(tokens)), neighbours, levels)[0]


TWO_AXES = "which projects rows [nodes, features]"


@pytest.mark.parametrize(
    ("before", "graph", "module", "why"),
    [
        (nn.Identity(), GraphLSTM(F, F), "'graph' (GraphLSTM)", "which takes the rows in another order"),
        (nn.Identity(), GraphLSTM(F, H), "'graph' (GraphLSTM)", TWO_AXES),
        (nn.Identity(), TreeLSTM(F, H), "'graph' (TreeLSTM)", TWO_AXES),
        (nn.Linear(F, F), GraphLSTM(F, F), "'before' (Linear)", TWO_AXES),
    ],
    ids=["sorted", "projected", "tree", "linear"],
)
def test_tables_of_words_that_are_nodes_are_refused_with_the_reason(
    before: nn.Module, graph: nn.Module, module: str, why: str, tmp_path: Path
) -> None:
    model = Words(before, graph).eval()
    none = np.full((9, 1), -1)
    args = (torch.arange(9), *tensors({"neighbours": none, "levels": levels_of(none, width=5)}))
    axes = {"tokens": {0: "nodes"}, "neighbours": AXES["neighbours"], "levels": AXES["levels"]}

    def draw(rng: np.random.Generator, sizes: Any) -> dict[str, np.ndarray]:
        drawn = children(rng, sizes, None)
        return {"neighbours": drawn["children"], "levels": drawn["levels"]}

    def exported(lookup: bool | Literal["auto"]) -> Report:
        return to_onnx(model, args, tmp_path / "model.onnx", dynamic_shapes=axes, draw=draw, lookup=lookup)

    with pytest.raises(ExportError) as caught:
        exported(True)
    assert f"embedding 'words' feeds module {module}, {why}" in str(caught.value)
    assert "accepted are lookup='auto' and False" in str(caught.value)
    assert not exported("auto").manifest.tables


def test_a_file_of_another_module_is_found_out(segmenter: Any) -> None:
    other = Segmenter(output="o_tanh_m").eval()
    other.load_state_dict(segmenter[0].state_dict())
    case = with_features(planar(60), 60, F)
    with pytest.raises(EquivalenceError, match="given case 0"):
        verify(other, segmenter[1], args=segmenter[2], draw=any_neighbours, cases=[case], grid=Grid(batches=()))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda rng, sizes: {"levels": np.zeros((1, 1))}, "draw gives 'levels' of dtype float64"),
        (lambda rng, sizes: {"edges": np.zeros(1)}, "draw gives 'edges'; the inputs are"),
        (lambda rng, sizes: {"levels": np.zeros(3, int)}, "draw gives 'levels' of shape [3]"),
        (lambda rng, sizes: 1 / 0, "draw fails for the sizes"),
        (lambda rng, sizes: planar(9), "draw gives 'neighbours' of shape [9, "),
    ],
)
def test_draws_of_something_else_are_refused_by_name(draw: Any, message: str, tmp_path: Path) -> None:
    args = tensors(with_features(planar(9), 9, F))
    with pytest.raises(ExportError) as caught:
        to_onnx(Segmenter().eval(), args, tmp_path / "model.onnx", dynamic_shapes=AXES, draw=draw)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": None}, "case 0 has no input 'levels'"),
        ({"more": np.zeros(1)}, "case 0 has an input 'more'"),
        ({"features": np.zeros((9, F))}, "case 0 has 'features' float64"),
        ({"features": np.zeros((8, F), np.float32)}, "case 0 has 'neighbours' int64 [9, "),
    ],
)
def test_cases_of_something_else_are_refused_by_name(segmenter: Any, change: dict[str, Any], message: str) -> None:
    case = {key: value for key, value in (with_features(planar(9), 9, F) | change).items() if value is not None}
    with pytest.raises(ExportError) as caught:
        verify(segmenter[0], segmenter[1], args=segmenter[2], draw=any_neighbours, cases=[case])
    assert message in str(caught.value)
