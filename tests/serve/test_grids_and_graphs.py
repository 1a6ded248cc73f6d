"""Exported networks over images and graphs are served, and what is no image or graph is refused and harms no one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.grpc
from torch import Tensor, nn

from cellport.cells import MDLSTM, GraphLSTM, TreeLSTM, levels_of, neighbours_of, unite_graphs
from cellport.export import to_onnx
from cellport.serve import Server
from tests.export.graph_draws import children

F = 3
DTYPES = {"float32": "FP32", "int64": "INT64"}
Arrays = dict[str, np.ndarray]
# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Nodes(nn.Module):
    """The output of a network over a graph, without its state."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, near: Tensor, levels: Tensor) -> Tensor:
        """Features of each node."""
        return self.network(features, near, levels)[0]


def scheduled(near: np.ndarray, order: Any = None, seed: int = 0) -> Arrays:
    features = np.random.default_rng(seed).standard_normal((len(near), F)).astype(np.float32)
    return {"features": features, "near": near, "levels": levels_of(near, order)}


def ring(nodes: int, seed: int = 0) -> Arrays:
    edges = [(i, (i + 1) % nodes) for i in range(nodes)] if nodes > 2 else [(0, 1)] * (nodes == 2)
    return scheduled(neighbours_of(np.array(edges).reshape(-1, 2), nodes), np.arange(nodes), seed)


def chain(nodes: int) -> Arrays:
    child = np.arange(1, nodes + 1)
    child[-1:] = -1
    return scheduled(child[:, None])


def image(batch: int, height: int, width: int, sizes: Any, seed: int = 0) -> Arrays:
    values = np.random.default_rng(seed).standard_normal((batch, height, width, F)).astype(np.float32)
    return {"input": values, "sizes": np.array(sizes, np.int64).reshape(batch, 2)}


