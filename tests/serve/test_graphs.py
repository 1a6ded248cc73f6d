"""Graphs and trees of different shapes share runs as one graph, and are answered as if alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.grpc as triton_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tritonclient.utils import InferenceServerException

from cellport.cells import GraphLSTM, TreeLSTM
from cellport.export import to_onnx
from cellport.manifest import InputSpec, Manifest, OutputSpec
from cellport.serve import BatchSettings, Engine, EngineSettings, Model, Server
from cellport.serve.contract import Contract
from cellport.serve.jobs import Job
from cellport.serve.requests import Reply, Request
from cellport.serve.scheduler import Scheduler
from cellport.serve.sequences import SequenceTable
from cellport.serve.settings import SequenceSettings
from cellport.serve.ticks import run_tick
from cellport.serve.uniting import UnionShape
from tests.export.graph_draws import any_neighbours, children, planar, tree, with_features

from . import models
from .test_engine import busy
from .wire import triton_input

F, H = 3, 4
# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Nodes(nn.Module):
    """The output of a network over a graph, without its state."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """Features of each node."""
        return self.network(features, neighbours, levels)[0]


def graph_of(model: str, number: int) -> dict[str, np.ndarray]:
    """One of many graphs of the model's kind, of other sizes than the next."""
    if model == "graph":
        found = planar(1 + number * 3 % 20, number)
    else:
        grown = tree(number % 4, seed=number, most=30)
        found = {"neighbours": grown["children"], "levels": grown["levels"]}
    return with_features(found, len(found["neighbours"]), F, number)


