"""Peepholes and coupled gates, in all combinations with the LSTM's other options, and as ONNX's operator has them."""

import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from cellport.cells import LSTM

from .cases import Case, draw, expected

T, B, I, H = 5, 3, 3, 4
LENGTHS = [3, 0, 5]
KINDS = [{"peephole": True}, {"coupled": True}, {"peephole": True, "coupled": True}]
OPTIONS = [
    {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "proj_size": proj_size}
    for layers, bidirectional, bias, proj_size in itertools.product((1, 2), (False, True), (False, True), (0, 2))
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(str(value) for value in options.values()))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind))
def test_every_combination_of_options_is_the_oracles(kind, options):
    case = Case("lstm", LSTM, options={**kind, **options})
    cell, turned = case.build(), case.build(batch_first=True)
    input, state = draw(cell, T, B)
    wanted, (wanted_h, wanted_c) = expected(cell, input, state, LENGTHS)
    lengths = torch.tensor(LENGTHS)
    output, (h, c) = cell(input, state, lengths)
    for actual, truth in ((output, wanted), (h, wanted_h), (c, wanted_c)):
        np.testing.assert_allclose(actual.detach().numpy(), truth, rtol=1e-12, atol=1e-12)
    turned_output, _ = turned(input.transpose(0, 1), state, lengths)
    np.testing.assert_allclose(turned_output.detach().numpy(), wanted.swapaxes(0, 1), rtol=1e-12, atol=1e-12)


def to_operator(values, coupled, axis=0):
    """Blocks i, f, g, o in ONNX's order i, o, f, c; a coupled LSTM's missing f is one that nobody reads."""
    if coupled:
        i, g, o = np.split(values, 3, axis)
        return np.concatenate([i, o, np.full_like(i, 9.0), g], axis)
    i, f, g, o = np.split(values, 4, axis)
    return np.concatenate([i, o, f, g], axis)


def operator(cell, input, state):
    """One layer as ONNX's LSTM: the model, and its inputs from a cell's parameters."""
    suffixes = cell.suffixes(0)
    parameters = {name: value.detach().float().numpy() for name, value in cell.named_parameters()}
    values = {"X": input.float().numpy()}
    values |= {"initial_h": state.h.float().numpy(), "initial_c": state.c.float().numpy()}
    for name, key in (("W", "weight_ih"), ("R", "weight_hh")):
        values[name] = np.stack([to_operator(parameters[f"{key}{suffix}"], cell.coupled) for suffix in suffixes])
    values["B"] = np.stack(
        [
            np.concatenate([to_operator(parameters[f"{key}{suffix}"], cell.coupled) for key in ("bias_ih", "bias_hh")])
            for suffix in suffixes
        ]
    )
    peepholes = []
    for suffix in suffixes:
        weight = parameters.get(f"weight_peephole{suffix}", np.zeros((2 if cell.coupled else 3) * H, np.float32))
        parts = np.split(weight, 2 if cell.coupled else 3)
        i, f, o = (parts[0], np.full_like(parts[0], 9.0), parts[1]) if cell.coupled else parts
        peepholes.append(np.concatenate([i, o, f]))
    values["P"] = np.stack(peepholes)
    names = ["X", "W", "R", "B", "", "initial_h", "initial_c", "P"]
    node = helper.make_node(
        "LSTM", names, ["Y", "Y_h", "Y_c"], hidden_size=H, direction=cell.direction, input_forget=int(cell.coupled)
    )
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values[name].shape) for name in names if name]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("Y", "Y_h", "Y_c")]
    model = helper.make_model(
        helper.make_graph([node], "lstm", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 9
    return model, values


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind))
def test_onnxruntimes_operator_computes_the_same(kind, bidirectional):
    """P and input_forget=1; the forget gate's weights of a coupled LSTM are 9 there, and nothing changes."""
    cell = Case("lstm", LSTM, options={**kind, "bidirectional": bidirectional}).build()
    input, state = draw(cell, T, B)
    model, values = operator(cell, input, state)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    output, (h, c) = cell(input, state)
    y, y_h, y_c = session.run(None, values)
    y = y.transpose(0, 2, 1, 3).reshape(T, B, -1)
    for actual, wanted in ((y, output), (y_h, h), (y_c, c)):
        np.testing.assert_allclose(actual, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_onnxs_reference_computes_the_same_peepholes():
    cell = Case("lstm", LSTM, options={"peephole": True}).build()
    input, state = draw(cell, T, B)
    model, values = operator(cell, input, state)
    _, y_h, _ = ReferenceEvaluator(model).run(None, values)
    np.testing.assert_allclose(y_h, cell(input, state)[1].h.detach().numpy(), rtol=1e-5, atol=1e-6)
