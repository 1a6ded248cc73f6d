"""Every cell with its options, and how the oracle computes it: what the conformance tests are parametrised over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellport.cells import GRU, LSTM, RNN, SRU, LayerNormLSTM, SequenceCell

from . import oracle

I, H = 3, 4


@dataclass(frozen=True)
class Case:
    """A sequence cell's class and arguments."""

    name: str
    cell: Callable[..., SequenceCell]
    input_size: int = I
    hidden_size: int = H
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0, **more: Any) -> SequenceCell:
        """The cell in float64 with every parameter drawn anew, biases too."""
        generator = torch.Generator().manual_seed(seed)
        cell = self.cell(self.input_size, self.hidden_size, **{**self.options, **more}).double()
        with torch.no_grad():
            for parameter in cell.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        return cell


def _grid() -> list[Case]:
    shapes = {
        "": {},
        "-stacked": {"num_layers": 2},
        "-bidirectional": {"bidirectional": True},
        "-stacked-bidirectional": {"num_layers": 2, "bidirectional": True},
    }
    kinds: list[tuple[str, Callable[..., SequenceCell], dict[str, Any]]] = [
        ("rnn-tanh", RNN, {}),
        ("rnn-relu", RNN, {"nonlinearity": "relu"}),
        ("lstm", LSTM, {}),
        ("lstm-projected", LSTM, {"proj_size": 2}),
        ("lstm-peephole", LSTM, {"peephole": True}),
        ("lstm-layer-norm", LayerNormLSTM, {}),
        ("gru", GRU, {}),
        ("gru-reset-before", GRU, {"reset_after": False}),
        ("sru-v2", SRU, {}),
        ("sru-v1", SRU, {"version": 1, "activation": "tanh"}),
    ]
    cases = [
        Case(f"{kind}{shape}", cell, options={**options, **more})
        for kind, cell, options in kinds
        for shape, more in shapes.items()
    ]
    cases += [Case(f"{kind}-no-bias", cell, options={**options, "bias": False}) for kind, cell, options in kinds]
    cases += [
        Case("lstm-coupled", LSTM, options={"coupled": True}),
        Case(
            "lstm-peephole-coupled-projected-stacked-bidirectional",
            LSTM,
            options={"peephole": True, "coupled": True, "proj_size": 2, "num_layers": 2, "bidirectional": True},
        ),
        Case("sru-v2-as-wide", SRU, H, H, {"highway_bias": -2.0}),
        Case("sru-v2-as-wide-no-rescale", SRU, H, H, {"highway_bias": -2.0, "rescale": False}),
        Case("sru-v2-as-wide-bidirectional", SRU, 2 * H, H, {"bidirectional": True}),
        Case("sru-v2-tanh", SRU, H, H, {"activation": "tanh"}),
        Case("sru-v2-relu", SRU, I, H, {"activation": "relu"}),
        Case("sru-v2-no-skip", SRU, H, H, {"skip": False, "num_layers": 2}),
        Case("sru-v1-as-wide", SRU, H, H, {"version": 1, "rescale": False}),
        Case("sru-v2-factorised-stacked", SRU, I, H, {"n_proj": 2, "num_layers": 2}),
        Case("sru-v2-factorised-as-wide-bidirectional", SRU, 2 * H, H, {"n_proj": 3, "bidirectional": True}),
        Case("sru-v2-pre-norm-stacked", SRU, I, H, {"layer_norm": "pre", "num_layers": 2}),
        Case(
            "sru-v2-pre-norm-factorised-bidirectional",
            SRU,
            2 * H,
            H,
            {"layer_norm": "pre", "n_proj": 3, "bidirectional": True, "highway_bias": -1.0},
        ),
        Case("sru-v2-post-norm-stacked", SRU, I, H, {"layer_norm": "post", "num_layers": 2}),
        Case(
            "sru-v1-post-norm-bidirectional-stacked",
            SRU,
            I,
            H,
            {"version": 1, "layer_norm": "post", "bidirectional": True, "num_layers": 2},
        ),
        Case("sru-v2-input-projection-bidirectional", SRU, I, H, {"input_projection": True, "bidirectional": True}),
    ]
    cases += [Case(f"{kind}-one-wide", cell, 1, 1, options) for kind, cell, options in kinds if "proj" not in kind]
    return cases


