"""Which form each recurrent layer gets, and that every form computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from cellport.errors import ExportError
from cellport.export import to_onnx, verify
from cellport.export.lowering import Shape, lower, measure
from cellport.export.passes import LowerRecurrent, can_lower
from cellport.export.verification import Grid

from .conftest import Exported
from .models import FEATURES, HIDDEN, Tokens, TokensWithLengths, cell

SHAPES: dict[str, Any] = {"tokens": {0: "batch", 1: "time"}}
IDS = torch.arange(6).reshape(2, 3)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in ir.traversal.RecursiveGraphIterator(ir.load(path).graph)]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "lstm-no-bias", "gru", "gru-reset-before", "rnn-tanh", "rnn-relu"])
def test_a_lowered_layer_computes_the_same(kind: str, bidirectional: bool, tmp_path: Path) -> None:
    """With lengths of its own, garbage in the padding, rows of length 0, and an answer at the last step."""
    torch.manual_seed(0)
    model = TokensWithLengths(cell(kind, num_layers=2, batch_first=True, bidirectional=bidirectional)).eval()
    shapes = {**SHAPES, "lengths": {0: "batch"}}
    path = tmp_path / "m.onnx"
    to_onnx(model, (IDS, torch.tensor([3, 2])), path, dynamic_shapes=shapes, lowering="scan")
    assert not {"LSTM", "GRU", "RNN"} & set(operators(path))
    assert operators(path).count("Scan") == (4 if bidirectional else 2)
    verify(model, path, grid=Grid(batches=(1, 5), steps=(1, 13), chunks=(None, 5)))


@pytest.mark.parametrize(("kind", "nodes"), [("lstm", 11), ("gru", 11), ("rnn-tanh", 3)])
def test_a_step_holds_no_more_than_it_has_to(kind: str, nodes: int, tmp_path: Path) -> None:
    """And the projections in front of the loop become a table."""
    path = tmp_path / "m.onnx"
    options = {"dynamic_shapes": SHAPES, "lengths": None, "lowering": "scan", "lookup": True, "verify": False}
    report = to_onnx(Tokens(cell(kind, batch_first=True)).eval(), (IDS,), path, **options)
    (scan,) = [node for node in ir.load(path).graph if node.op_type == "Scan"]
    assert len(list(scan.attributes["body"].as_graph())) == nodes
    assert operators(path).count("MatMul") == 1, "the head's"
    assert len(report.manifest.tables) == (1 if kind == "rnn-tanh" else 2)


def test_padding_never_reaches_a_lowered_layer(tmp_path: Path) -> None:
    """NaN after a row's end is in no output and no state, in either direction."""
    model = nn.LSTM(FEATURES, HIDDEN, bidirectional=True, batch_first=True).eval()
    example = (torch.randn(2, 3, FEATURES),)
    axes = ({0: "batch", 1: "time"},)
    to_onnx(model, example, tmp_path / "m.onnx", dynamic_shapes=axes, lowering="scan", verify=False)
    x = np.random.default_rng(0).standard_normal((2, 6, FEATURES)).astype(np.float32)
    dirty = x.copy()
    dirty[0, 4:], dirty[1] = np.nan, np.nan
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    output, h, c = session.run(None, {name: dirty, "lengths": np.array([4, 0])})
    truth = model(torch.from_numpy(x[:1, :4]))
    np.testing.assert_allclose(output[0, :4], truth[0][0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(h[:, :1], truth[1][0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(c[:, :1], truth[1][1].detach().numpy(), atol=1e-6)
    assert not output[0, 4:].any()
    assert not output[1].any()
    assert not h[:, 1].any()
    assert not c[:, 1].any()


def nodes_of(exported: Exported) -> tuple[ir.Model, list[ir.Node]]:
    model = ir.load(exported.path)
    return model, [node for node in model.graph if can_lower(node)]


def test_the_faster_form_by_the_geometric_mean_is_chosen(lstm: Exported) -> None:
    """A Scan that is three times faster at one batch size outweighs one that is twice slower at another."""
    for ratios, count in (({1: 0.5, 16: 3.0}, 2), ({1: 0.5, 16: 1.9}, 0), ({1: 1.1, 16: 1.1}, 2)):
        model, found = nodes_of(lstm)
        assert len(found) == 2
        notes = lower(model, "auto", tables=True, timer=lambda _, batch, ratios=ratios: (ratios[batch], 1.0))
        assert sum(node.op_type == "Scan" for node in model.graph) == count
        assert all(f"{ratios[16]:.2f} at batch 16" in note for note in notes)


def test_layers_are_chosen_one_by_one(lstm: Exported) -> None:
    """The layer behind the embedding can have a table if that is allowed and small enough, the one above it cannot."""
    for tables, limit, forms in (
        (True, 0, ["Scan", "LSTM"]),
        ("auto", 1 << 20, ["Scan", "LSTM"]),
        ("auto", 0, ["LSTM", "LSTM"]),
        (False, 1 << 20, ["LSTM", "LSTM"]),
    ):
        model, _ = nodes_of(lstm)
        lower(model, "auto", tables=tables, limit=limit, timer=lambda shape, _: (2.0 if shape.table else 0.5, 1.0))
        assert [node.op_type for node in model.graph if node.op_type in ("LSTM", "Scan")] == forms


def test_both_forms_are_measured_on_this_machine() -> None:
    for operator in ("LSTM", "GRU", "RNN"):
        native, scan = measure(Shape(operator, 2, 8, 8, True, True), 2)
        assert native > 0
        assert scan > 0


@pytest.mark.parametrize("change", ["peephole", "coupled", "activation", "clip"])
def test_what_the_loop_does_not_compute_stays_native(change: str, lstm: Exported) -> None:
    model, (node, _) = nodes_of(lstm)
    if change == "peephole":
        node.resize_inputs(8)
        value = ir.Value(name="p", shape=ir.Shape([1, 3 * HIDDEN]), type=ir.TensorType(ir.DataType.FLOAT))
        node.replace_input_with(7, value)
    else:
        attributes = {
            "coupled": ir.AttrInt64("input_forget", 1),
            "activation": ir.AttrStrings("activations", ["HardSigmoid", "Tanh", "Tanh"]),
            "clip": ir.AttrFloat32("clip", 3.0),
        }
        made = attributes[change]
        node.attributes[made.name] = made
    assert not can_lower(node)
    LowerRecurrent()(model)
    assert [each.op_type for each in model.graph if each.op_type in ("LSTM", "Scan")] == ["LSTM", "Scan"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowering": "loop"}, "lowering is 'loop'; accepted: 'auto', 'native', 'scan'"),
        ({"batches": ()}, r"batches is \(\); accepted"),
        ({"batches": (0,)}, r"batches is \(0,\); accepted"),
    ],
)
def test_wrong_use_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        to_onnx(Tokens(cell("gru")).eval(), (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES, **options)