def drawn_tree(rng: np.random.Generator, sizes: Any) -> dict[str, np.ndarray]:
    forest = children(rng, sizes)
    return {"neighbours": forest["children"], "levels": forest["levels"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("graphs")
    axes = {"features": {0: "nodes"}, "neighbours": {0: "nodes", 1: "degree"}, "levels": {0: "levels", 1: "width"}}
    for name, network, draw in (("graph", GraphLSTM(F, H), any_neighbours), ("tree", TreeLSTM(F, H), drawn_tree)):
        path = root / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        args = tuple(torch.from_numpy(each) for each in graph_of(name, 7).values())
        to_onnx(Nodes(network).eval(), args, path, dynamic_shapes=axes, draw=draw, verify=False)
    models.save_slow(root / "slow" / "1" / "model.onnx", loops=300)
    return root


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(models.save_edges(tmp_path_factory.mktemp("edges") / "edges" / "1" / "model.onnx"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    """Runs a graph by itself, without the server."""
    sessions = {
        name: onnxruntime.InferenceSession(str(folder / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        for name in ("graph", "tree")
    }
    return lambda name, feeds: sessions[name].run(None, feeds)[0]


@pytest.mark.parametrize("name", ["graph", "tree"])
def test_many_callers_with_graphs_of_their_own(name: str, folder: Path, alone: Any) -> None:
    wide = EngineSettings(batch=BatchSettings(padding=4.0))
    with Engine(folder, wide) as engine, Server(engine, port=0) as server, ThreadPoolExecutor(16) as pool:
        client = triton_grpc.InferenceServerClient(server.address)

        def call(number: int) -> None:
            feeds = graph_of(name, number)
            answer = client.infer(name, [triton_input(key, value) for key, value in feeds.items()])
            wanted = alone(name, feeds)
            found = answer.as_numpy(answer.get_response().outputs[0].name)
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, atol=1e-6)

        list(pool.map(call, range(64)))
        client.close()


@pytest.mark.parametrize("name", ["graph", "tree"])
def test_graphs_that_wait_share_a_run(name: str, folder: Path, alone: Any) -> None:
    with Engine(folder, EngineSettings(workers=1, batch=BatchSettings(padding=8.0))) as engine:
        graphs = [graph_of(name, number) for number in range(12)]
        outcomes: dict[int, Any] = {}
        with busy(engine):
            before = engine.runs
            for number, feeds in enumerate(graphs):
                request = Request(model=name, inputs=feeds)
                engine.submit(request, lambda outcome, number=number: outcomes.update({number: outcome}))  # type: ignore[misc]
        engine.infer(name, graphs[0])
        assert engine.runs - before <= 4
        for number, feeds in enumerate(graphs):
            (found,) = outcomes[number].outputs.values()
            np.testing.assert_allclose(found, alone(name, feeds), atol=1e-6)


def test_a_graph_that_the_file_refuses_harms_no_other(folder: Path, alone: Any) -> None:
    """Its levels leave a node out, which only the file sees."""
    with Engine(folder, EngineSettings(workers=1, batch=BatchSettings(padding=8.0))) as engine:
        graphs = [graph_of("graph", number) for number in range(4)]
        graphs[2]["levels"] = np.where(graphs[2]["levels"] == 1, -1, graphs[2]["levels"])
        outcomes: dict[int, Any] = {}
        with busy(engine):
            for number, feeds in enumerate(graphs):
                request = Request(model="graph", inputs=feeds)
                engine.submit(request, lambda outcome, number=number: outcomes.update({number: outcome}))  # type: ignore[misc]
        engine.infer("graph", graphs[0])
        for number in (0, 1, 3):
            (found,) = outcomes[number].outputs.values()
            np.testing.assert_allclose(found, alone("graph", graphs[number]), atol=1e-6)
        assert isinstance(outcomes[2], Exception)


@pytest.mark.parametrize("value", [-2, 9, 2**40])
@pytest.mark.parametrize("name", ["neighbours", "levels"])
def test_an_index_beyond_the_axis_is_refused_by_name(name: str, value: int, folder: Path) -> None:
    feeds = with_features(planar(9), 9, F)
    feeds[name] = feeds[name].copy()
    feeds[name][1, 0] = value
    with Server(folder, port=0) as server:
        client = triton_grpc.InferenceServerClient(server.address)
        message = rf"input '{name}' has value {value} at \[1, 0\]; accepted: 0 to 8, the axis 'nodes', or -1 for none"
        with pytest.raises(InferenceServerException, match=message) as error:
            client.infer("graph", [triton_input(key, each) for key, each in feeds.items()])
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
        client.close()


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_lists_of_edges_and_results_of_whole_graphs_are_told_apart(edges: Model, drawn: list[Any]) -> None:
    scheduler = Scheduler(BatchSettings(), SequenceTable(SequenceSettings()))
    jobs = []
    for nodes, count, roots in drawn:
        rng = np.random.default_rng(len(jobs))
        inputs = {
            "x": rng.normal(size=nodes).astype(np.float32),
            "edge": rng.integers(0, nodes, (count, 2)),
            "weight": rng.normal(size=count).astype(np.float32),
            "root": rng.integers(0, nodes, roots),
        }
        jobs.append((Job(model=edges, bound=edges.contract.bind(inputs), done=print), inputs))
        scheduler.submit(jobs[-1][0])
    tick, _ = scheduler.schedule(0.0)
    assert tick is not None
    assert len(tick.parts) == len(jobs)
    outcomes = {each.job: each.outcome for each in scheduler.complete(tick, run_tick(tick), 0.0)}
    for job, inputs in jobs:
        reply = outcomes[job]
        assert isinstance(reply, Reply), reply
        wanted = inputs["x"].astype(np.float64)
        np.add.at(wanted, inputs["edge"][:, 0], inputs["weight"] * inputs["x"][inputs["edge"][:, 1]])
        np.testing.assert_allclose(reply.outputs["sums"], wanted, atol=1e-5)
        np.testing.assert_allclose(reply.outputs["at_root"], wanted[inputs["root"]], atol=1e-5)


def test_the_waste_of_a_union_is_that_of_its_worst_input() -> None:
    flat, deep = ((9, (2,)), (9, (1,))), ((9, (2,)), (1, (9,)))
    assert UnionShape().with_graph(flat).with_graph(flat).fits(1.0)
    together = UnionShape().with_graph(flat).with_graph(deep)  # 10 slots in each of 9 levels, of which 18 are filled
    assert together.fits(5.0)
    assert not together.fits(4.9)


def test_a_union_is_no_larger_than_what_is_faster_than_its_graphs_alone() -> None:
    half = UnionShape().with_graph(((512, (2,)), (16, (32,))))
    assert half.with_graph(((512, (2,)), (16, (32,)))).fits(1.0)
    assert not half.with_graph(((513, (2,)), (16, (32,)))).fits(1.0)


def manifest(unite: str | None) -> Manifest:
    return Manifest(
        inputs=(
            InputSpec(name="x", dtype="float32", axes=("batch",), role="static", unite=unite),
            InputSpec(name="parent", dtype="int64", axes=("batch",), role="static", index_of="batch", unite=unite),
        ),
        outputs=(OutputSpec(name="y", dtype="float32", axes=("batch",), chunking="last"),),
    )


def test_rows_that_number_each_other_are_not_joined_as_if_they_were_apart() -> None:
    assert not Contract(manifest(None)).splits
    assert Contract(manifest("batch")).unites == {"batch"}
