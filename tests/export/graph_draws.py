"""Graphs for the tests of exported files: drawn to given sizes, and real ones."""

from collections.abc import Mapping

import numpy as np

from cellport.cells import dags_of, levels_of, neighbours_of, visiting_order

Sizes = Mapping[str, int]


def slots(rng: np.random.Generator, sizes: Sizes, levels: str = "levels", width: str = "width") -> np.ndarray:
    """Every node in one slot; more levels than asked for where the nodes would not fit."""
    nodes, wide = sizes["nodes"], sizes[width]
    found = np.full(max(sizes[levels], -(-nodes // wide)) * wide, -1)
    found[rng.permutation(found.size)[:nodes]] = rng.permutation(nodes)
    return found.reshape(-1, wide)


def any_neighbours(rng: np.random.Generator, sizes: Sizes) -> dict[str, np.ndarray]:
    nodes = sizes["nodes"]
    return {"neighbours": rng.integers(-1, nodes, (nodes, sizes["degree"])), "levels": slots(rng, sizes)}


def earlier(rng: np.random.Generator, levels: np.ndarray, nodes: int, degree: int) -> np.ndarray:
    """For each node some of a level before its own."""
    level = np.empty(nodes, np.int64)
    row, place = np.nonzero(levels >= 0)
    level[levels[row, place]] = row
    drawn = rng.integers(0, nodes, (nodes, degree))
    return np.where(level[drawn] < level[:, None], drawn, -1)


def children(rng: np.random.Generator, sizes: Sizes, arity: int | None = None) -> dict[str, np.ndarray]:
    levels = slots(rng, sizes)
    degree = sizes["degree"] if arity is None else arity
    return {"children": earlier(rng, levels, sizes["nodes"], degree), "levels": levels}


def planar(nodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Neighbours of degree up to 6, as of superpixels, some missing; visited by a random confidence."""
    rng = np.random.default_rng(seed)
    wide = max(1, round(nodes**0.5))
    place = np.arange(nodes)
    column = place % wide
    pairs = [
        np.stack([place, place + step], 1)[(place + step < nodes) & (column + right < wide)]
        for step, right in ((1, 1), (wide, 0), (wide + 1, 1))
    ]
    edges = np.concatenate(pairs)
    neighbours = neighbours_of(edges[rng.random(len(edges)) < 0.9], nodes)
    levels = levels_of(neighbours, visiting_order(rng.random((nodes, 3))), symmetric=True)
    return {"neighbours": neighbours, "levels": levels}


def tree(depth: int, arity: int | None = None, seed: int = 0, most: int = 400) -> dict[str, np.ndarray]:
    """A random tree of a depth; `arity` slots, or up to four children."""
    rng = np.random.default_rng(seed)
    edges, layer, nodes = [], [0], 1
    for _ in range(depth):
        below = []
        for place, parent in enumerate(layer):
            count = max(int(place == 0), int(rng.integers(0, 3 if nodes < most else 1)))
            taken = rng.permutation(arity or 4)[: min(count, arity or 4)]
            for slot in taken:
                edges.append((parent, int(slot), nodes))
                below.append(nodes)
                nodes += 1
        layer = below
    if arity is None:
        found = neighbours_of([(parent, child) for parent, _, child in edges], nodes, directed=True)
    else:
        found = np.full((nodes, arity), -1)
        for parent, slot, child in edges:
            found[parent, slot] = child
    return {"children": found, "levels": levels_of(found)}


def document(words: int, types: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Adjacent words and some distant ones, as the inputs of a file that takes both graphs."""
    rng = np.random.default_rng(seed)
    near = np.stack([np.arange(words - 1), np.arange(1, words)], 1)
    far = rng.integers(0, words, (words // 2, 2))
    edges = np.concatenate([near, near[:, ::-1], far[far[:, 0] != far[:, 1]]])
    kinds = np.concatenate([np.full(2 * len(near), 0), rng.integers(1, types, len(edges) - 2 * len(near))])
    names = ("predecessors", "types", "levels")
    return {
        f"{way}.{name}": value
        for way, dag in zip(("ahead", "back"), dags_of(edges, kinds, words), strict=True)
        for name, value in zip(names, dag, strict=True)
    }


def with_features(graph: dict[str, np.ndarray], nodes: int, features: int, seed: int = 0) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((nodes, features)).astype(np.float32)
    return {"features": values, **graph}
