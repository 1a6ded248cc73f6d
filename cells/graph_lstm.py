"""The Graph LSTM of Liang et al. 2016: nodes of any graph, visited in the order of a confidence."""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import CellError, check_flag, check_input, check_size
from .graph_visits import graph_schedule, graph_sweep
from .levels import check_indices, check_schedule, level_recurrence
from .parameters import draw_parameter
from .steps import LSTMState

__all__ = ["GraphLSTM"]

GateStates = Literal["newest", "old"]
GraphOutput = Literal["tanh_o_m", "o_tanh_m"]


class GraphLSTM(nn.Module):
    """Graph LSTM with adaptive forget gates (Liang, Shen, Feng, Lin, Yan 2016, arXiv 1603.07063), stacked.

    A layer visits all nodes once. Node i has the feature x_i, the state (h_i, m_i) of the layer before and the
    neighbours N(i), and (h_j, m_j) are the new state of a neighbour that was visited before it, the old one of any
    other. With hb_i the mean of h_j over N(i),

        u_i   = s(W^u x_i + U^u h_i + Un^u hb_i + b^u), o_i and c_i (tanh) the same
        fb_ij = s(W^f x_i + Un^f h_j + b^f)
        f_i   = s(W^f x_i + U^f h_i + b^f)
        m_i'  = mean over N(i) of fb_ij * m_j + f_i * m_i + u_i * c_i
        h_i'  = tanh(o_i * m_i')

    A node without neighbours has hb_i = 0 and no neighbour term. What depends on x_i, h_i or the state of one
    neighbour alone is computed once for each node, not once for each edge.

    Called as `graph_lstm(features, neighbours, levels, state=None) -> (output, state)`. `neighbours` are those of
    `neighbours_of`, `levels` those of `levels_of(neighbours, visiting_order(confidence))`; a batch of graphs is their
    union, `unite_graphs`.

    The module trains. A program that `torch.export` makes of it cannot be trained: its operators have no derivative.

    The parameters of layer l are weight_ih_l{l} [4H, F] (W), weight_hh_l{l} [4H, H] (U), weight_nh_l{l} [4H, H] (Un)
    and bias_l{l} [4H], blocks u, f, c, o; with `residual` and another input_size than hidden_size also weight_in
    [H, input_size] and bias_in [H].

    Args:
        input_size: features of a node.
        hidden_size: features of each state.
        layers: sweeps over the graph, each with its own weights; the state of one is the old state of the next.
        gate_states: which h_j the gate fb_ij sees: the ``"newest"``, whose memory it gates, or the ``"old"`` one even
            where the neighbour was visited before.
        output: ``"tanh_o_m"`` for h = tanh(o * m), or ``"o_tanh_m"`` for h = o * tanh(m).
        residual: whether the features of the next layer are those of this one plus its h, the input being projected to
            hidden_size first where that is another. The output is then the features that a further layer would get.
        halved: whether the neighbours' mean memory and the node's own count by half, so that memories stay bounded
            over many nodes.
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
        layers: int = 1,
        gate_states: GateStates = "newest",
        output: GraphOutput = "tanh_o_m",
        residual: bool = True,
        halved: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for what, value in (("input_size", input_size), ("hidden_size", hidden_size), ("layers", layers)):
            check_size("GraphLSTM", what, value)
        check_flag("GraphLSTM", "residual", residual)
        check_flag("GraphLSTM", "halved", halved)
        if gate_states not in ("newest", "old"):
            raise CellError(f"GraphLSTM: gate_states is {gate_states!r}; accepted are 'newest' and 'old'")
        if output not in ("tanh_o_m", "o_tanh_m"):
            raise CellError(f"GraphLSTM: output is {output!r}; accepted are 'tanh_o_m' and 'o_tanh_m'")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.layers = layers
        self.gate_states = gate_states
        self.output = output
        self.residual = residual
        self.halved = halved

        def draw(name: str, *shape: int) -> None:
            self.register_parameter(name, draw_parameter(hidden_size, shape, device, dtype))

        if self.projects:
            draw("weight_in", hidden_size, input_size)
            draw("bias_in", hidden_size)
        for layer in range(layers):
            features = hidden_size if layer or residual else input_size
            draw(f"weight_ih_l{layer}", 4 * hidden_size, features)
            draw(f"weight_hh_l{layer}", 4 * hidden_size, hidden_size)
            draw(f"weight_nh_l{layer}", 4 * hidden_size, hidden_size)
            draw(f"bias_l{layer}", 4 * hidden_size)
        self.reset_parameters()

    @property
    def projects(self) -> bool:
        """Whether the input is projected to hidden_size."""
        return self.residual and self.input_size != self.hidden_size

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)); forget biases are 0."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        for layer in range(self.layers):
            nn.init.zeros_(self._weight(f"bias_l{layer}")[self.hidden_size : 2 * self.hidden_size])

    def forward(
        self, features: Tensor, neighbours: Tensor, levels: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Visit all nodes, once for each layer.

        Args:
            features: [nodes, input_size].
            neighbours: integer [nodes, degree]; -1 for none.
            levels: integer [steps, width], the nodes of each step; -1 for an empty slot.
            state: h and m of each node before the first layer, [nodes, hidden_size] each; zeros if None.

        Returns:
            The output [nodes, hidden_size], which is the last h, with `residual` plus the last layer's features; and
            the last layer's state `LSTMState(h, m)`, [nodes, hidden_size] each. Without nodes both are empty.

        Raises:
            CellError: if a shape, a dtype or an index is not accepted, or a node is not in the levels once.
        """
        check_input("GraphLSTM", features, 2, "[nodes, features]", self.input_size, next(self.parameters()))
        exporting = torch.compiler.is_exporting()
        if exporting:
            check_indices("GraphLSTM: neighbours", neighbours, "[nodes, degree]", features.shape[0])
            check_indices("GraphLSTM: levels", levels, "[levels, width]", features.shape[0])
        else:
            levels = check_schedule("GraphLSTM", "neighbours", neighbours, levels, features)
        if state is not None:
            state = _check_states("GraphLSTM", state, (features.shape[0], self.hidden_size))
        if self.projects:
            features = F.linear(features, self._weight("weight_in"), self._weight("bias_in"))
        if exporting:
            return self._exported(features, neighbours.to(torch.int64), levels.to(torch.int64), state)
        count = (neighbours >= 0).sum(1, keepdim=True).clamp(min=1).to(features.dtype)
        share = 1 / count
        for layer in range(self.layers):
            state = self._sweep(layer, features, neighbours, levels, state, share)
            features = features + state[0] if self.residual else state[0]
        assert state is not None
        return features, LSTMState(*state)

    def _exported(
        self, features: Tensor, neighbours: Tensor, levels: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, LSTMState]:
        """All layers, in the form of `graph_visits`, with the nodes in the order in which they are visited.

        Blocks of weights are sorted, and products are added to what they go to: a file does the one when it is made,
        and the other at no cost.
        """
        order, place, *schedule = graph_schedule(neighbours, levels, [features, *(state or ())])
        earlier, later = schedule[3:5]
        share = (earlier + later).clamp(min=1).unsqueeze(1).to(features.dtype).reciprocal()
        features = F.embedding(order, features)
        if state is not None:
            state = F.embedding(order, state[0]), F.embedding(order, state[1])
        for layer in range(self.layers):
            (weight, weight_f), (bias, bias_f) = self._blocks(f"weight_ih_l{layer}"), self._blocks(f"bias_l{layer}")
            gates, forget = F.linear(features, weight, bias), F.linear(features, weight_f, bias_f)
            near_gates, near_f = self._blocks(f"weight_nh_l{layer}")
            kept, old = None, []
            if state is not None:
                h, m = state
                weight, weight_f = self._blocks(f"weight_hh_l{layer}")
                gates = torch.addmm(gates, h, weight.t())
                kept = torch.sigmoid(torch.addmm(forget, h, weight_f.t())) * m
                kept = 0.5 * kept if self.halved else kept
                old = [h, F.linear(h, near_f), m]
            state = graph_sweep(
                gates,
                forget,
                kept,
                old,
                share,
                schedule,
                near_gates,
                near_f,
                self.gate_states == "newest",
                self.output == "tanh_o_m",
                self.halved,
            )
            features = features + state[0] if self.residual else state[0]
        assert state is not None
        h, m = F.embedding(place, state[0]), F.embedding(place, state[1])
        return F.embedding(place, features) if self.residual else h, LSTMState(h, m)

    def _blocks(self, name: str) -> tuple[Tensor, Tensor]:
        """A parameter's blocks of u, o and c, and that of f."""
        u, f, c, o = self._weight(name).chunk(4)
        return torch.cat([u, o, c]), f

    def _sweep(
        self,
        layer: int,
        features: Tensor,
        neighbours: Tensor,
        levels: Tensor,
        state: tuple[Tensor, Tensor] | None,
        share: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One layer; `share` [nodes, 1] is what each neighbour counts."""
        size = self.hidden_size
        near_u, near_f, near_c, near_o = self._weight(f"weight_nh_l{layer}").chunk(4)
        near_gates = torch.cat([near_u, near_c, near_o])
        bias = self._weight(f"bias_l{layer}")
        u, f, c, o = F.linear(features, self._weight(f"weight_ih_l{layer}"), bias).chunk(4, -1)
        inputs = {"forget": f.unsqueeze(1), "share": share}
        # A node's row holds what its neighbours read: h, Un^f h (once for each version of h) and m.
        if state is None:
            held = features.new_zeros((features.shape[0], 3 * size))
        else:
            h, m = state
            own_u, own_f, own_c, own_o = F.linear(h, self._weight(f"weight_hh_l{layer}")).chunk(4, -1)
            u, c, o = u + own_u, c + own_c, o + own_o
            inputs["kept"] = torch.sigmoid(f + own_f) * m * (0.5 if self.halved else 1.0)
            held = torch.cat([h, F.linear(h, near_f), m], -1)
        if self.gate_states == "old":  # then a node writes what it had: its neighbours' gates see no newer one
            inputs["gate"] = held[:, size : 2 * size]
        inputs["gates"] = torch.cat([u, c, o], -1)

        def step(near: Tensor, node: dict[str, Tensor]) -> tuple[Tensor, tuple[()]]:
            h, gate, m = near.split_with_sizes([size, size, size], -1)
            share = node["share"]
            u, c, o = (node["gates"] + F.linear(h.sum(1) * share, near_gates)).chunk(3, -1)
            mean = (torch.sigmoid(node["forget"] + gate) * m).sum(1) * share
            m = (0.5 * mean if self.halved else mean) + torch.sigmoid(u) * torch.tanh(c)
            if "kept" in node:
                m = m + node["kept"]
            o = torch.sigmoid(o)
            h = torch.tanh(o * m) if self.output == "tanh_o_m" else o * torch.tanh(m)
            gate = node["gate"] if "gate" in node else F.linear(h, near_f)
            return torch.cat([h, gate, m], -1), ()

        _, held = level_recurrence(step, held, inputs, neighbours, levels)
        return held[:, :size], held[:, 2 * size :]

    def _weight(self, name: str) -> Tensor:
        """A parameter, or the tensor that a parametrisation or a functional call puts in its place."""
        return cast(Tensor, getattr(self, name))

    def extra_repr(self) -> str:
        """The constructor's arguments as torch.nn prints them."""
        shown = f"{self.input_size}, {self.hidden_size}, layers={self.layers}, gate_states={self.gate_states!r}, "
        return shown + f"output={self.output!r}, residual={self.residual}" + (", halved=True" if self.halved else "")


def _check_states(cell: str, state: object, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Refuse a state that is not two tensors [nodes, hidden_size]."""
    if not isinstance(state, tuple | list) or len(state) != 2:
        raise CellError(f"{cell}: state is a {type(state).__name__}; accepted is (h, m)")
    for name, tensor in zip("hm", state, strict=True):
        fits = isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[1] == shape[1]
        if not fits or (not torch.compiler.is_exporting() and tensor.shape[0] != shape[0]):
            got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CellError(f"{cell}: state '{name}' has shape {got}; accepted is {list(shape)}")
    return state[0], state[1]
