"""Stateful ONNX files as other tools write them, and the manifests that go beside them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

WIDTH, HIDDEN = 3, 4


def save_cell(path: Path) -> None:
    """One step of an LSTM, as onnx.helper makes it: nothing of time, and states that every run must give."""
    drawn = np.random.default_rng(0)
    weights = {
        "W": drawn.normal(0, 1, (WIDTH, 4 * HIDDEN)).astype(np.float32),
        "R": drawn.normal(0, 1, (HIDDEN, 4 * HIDDEN)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["from_x"]),
        helper.make_node("MatMul", ["h_in", "R"], ["from_h"]),
        helper.make_node("Add", ["from_x", "from_h"], ["gates"]),
        helper.make_node("Split", ["gates"], ["gi", "gf", "go", "gg"], axis=1, num_outputs=4),
        *(helper.make_node("Sigmoid", [f"g{gate}"], [gate]) for gate in "ifo"),
        helper.make_node("Tanh", ["gg"], ["g"]),
        helper.make_node("Mul", ["f", "c_in"], ["kept"]),
        helper.make_node("Mul", ["i", "g"], ["new"]),
        helper.make_node("Add", ["kept", "new"], ["c_out"]),
        helper.make_node("Tanh", ["c_out"], ["squashed"]),
        helper.make_node("Mul", ["o", "squashed"], ["h_out"]),
        helper.make_node("Identity", ["h_out"], ["y"]),
    ]

    def rows(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])

    graph = helper.make_graph(
        nodes,
        "cell",
        [rows("x", WIDTH), rows("h_in", HIDDEN), rows("c_in", HIDDEN)],
        [rows("y", HIDDEN), rows("h_out", HIDDEN), rows("c_out", HIDDEN)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


class Meter(nn.Module):
    """An LSTM over [time, batch, width], and beside it the running total of its input [batch, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, HIDDEN, 2)

    def forward(self, x: Tensor, total: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.lstm(x, (h, c))
        totals = x.cumsum(0) + total
        return y, totals, totals[-1], h, c


def save_meter(path: Path) -> None:
    """A file of torch.onnx.export's, with the batch in axis 1."""
    torch.manual_seed(0)
    example = (
        torch.randn(5, 2, WIDTH),
        torch.zeros(2, WIDTH),
        torch.zeros(2, 2, HIDDEN),
        torch.zeros(2, 2, HIDDEN),
    )
    names = ["x", "total", "h0", "c0"], ["y", "totals", "total_n", "hn", "cn"]
    export(Meter().eval(), example, path, *names)


def export(module: nn.Module, example: Any, path: Path, inputs: list[str], outputs: list[str]) -> None:
    axes = {"x": {0: "T", 1: "B"}, "total": {0: "B"}, "h0": {1: "B"}, "c0": {1: "B"}}
    axes |= {"y": axes["x"], "totals": axes["x"], "total_n": axes["total"], "hn": axes["h0"], "cn": axes["h0"]}
    dynamic = {name: axes[name] for name in (*inputs, *outputs)}
    names = {"input_names": inputs, "output_names": outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, example, str(path), dynamo=False, dynamic_axes=dynamic, opset_version=20, **names)


def state_of(before: str, after: str, axes: list[Any]) -> dict[str, Any]:
    return {"input": before, "output": after, "dtype": "float32", "axes": axes, "required": True}


CELL = {
    "version": "1.1",
    "inputs": [{"name": "x", "dtype": "float32", "axes": ["batch", WIDTH], "role": "static"}],
    "outputs": [{"name": "y", "dtype": "float32", "axes": ["batch", HIDDEN], "chunking": "last"}],
    "states": [state_of("h_in", "h_out", ["batch", HIDDEN]), state_of("c_in", "c_out", ["batch", HIDDEN])],
    "causal": True,
}
METER = {
    "version": "1.1",
    "inputs": [{"name": "x", "dtype": "float32", "axes": ["time", "batch", WIDTH], "role": "sequence"}],
    "outputs": [
        {"name": "y", "dtype": "float32", "axes": ["time", "batch", HIDDEN], "chunking": "concatenate"},
        {"name": "totals", "dtype": "float32", "axes": ["time", "batch", WIDTH], "chunking": "concatenate"},
    ],
    "states": [
        state_of("total", "total_n", ["batch", WIDTH]),
        state_of("h0", "hn", [2, "batch", HIDDEN]),
        state_of("c0", "cn", [2, "batch", HIDDEN]),
    ],
    "causal": True,
}
MANIFESTS = {"cell": CELL, "meter": METER}
