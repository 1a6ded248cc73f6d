"""The Tree-LSTMs of Tai, Socher and Manning 2015: child-sum, and N-ary."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import CellError, check_input, check_size
from .levels import check_schedule, level_recurrence
from .parameters import draw_parameter
from .steps import LSTMState

__all__ = ["TreeLSTM"]

TreeKind = Literal["child_sum", "n_ary"]


class TreeLSTM(nn.Module):
    """Tree-LSTM (Tai, Socher, Manning 2015, arXiv 1503.00075, equations 2 to 14).

    For a node with the feature x and the children k, for ``"child_sum"``

        i = s(W^i x + U^i sum_k h_k + b^i), o and u (tanh) the same
        f_k = s(W^f x + U^f h_k + b^f)
        c = i * u + sum_k f_k * c_k;  h = o * tanh(c)

    For ``"n_ary"`` the children have `arity` ordered slots, each with its own weights: U sum_k h_k becomes
    sum_l U_l h_l, and f_k = s(W^f x + sum_l U^f_kl h_l + b^f). A missing child has h = c = 0.

    Called as `tree_lstm(features, children, levels) -> (output, state)`: `levels_of(children)` gives
    levels by height, and a batch of trees is their union, `unite_graphs`. Where two nodes share a child, both read it.

    The parameters are weight_ih [4H, I] and bias [4H], blocks i, o, u, f, and weight_hh: [4H, H] with the same blocks;
    for ``"n_ary"`` [(3 + N)H, N*H], rows i, o, u, f_1 to f_N and columns h_1 to h_N.

    Args:
        input_size: features of a node.
        hidden_size: features of each state.
        kind: ``"child_sum"``, any number of children without order, or ``"n_ary"``.
        arity: child slots of a node, for ``"n_ary"``.
        device: where the parameters are.
        dtype: what the parameters are.

    Raises:
        CellError: if an argument is not accepted.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        kind: TreeKind = "child_sum",
        arity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("TreeLSTM", "input_size", input_size)
        check_size("TreeLSTM", "hidden_size", hidden_size)
        if kind not in ("child_sum", "n_ary"):
            raise CellError(f"TreeLSTM: kind is {kind!r}; accepted are 'child_sum' and 'n_ary'")
        if kind == "n_ary":
            check_size("TreeLSTM", "arity", arity)
        elif arity is not None:
            raise CellError(f"TreeLSTM: arity is {arity!r} and kind 'child_sum'; accepted is None, for kind 'n_ary' N")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.kind = kind
        self.arity = arity
        size = hidden_size
        slots = arity or 1
        self.weight_ih = draw_parameter(size, (4 * size, input_size), device, dtype)
        self.weight_hh = draw_parameter(size, ((3 + slots) * size, slots * size), device, dtype)
        self.bias = draw_parameter(size, (4 * size,), device, dtype)

    def forward(self, features: Tensor, children: Tensor, levels: Tensor) -> tuple[Tensor, LSTMState]:
        """Compute all nodes, from the leaves to the roots.

        Args:
            features: [nodes, input_size]; zeros where a node has none.
            children: integer [nodes, degree], for ``"n_ary"`` [nodes, arity]; -1 for none.
            levels: integer [steps, width], the nodes of each step; -1 for an empty slot.

        Returns:
            The output h [nodes, hidden_size], and the state `LSTMState(h, c)`, [nodes, hidden_size] each. Without nodes
            both are empty.

        Raises:
            CellError: if a shape, a dtype or an index is not accepted, a node is not in the levels once, or a child is
                not in a level before its parent's.
        """
        check_input("TreeLSTM", features, 2, "[nodes, features]", self.input_size, self.weight_ih)
        levels = check_schedule("TreeLSTM", "children", children, levels, features, ordered=True)
        if self.arity is not None and children.shape[1] != self.arity:
            raise CellError(f"TreeLSTM: children have {children.shape[1]} slots; accepted is arity = {self.arity}")
        sizes = [3 * self.hidden_size, self.hidden_size]
        gates, forget = F.linear(features, self.weight_ih, self.bias).split_with_sizes(sizes, -1)
        inputs = gates, forget.unsqueeze(1)
        h, c = (self._child_sum if self.arity is None else self._n_ary)(inputs, children, levels)
        return h, LSTMState(h, c)

    def _child_sum(self, inputs: tuple[Tensor, Tensor], children: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """A node's row holds h, U^f h (once for each node, not for each reader) and c."""
        size = self.hidden_size

        # Copies, because torch's scan refuses two views of one tensor.
        own = self.weight_hh[: 3 * size].clone(), self.weight_hh[3 * size :].clone()

        def step(near: Tensor, node: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[()]]:
            h, gate, memory = near.split_with_sizes([size, size, size], -1)
            h, c = _node(node[0] + F.linear(h.sum(1), own[0]), node[1] + gate, memory)
            return torch.cat([h, F.linear(h, own[1]), c], -1), ()

        held = inputs[0].new_zeros((inputs[0].shape[0], 3 * size))
        _, held = level_recurrence(step, held, inputs, children, levels)
        return held[:, :size], held[:, 2 * size :]

    def _n_ary(self, inputs: tuple[Tensor, Tensor], children: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """A node multiplies the states of all its slots at once."""
        size, arity = self.hidden_size, self.arity or 1

        def step(near: Tensor, node: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[()]]:
            h, memory = near.split_with_sizes([size, size], -1)
            rows = F.linear(h.reshape(-1, arity * size), self.weight_hh)
            gates, forget = rows.split_with_sizes([3 * size, arity * size], -1)
            h, c = _node(node[0] + gates, node[1] + forget.reshape(-1, arity, size), memory)
            return torch.cat([h, c], -1), ()

        held = inputs[0].new_zeros((inputs[0].shape[0], 2 * size))
        _, held = level_recurrence(step, held, inputs, children, levels)
        h, c = held.chunk(2, -1)
        return h, c

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = f"{self.input_size}, {self.hidden_size}, kind={self.kind!r}"
        return shown if self.arity is None else f"{shown}, arity={self.arity}"


def _node(gates: Tensor, forget: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """What h and c are, from [i, o, u] [nodes, 3H], and forget gates and memories of children [nodes, degree, H]."""
    i, o, u = gates.chunk(3, -1)
    c = torch.sigmoid(i) * torch.tanh(u) + (torch.sigmoid(forget) * memory).sum(1)
    return torch.sigmoid(o) * torch.tanh(c), c
