"""The sentence graph LSTM of Peng et al. 2017: two directed acyclic graphs with typed edges."""

from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import INTEGER_DTYPES, CellError, check_flag, check_input, check_size
from .graphs import levels_of, neighbours_of
from .levels import check_schedule, level_recurrence
from .parameters import draw_parameter
from .steps import LSTMState

__all__ = ["DAG", "DAGLSTM", "dags_of"]

Variant = Literal["full", "light"]


class DAG(NamedTuple):
    """A directed acyclic graph with typed edges, as integer tensors or arrays.

    Attributes:
        predecessors: [nodes, degree], the nodes that each node reads; -1 for none.
        types: [nodes, degree], the type of each of these edges; any number where there is no edge.
        levels: [steps, width], `levels_of(predecessors)`; -1 for an empty slot.
    """

    predecessors: Any
    types: Any
    levels: Any


class DAGLSTM(nn.Module):
    """Graph LSTM over the words of a document (Peng, Poon, Quirk, Toutanova, Yih 2017, arXiv 1708.03743).

    The edges (adjacent words, dependencies, discourse) from left to right are one graph, those from right to left
    another; each has its own weights, and the results are concatenated. For node t with the predecessors j over edges
    of the type m(t, j),

        i_t  = s(W^i x_t + sum_j U^i_m(t,j) h_j + b^i), o and u (tanh) the same
        f_tj = s(W^f x_t + U^f_m(t,j) h_j + b^f)
        c_t  = i * u + sum_j f_tj * c_j;  h_t = o * tanh(c_t)

    ``"full"`` has a matrix U for each type. ``"light"`` has an embedding e for each type, and U x (h_j (x) e) in place
    of U_m h_j, with U a tensor [4H, type_size, H]: the full form is that of one-hot embeddings.

    Called as `dag_lstm(features, ahead, back) -> (output, state)` with two `DAG`s, such as those of `dags_of`.

    The parameters are weight_ih [4H, I], weight_hh [4H, types or type_size, H], bias [4H], blocks i, o, u, f, and for
    ``"light"`` types [types, type_size]; those of the way back have the suffix _reverse.

    Args:
        input_size: features of a node.
        hidden_size: features of each state per direction.
        edge_types: how many types of edges there are.
        variant: ``"full"`` or ``"light"``.
        type_size: size of a type's embedding, for ``"light"``.
        bidirectional: whether there is a graph back.
        device: where the parameters are.
        dtype: what the parameters are.

    Raises:
        CellError: if an argument is not accepted.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        edge_types: int,
        *,
        variant: Variant = "full",
        type_size: int | None = None,
        bidirectional: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for what, value in (("input_size", input_size), ("hidden_size", hidden_size), ("edge_types", edge_types)):
            check_size("DAGLSTM", what, value)
        check_flag("DAGLSTM", "bidirectional", bidirectional)
        if variant not in ("full", "light"):
            raise CellError(f"DAGLSTM: variant is {variant!r}; accepted are 'full' and 'light'")
        if variant == "light":
            check_size("DAGLSTM", "type_size", type_size)
        elif type_size is not None:
            raise CellError(f"DAGLSTM: type_size is {type_size!r} and variant 'full'; accepted is None")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.edge_types = edge_types
        self.variant = variant
        self.type_size = type_size
        self.bidirectional = bidirectional
        rows = 4 * hidden_size

        def draw(name: str, *shape: int) -> None:
            self.register_parameter(name, draw_parameter(hidden_size, shape, device, dtype))

        for suffix in self._suffixes():
            draw(f"weight_ih{suffix}", rows, input_size)
            draw(f"weight_hh{suffix}", rows, type_size or edge_types, hidden_size)
            draw(f"bias{suffix}", rows)
            if variant == "light":
                draw(f"types{suffix}", edge_types, type_size or 1)

    def _weight(self, name: str) -> Tensor:
        """A parameter, or the tensor that a parametrisation or a functional call puts in its place."""
        return cast(Tensor, getattr(self, name))

    def _suffixes(self) -> list[str]:
        return ["", "_reverse"] if self.bidirectional else [""]

    def forward(self, features: Tensor, ahead: DAG, back: DAG | None = None) -> tuple[Tensor, LSTMState]:
        """Run over both graphs.

        Args:
            features: [nodes, input_size].
            ahead: the graph from left to right.
            back: the graph from right to left; None without `bidirectional`.

        Returns:
            The output h [nodes, directions * hidden_size], and the state `LSTMState(h, c)` of the same shape. Without
            nodes both are empty.

        Raises:
            CellError: if a shape, a dtype, an index or a type is not accepted, a node is not in the levels once, or a
                predecessor is not in a level before its node's.
        """
        check_input("DAGLSTM", features, 2, "[nodes, features]", self.input_size, self._weight("bias"))
        if (back is None) == self.bidirectional:
            raise CellError(f"DAGLSTM: back is {back!r:.60}; accepted is a DAG if bidirectional, else None")
        graphs = [ahead] if back is None else [ahead, back]
        found = [self._run(features, DAG(*each), suffix) for each, suffix in zip(graphs, self._suffixes(), strict=True)]
        h, c = (torch.cat(each, -1) for each in zip(*found, strict=True))
        return h, LSTMState(h, c)

    def _run(self, features: Tensor, graph: DAG, suffix: str) -> tuple[Tensor, Tensor]:
        size, nodes = self.hidden_size, features.shape[0]
        levels = check_schedule("DAGLSTM", "predecessors", graph.predecessors, graph.levels, features, ordered=True)
        weight = self._weight(f"weight_hh{suffix}").flatten(1)
        projected = F.linear(features, self._weight(f"weight_ih{suffix}"), self._weight(f"bias{suffix}"))
        gates, forget = projected.split_with_sizes([3 * size, size], -1)
        table = self._types(suffix)
        parts = table.shape[1]
        table = table.repeat_interleave(size, 1)  # e (x) 1, so that e (x) h is a product of equal shapes

        def step(near: Tensor, node: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[()]]:
            gates, forget, types = node
            h, memory = near.split_with_sizes([size, size], -1)
            rows = F.linear(F.embedding(types, table) * torch.cat([h] * parts, -1), weight)
            sums, own = rows.split_with_sizes([3 * size, size], -1)
            i, o, u = (gates + sums.sum(1)).chunk(3, -1)
            c = torch.sigmoid(i) * torch.tanh(u) + (torch.sigmoid(forget + own) * memory).sum(1)
            return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1), ()

        held = features.new_zeros((nodes, 2 * size))
        inputs = gates, forget.unsqueeze(1), self._rows(graph)
        _, held = level_recurrence(step, held, inputs, graph.predecessors, levels)
        h, c = held.chunk(2, -1)
        return h, c

    def _types(self, suffix: str) -> Tensor:
        """The embeddings of the types, [types, type_size]; one-hot for the full form."""
        if self.variant == "light":
            return self._weight(f"types{suffix}")
        like = self._weight(f"bias{suffix}")
        return torch.eye(self.edge_types, dtype=like.dtype, device=like.device)

    def _rows(self, graph: DAG) -> Tensor:
        """The type of each edge, checked, [nodes, degree]."""
        types, edge = graph.types, graph.predecessors >= 0
        if not isinstance(types, Tensor) or types.dtype not in INTEGER_DTYPES or types.dim() != 2:
            raise CellError("DAGLSTM: types are no integers [nodes, degree]")
        if not torch.compiler.is_exporting():
            if types.shape != edge.shape:
                raise CellError(f"DAGLSTM: types are {list(types.shape)}; accepted is {list(edge.shape)}")
            bad = edge & ((types < 0) | (types >= self.edge_types))
            if bad.any():
                raise CellError(f"DAGLSTM: types hold {int(types[bad][0])}; accepted is 0 to {self.edge_types - 1}")
        # A type out of range becomes one that no table has, so that the runtime fails; without an edge none counts.
        inside = (types >= 0) & (types < self.edge_types)
        return torch.where(inside, types.to(torch.int64), torch.where(edge, self.edge_types, 0))

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = f"{self.input_size}, {self.hidden_size}, {self.edge_types}, variant={self.variant!r}"
        shown += "" if self.type_size is None else f", type_size={self.type_size}"
        return shown if self.bidirectional else f"{shown}, bidirectional=False"


def dags_of(edges: ArrayLike, types: ArrayLike, nodes: int) -> tuple[DAG, DAG]:
    """The graphs ahead and back of a document.

    Args:
        edges: integer [edges, 2], (source, target) of each edge: a node and one that reads it.
        types: integer [edges].
        nodes: how many there are.

    Returns:
        The `DAG` of the edges to a later node and that of the edges to an earlier one, as arrays.

    Raises:
        CellError: an edge is out of range or joins a node to itself, or there is not one type an edge.
    """
    pairs, kinds = np.asarray(edges).reshape(-1, 2), np.asarray(types, np.int64)
    if kinds.shape != pairs.shape[:1]:
        raise CellError(f"types have shape {list(kinds.shape)}; accepted is one type for each of {len(pairs)} edges")
    neighbours_of(pairs[:, ::-1], nodes, directed=True)
    found = []
    for keep in (pairs[:, 0] < pairs[:, 1], pairs[:, 0] > pairs[:, 1]):
        by_reader = np.argsort(pairs[keep, 1], kind="stable")
        predecessors = neighbours_of(pairs[keep][:, ::-1], nodes, directed=True)
        of_edges = np.zeros_like(predecessors)
        of_edges[predecessors >= 0] = kinds[keep][by_reader]
        found.append(DAG(predecessors, of_edges, levels_of(predecessors)))
    return found[0], found[1]