def drawn(rng: np.random.Generator, sizes: Any) -> Arrays:
    forest = children(rng, sizes)
    return {"near": forest["children"], "levels": forest["levels"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    axes: dict[str, Any] = {"features": {0: "nodes"}, "near": {0: "nodes", 1: "degree"}}
    axes["levels"] = {0: "levels", 1: "width"}
    for name, network, example in (("graph", GraphLSTM(F, F), ring(5)), ("tree", TreeLSTM(F, F), chain(4))):
        args = tuple(torch.from_numpy(each) for each in example.values())
        to_onnx(Nodes(network).eval(), args, made(root, name), dynamic_shapes=axes, draw=drawn, verify=False)
    args = tuple(torch.from_numpy(each) for each in image(2, 3, 4, [[3, 4], [2, 1]]).values())
    axes = {"input": {0: "batch", 1: "height", 2: "width"}, "sizes": {0: "batch"}}
    model = MDLSTM(F, F, directions="forward", batch_first=True).eval()
    to_onnx(model, args, made(root, "image"), dynamic_shapes=axes, verify=False)
    return root


def made(root: Path, name: str) -> Path:
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with Server(folder, port=0) as server:
        connected = tritonclient.grpc.InferenceServerClient(server.address)
        yield connected
        connected.close()


def ask(client: tritonclient.grpc.InferenceServerClient, model: str, feeds: Arrays) -> np.ndarray:
    inputs = []
    for name, value in feeds.items():
        inputs.append(tritonclient.grpc.InferInput(name, list(value.shape), DTYPES[str(value.dtype)]))
        inputs[-1].set_data_from_numpy(np.ascontiguousarray(value))
    found = client.infer(model, inputs)
    return found.as_numpy(found.get_response().outputs[0].name)


def run(folder: Path, model: str, feeds: Arrays) -> np.ndarray:
    path = str(folder / model / "1" / "model.onnx")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def refused(client: tritonclient.grpc.InferenceServerClient, model: str, feeds: Arrays) -> None:
    """A status, with a message that names the model or the input and tells nothing of the machine."""
    with pytest.raises(tritonclient.grpc.InferenceServerException) as caught:
        ask(client, model, feeds)
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL")
    assert any(f"{name!r}" in caught.value.message() for name in (model, *feeds))


UNION = unite_graphs([ring(5)["near"], np.full((1, 1), -1), ring(3)["near"]], [np.arange(n) for n in (5, 1, 3)])
GOOD: dict[str, tuple[str, Arrays]] = {
    "graph": ("graph", ring(6)),
    "graph-of-one-node": ("graph", ring(1)),
    "graph-without-nodes": ("graph", scheduled(np.zeros((0, 2), np.int64))),
    "graph-in-parts": ("graph", scheduled(UNION.neighbours, UNION.order)),
    "tree": ("tree", chain(7)),
    "forest-without-edges": ("tree", scheduled(np.full((4, 1), -1))),
    "tree-without-nodes": ("tree", scheduled(np.zeros((0, 1), np.int64))),
    "image": ("image", image(2, 5, 6, [[5, 6], [1, 3]])),
    "image-of-one-position": ("image", image(1, 1, 1, [[1, 1]])),
    "image-without-positions-in-a-grid": ("image", image(2, 3, 4, [[0, 0], [0, 4]])),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_answer_is_the_files(name: str, client: Any, folder: Path) -> None:
    model, feeds = GOOD[name]
    np.testing.assert_allclose(ask(client, model, feeds), run(folder, model, feeds), atol=1e-6)


def changed(feeds: Arrays, name: str, value: int, at: tuple[int, int] = (0, 0)) -> Arrays:
    array = feeds[name].copy()
    array[at] = value
    return {**feeds, name: array}


BAD: dict[str, tuple[str, Arrays]] = {
    "neighbour-below-none": ("graph", changed(ring(6), "near", -2)),
    "neighbour-behind-the-last": ("graph", changed(ring(6), "near", 6)),
    "neighbour-far-away": ("graph", changed(ring(6), "near", 2**40)),
    "node-in-no-level": ("graph", changed(ring(6), "levels", -1)),
    "node-in-two-levels": ("graph", changed(ring(6), "levels", 5)),
    "level-out-of-range": ("graph", changed(ring(6), "levels", 6)),
    "rows-that-do-not-agree": ("graph", {**ring(6), "features": ring(5)["features"]}),
    "cycle": ("tree", changed(chain(4), "near", 0, (3, 0))),
    "child-behind-the-last": ("tree", changed(chain(4), "near", 4)),
    "parent-before-its-children": ("tree", {**chain(4), "levels": chain(4)["levels"][::-1]}),
    "size-beyond-the-image": ("image", image(1, 3, 4, [[4, 4]])),
    "size-far-beyond": ("image", image(1, 3, 4, [[3, 2**40]])),
    "no-images": ("image", image(0, 3, 4, [])),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_graph_or_image_is_refused_and_the_next_request_is_answered(
    name: str, client: Any, folder: Path
) -> None:
    model, feeds = BAD[name]
    refused(client, model, feeds)
    good = GOOD[model]
    np.testing.assert_allclose(ask(client, *good), run(folder, *good), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(0, 4), (3, 0), (0, 0)])
def test_an_image_without_positions_is_empty_or_refused(height: int, width: int, client: Any) -> None:
    feeds = image(1, height, width, [[height, width]])
    try:
        found = ask(client, "image", feeds)
    except tritonclient.grpc.InferenceServerException:
        refused(client, "image", feeds)
    else:
        assert found.shape == (1, height, width, F)


def test_a_bad_image_does_not_harm_those_that_come_with_it(client: Any, folder: Path) -> None:
    good = [image(1, 3, 4, [[3, 1 + seed % 4]], seed) for seed in range(12)]
    bad = image(1, 3, 4, [[3, 5]])
    wanted = [run(folder, "image", each) for each in good]
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask, client, "image", each) for each in good]
        refusals = [pool.submit(refused, client, "image", bad) for _ in range(4)]
        for answer, each in zip(answers, wanted, strict=True):
            np.testing.assert_allclose(answer.result(), each, atol=1e-6)
        for refusal in refusals:
            refusal.result()