CASES = _grid()


def expected(
    cell: SequenceCell, input: Tensor, state: Any = None, lengths: list[int] | None = None
) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...]]:
    """The oracle's output and final state tensors for a cell's parameters, time-major."""
    x = input.detach().numpy()
    steps, batch, _ = x.shape
    states = cell.initial_state(batch) if state is None else state
    tensors = [t.detach().numpy() for t in ((states,) if isinstance(states, Tensor) else states)]
    parameters = {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}
    directions = 2 if cell.bidirectional else 1
    after = None
    if isinstance(cell, SRU):
        if cell.input_to_hidden is not None:
            x = x @ parameters["input_to_hidden.weight"].T
        if cell.layer_norm == "post":
            after = [functools.partial(_norm_after, parameters, layer) for layer in range(cell.num_layers)]
    layers: list[list[oracle.Cell]] = []
    initial: list[list[tuple[Any, ...]]] = []
    for layer in range(cell.num_layers):
        layers.append([_oracle_cell(cell, parameters, layer, d, directions) for d in range(directions)])
        if isinstance(cell, SRU):
            halves = np.split(tensors[0][layer], directions, -1)
            initial.append([(half,) for half in halves])
        else:
            initial.append([tuple(t[layer * directions + d] for t in tensors) for d in range(directions)])
    output, finals = oracle.run(x, initial, layers, lengths or [steps] * batch, after)
    if isinstance(cell, SRU):
        return output, (np.stack([np.concatenate([f[0] for f in layer], -1) for layer in finals]),)
    return output, tuple(
        np.stack([final[i] for layer in finals for final in layer]) for i in range(len(cell.state_names))
    )


def _oracle_cell(cell: SequenceCell, parameters: dict[str, Any], layer: int, d: int, directions: int) -> oracle.Cell:
    if isinstance(cell, SRU):
        prefix = f"rnn_lst.{layer}."
        weights = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
        weights.setdefault("bias", np.zeros_like(weights["weight_c"]))
        if cell.layer_norm == "post":
            weights = {name: value for name, value in weights.items() if not name.startswith("layer_norm")}
        module = cell.rnn_lst[layer]
        options = {"version": cell.version, "activation": cell.activation, "skip": module.skip}
        alpha = float(module.scale_x) if module.rescale else 1.0
        return oracle.sru(weights, d, directions, alpha=alpha, **options)
    suffix = f"_l{layer}" + ("_reverse" if d else "")
    weights = {name.removesuffix(suffix): value for name, value in parameters.items() if name.endswith(suffix)}
    for bias in ("bias_ih", "bias_hh"):
        weights.setdefault(bias, np.zeros(len(weights["weight_ih"])))
    if isinstance(cell, LSTM):
        return oracle.lstm(weights, cell.coupled)
    if isinstance(cell, LayerNormLSTM):
        return oracle.layer_norm_lstm(weights)
    if isinstance(cell, GRU):
        return oracle.gru(weights, cell.reset_after)
    return oracle.rnn(weights, cell.nonlinearity)


def _norm_after(parameters: dict[str, Any], layer: int, h: oracle.Array) -> oracle.Array:
    norm = f"rnn_lst.{layer}.layer_norm"
    return oracle.layer_norm(h, parameters[f"{norm}.weight"], parameters[f"{norm}.bias"])


def draw(cell: SequenceCell, steps: int, batch: int, seed: int = 1) -> tuple[Tensor, Any]:
    """A random input in the cell's layout, and a random state."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, steps, cell.input_size) if cell.batch_first else (steps, batch, cell.input_size)
    state = cell.pack_state(
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in cell.state_shapes(batch)]
    )
    return torch.randn(shape, generator=generator, dtype=torch.float64), state


def tensors_of(state: Any) -> tuple[Tensor, ...]:
    """A state's tensors, whether it is one or several."""
    return (state,) if isinstance(state, Tensor) else tuple(state)
