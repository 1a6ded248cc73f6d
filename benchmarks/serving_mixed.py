"""Images, sequences read both ways, and graphs: what is not fed step by step, for `benchmarks/serving.py`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from grpcload import make_bodies
from serving_models import EMBEDDING, HIDDEN, VOCABULARY, Array, Load, model_path, unary, write
from torch import Tensor, nn

from cellport.cells import MDLSTM, GraphLSTM, levels_of, neighbours_of, visiting_order
from cellport.export import to_onnx

FEATURES, SMALL = 8, 32
IMAGES = ((8, 12), (12, 16), (16, 16))
NODES = (12, 24, 48)
REQUESTS = 48


class Image(nn.Module):
    """An image [batch, height, width, features], read from all four corners, to ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = MDLSTM(FEATURES, SMALL, dimensions=2, batch_first=True)
        self.head = nn.Linear(4 * SMALL, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the scores [batch, 10]."""
        scores: Tensor = self.head(self.grid(image).mean((1, 2)))
        return scores


class Tagger(nn.Module):
    """Token ids [batch, time] to the scores of ten tags for each, seen from both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN // 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores [batch, time, 10]."""
        scores: Tensor = self.head(self.lstm(self.embedding(tokens))[0])
        return scores


class Graph(nn.Module):
    """The scores [nodes, 10] of a graph's nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = GraphLSTM(FEATURES, SMALL)
        self.head = nn.Linear(SMALL, 10)

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """Return the scores of each node."""
        scores: Tensor = self.head(self.graph(features, neighbours, levels)[0])
        return scores


def draw_graph(rng: np.random.Generator, nodes: int) -> dict[str, Array]:
    """A ring with as many chords as nodes, visited in the order of a random confidence."""
    place = np.arange(nodes)
    chords = rng.integers(0, nodes, (nodes, 2))
    edges = np.concatenate([np.stack([place, (place + 1) % nodes], 1), chords[chords[:, 0] != chords[:, 1]]])
    neighbours = neighbours_of(edges, nodes)
    return {
        "features": rng.standard_normal((nodes, FEATURES), np.float32),
        "neighbours": neighbours,
        "levels": levels_of(neighbours, visiting_order(rng.random(nodes)), symmetric=True),
    }


def draw_fitting(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Neighbours and levels of given sizes, for the proofs of the export: more levels where the nodes would not fit."""
    nodes, width = sizes["nodes"], sizes["width"]
    slots = np.full(max(sizes["levels"], -(-nodes // width)) * width, -1)
    slots[rng.permutation(slots.size)[:nodes]] = rng.permutation(nodes)
    return {
        "neighbours": rng.integers(-1, nodes, (nodes, sizes["degree"])),
        "levels": slots.reshape(-1, width),
    }


def mixed_loads(folder: Path) -> dict[str, Load]:
    """Export the three models; requests to all of them in turn, from 64 callers and from one."""
    torch.manual_seed(4)
    rng = np.random.default_rng(4)
    inputs: dict[str, list[dict[str, Array]]] = {
        "image": [
            {"image": rng.standard_normal((1, *IMAGES[k % len(IMAGES)], FEATURES), np.float32)} for k in range(REQUESTS)
        ],
        "tagger": [{"tokens": rng.integers(0, VOCABULARY, (1, length))} for length in rng.integers(4, 64, REQUESTS)],
        "graph": [draw_graph(rng, NODES[k % len(NODES)]) for k in range(REQUESTS)],
    }
    shapes = {
        "image": {"image": {0: "batch", 1: "height", 2: "width"}},
        "tagger": {"tokens": {0: "batch", 1: "time"}},
        "graph": {
            "features": {0: "nodes"},
            "neighbours": {0: "nodes", 1: "degree"},
            "levels": {0: "levels", 1: "width"},
        },
    }
    bodies, answers = [], []
    models: dict[str, nn.Module] = {"image": Image().eval(), "tagger": Tagger().eval(), "graph": Graph().eval()}
    for name, model in models.items():
        path = model_path(folder, name)
        path.parent.mkdir(parents=True)
        example = tuple(torch.from_numpy(array) for array in inputs[name][0].values())
        if name != "graph":
            example = (torch.cat([example[0], example[0]]),)
        to_onnx(
            model,
            example,
            path,
            output_names=["scores"],
            dynamic_shapes=shapes[name],
            lowering="native",
            verify=False,
            draw=draw_fitting if name == "graph" else None,
        )
        for each in inputs[name]:
            bodies.append(make_bodies.request(name, each, ["scores"]))
            with torch.inference_mode():
                answers.append(make_bodies.joined([model(*map(torch.from_numpy, each.values())).numpy()]))
    paths = write(folder / "mixed", bodies, answers)
    return {"mixed": Load(*paths, unary(64)), "mixed alone": Load(*paths, unary(1))}
