"""The networks that `benchmarks/grids.py` times: exported, as wavefronts in eager PyTorch, and cell by cell.

The plain loops compute one cell after the other, each with all of its gates in one product. What depends on the input
alone is one product for all cells in front of the loop, and of the Graph LSTM's gates every node's share is computed
once. They are what somebody would write who knows PyTorch and has no wavefront.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from skimage.segmentation import slic
from skimage.transform import resize
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from cellport.cells import MDLSTM, GraphLSTM, GridLSTM, levels_of, neighbours_of, unite_graphs, visiting_order

CHANNELS, HIDDEN, LAYERS, FEATURES = 3, 16, 2, 8
"""Colours; features of a state; layers of the Grid and Graph LSTM; what is known of a superpixel."""
GRAPH_HIDDEN = 32
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")

Feeds = dict[str, NDArray[Any]]
Plain = Callable[..., Tensor]


class Grid(nn.Module):
    """A Grid LSTM over height, width and depth, as a function of images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = GridLSTM(CHANNELS, HIDDEN, LAYERS, dimensions=3, batch_first=True)

    def forward(self, input: Tensor) -> Tensor:
        """Map images [batch, height, width, channels] to features [batch, height, width, hidden]."""
        output: Tensor = self.grid(input)[0]
        return output


class Graph(nn.Module):
    """A Graph LSTM as a function of a graph and its schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = GraphLSTM(FEATURES, GRAPH_HIDDEN, layers=LAYERS)

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """Map features [nodes, features] to features [nodes, hidden]."""
        output: Tensor = self.graph(features, neighbours, levels)[0]
        return output


def md_lstm() -> MDLSTM:
    """The standard cell in four directions, with forget biases at which its memory stays bounded over 64x64 cells."""
    torch.manual_seed(0)
    model = MDLSTM(CHANNELS, HIDDEN, batch_first=True).eval()
    with torch.no_grad():
        for suffix in model.suffixes():
            getattr(model, "bias" + suffix)[HIDDEN : 3 * HIDDEN] = -1
    return model


def grid_lstm() -> Grid:
    """Two layers with weights of their own, one direction."""
    torch.manual_seed(0)
    return Grid().eval()


def graph_lstm() -> Graph:
    """Two sweeps."""
    torch.manual_seed(0)
    return Graph().eval()


def plain_md_lstm(model: MDLSTM, images: Tensor) -> Tensor:
    """What the MD-LSTM computes, direction by direction, row by row, column by column."""
    outputs = []
    for suffix, flip in zip(model.suffixes(), model.flips, strict=True):
        axes = [1 + d for d in flip]
        weight_ih, bias = getattr(model, "weight_ih" + suffix), getattr(model, "bias" + suffix)
        weight_hh = torch.cat(tuple(getattr(model, "weight_hh" + suffix)), -1).t()
        projected = F.linear(images.flip(axes), weight_ih, bias)
        batch, height, width, _ = projected.shape
        zero = projected.new_zeros(batch, HIDDEN)
        above = [(zero, zero)] * width
        found = []
        for row in projected.unbind(1):
            h_left, s_left = zero, zero
            for column, a in enumerate(row.unbind(1)):
                h_up, s_up = above[column]
                a = torch.addmm(a, torch.cat([h_up, h_left], -1), weight_hh)
                gates, g, o = a.split([3 * HIDDEN, HIDDEN, HIDDEN], -1)
                i, f_up, f_left = torch.sigmoid(gates).chunk(3, -1)
                s_left = i * torch.tanh(g) + f_up * s_up + f_left * s_left
                h_left = torch.sigmoid(o) * torch.tanh(s_left)
                above[column] = h_left, s_left
                found.append(h_left)
        outputs.append(torch.stack(found, 1).unflatten(1, (height, width)).flip(axes))
    return torch.cat(outputs, -1)


def plain_grid_lstm(model: Grid, images: Tensor) -> Tensor:
    """What the Grid LSTM computes, row by row, column by column, layer by layer."""
    grid, d = model.grid, HIDDEN
    assert grid.bias is not None
    layers = list(zip([weight.t() for weight in grid.weight], grid.bias, strict=True))
    entering = grid.entry(images)
    batch, height, width, _ = entering.shape
    zero = entering.new_zeros(batch, d)
    above = [[(zero, zero)] * len(layers) for _ in range(width)]
    found = []
    for row in entering.unbind(1):
        left = [(zero, zero)] * len(layers)
        for column, pair in enumerate(row.unbind(1)):
            h_deep, m_deep = pair.chunk(2, -1)
            for layer, (weight, bias) in enumerate(layers):
                (h_up, m_up), (h_left, m_left) = above[column][layer], left[layer]
                a = torch.addmm(bias, torch.cat([h_up, h_left, h_deep], -1), weight).view(batch, 3, 4 * d)
                gates, candidate = a.split([3 * d, d], -1)
                u, f, o = torch.sigmoid(gates).chunk(3, -1)
                m = f * torch.stack([m_up, m_left, m_deep], 1) + u * torch.tanh(candidate)
                h = o * torch.tanh(m)
                (h_up, h_left, h_deep), (m_up, m_left, m_deep) = h.unbind(1), m.unbind(1)
                above[column][layer], left[layer] = (h_up, m_up), (h_left, m_left)
            found.append(h_deep)
    return torch.stack(found, 1).unflatten(1, (height, width))


def plain_graph_lstm(model: Graph, features: Tensor, neighbours: Sequence[Sequence[int]], order: list[int]) -> Tensor:
    """What the Graph LSTM computes, node by node."""
    graph, size = model.graph, GRAPH_HIDDEN
    features = F.linear(features, graph.weight_in, graph.bias_in)
    h = m = features.new_zeros(len(features), size)
    for layer in range(graph.layers):
        own = F.linear(features, getattr(graph, f"weight_ih_l{layer}"), getattr(graph, f"bias_l{layer}"))
        u, f, c, o = (own + F.linear(h, getattr(graph, f"weight_hh_l{layer}"))).chunk(4, -1)
        near_u, near_f, near_c, near_o = getattr(graph, f"weight_nh_l{layer}").chunk(4)
        near = torch.cat([near_u, near_o, near_c])
        kept, gates = torch.sigmoid(f) * m, torch.cat([u, o, c], -1)
        forget = own[:, size : 2 * size].unbind()
        now = list(zip(h.unbind(), F.linear(h, near_f).unbind(), m.unbind(), strict=True))
        for node in order:
            if neighbours[node]:
                h_near, gate, m_near = map(torch.stack, zip(*[now[j] for j in neighbours[node]], strict=True))
                mean = (torch.sigmoid(forget[node] + gate) * m_near).mean(0)
                a = torch.addmv(gates[node], near, h_near.mean(0))
            else:
                mean, a = torch.zeros_like(forget[node]), gates[node]
            u_o, c_i = a.split([2 * size, size])
            u_i, o_i = torch.sigmoid(u_o).chunk(2)
            m_i = mean + kept[node] + u_i * torch.tanh(c_i)
            h_i = torch.tanh(o_i * m_i)
            now[node] = h_i, torch.mv(near_f, h_i), m_i
        h, _, m = map(torch.stack, zip(*now, strict=True))
        features = features + h
    return features


def pictures(side: int, batch: int) -> NDArray[np.float32]:
    """Pieces of photographs, [batch, side, side, channels], -1 to 1."""
    pieces = [resize(_piece(number), (side, side), anti_aliasing=True) for number in range(batch)]
    return (2 * np.stack(pieces) - 1).astype(np.float32)


class Superpixels:
    """The graph of the superpixels of one or several pieces of photographs.

    Args:
        segments: how many superpixels a piece is to have, about.
        batch: pieces.

    Attributes:
        features: [nodes, FEATURES]: mean and deviation of the colours, and the place.
        neighbours: [nodes, degree].
        order: [nodes], by the confidence of the best of five classes of colours.
        levels: [steps, width].
    """

    def __init__(self, segments: int, batch: int) -> None:
        features, lists, orders = zip(*[_superpixels(_piece(number), segments) for number in range(batch)], strict=True)
        union = unite_graphs(lists, orders)
        assert union.order is not None
        self.features, self.neighbours, self.order = np.concatenate(features), union.neighbours, union.order
        self.levels = levels_of(self.neighbours, self.order, symmetric=True)

    @property
    def feeds(self) -> Feeds:
        """The inputs of the exported file."""
        return {"features": self.features, "neighbours": self.neighbours, "levels": self.levels}

    @property
    def lists(self) -> list[list[int]]:
        """The neighbours of each node."""
        return [[j for j in row if j >= 0] for row in self.neighbours.tolist()]


def any_graph(rng: np.random.Generator, sizes: Mapping[str, int]) -> Feeds:
    """A graph and a schedule of given sizes, with which the export tries the network."""
    nodes, width = sizes["nodes"], sizes["width"]
    levels = np.full(max(sizes["levels"], -(-nodes // width)) * width, -1)
    levels[rng.permutation(levels.size)[:nodes]] = np.arange(nodes)
    return {
        "neighbours": rng.integers(-1, nodes, (nodes, sizes["degree"])),
        "levels": levels.reshape(-1, width),
    }


def _piece(number: int) -> NDArray[np.float64]:
    """A photograph: the whole of the first four, then their corners."""
    picture = getattr(skimage.data, PHOTOGRAPHS[number % 4])() / 255
    height, width = (3 * size // 4 for size in picture.shape[:2])
    corner = number // 4 - 1
    if corner < 0:
        return picture
    rows = slice(None, height) if corner % 2 else slice(-height, None)
    columns = slice(None, width) if corner // 2 else slice(-width, None)
    return picture[rows, columns]


def _closest(picture: NDArray[np.float64], segments: int) -> NDArray[np.int64]:
    """The superpixel of each pixel; SLIC gives fewer than it is asked for, and is asked again for more."""
    found, asked = [], segments
    for _ in range(4):
        _, regions = np.unique(slic(picture, asked, compactness=10, start_label=0), return_inverse=True)
        count = int(regions.max()) + 1
        found.append((abs(count - segments), count, regions.reshape(picture.shape[:2])))
        asked = round(asked * segments / count)
    return min(found, key=lambda each: each[0])[2]


def _superpixels(picture: NDArray[np.float64], segments: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Features, neighbours and visiting order of the superpixels of one picture."""
    regions = _closest(picture, segments)
    count = int(regions.max()) + 1

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        sums = [np.bincount(regions.ravel(), each.ravel(), count) for each in np.moveaxis(values, -1, 0)]
        return np.stack(sums, -1) / np.bincount(regions.ravel())[:, None]

    colours = mean(picture)
    deviation = np.sqrt(np.maximum(mean(picture**2) - colours**2, 0))
    place = mean(np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in regions.shape), indexing="ij"), -1))
    pairs = [(regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])]
    edges = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs])
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)
    distances = KMeans(5, n_init=1, random_state=0).fit(colours).transform(colours)
    confidence = np.exp(-10 * distances) / np.exp(-10 * distances).sum(1, keepdims=True)
    features = np.concatenate([colours, deviation, place], 1).astype(np.float32)
    return features, neighbours_of(edges, count), visiting_order(confidence)
