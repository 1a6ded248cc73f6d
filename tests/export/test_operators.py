"""Which operators each cell becomes, in both directions and in every variant."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from .conftest import export
from .models import FEATURES, HIDDEN, Tokens, cell


def made(folder: Path, kind: str, **options: object) -> list[ir.Node]:
    """Every node of an exported tagger, those in loops included."""
    exported = export(folder, Tokens(cell(kind, batch_first=True, **options)), verify=False)
    return list(ir.traversal.RecursiveGraphIterator(exported.graph))


@pytest.mark.parametrize(
    ("kind", "operator", "attributes"),
    [
        ("rnn-relu", "RNN", {"activations": ("Relu", "Relu")}),
        ("lstm-no-bias", "LSTM", {}),
        ("gru", "GRU", {"linear_before_reset": 1}),
        ("gru-reset-before", "GRU", {"linear_before_reset": 0}),
    ],
)
def test_both_directions_of_a_layer_are_one_node(
    kind: str, operator: str, attributes: dict[str, object], tmp_path: Path
) -> None:
    nodes = made(tmp_path, kind, num_layers=2, bidirectional=True)
    layers = [node for node in nodes if node.op_type == operator]
    assert len(layers) == 2
    for node in layers:
        assert node.attributes["direction"].as_string() == "bidirectional"
        assert node.attributes["hidden_size"].as_int() == HIDDEN
        for name, value in attributes.items():
            assert node.attributes[name].value == value
        bias = node.inputs[3] if len(node.inputs) > 3 else None
        assert (bias is None) == (kind == "lstm-no-bias")
    assert not {"Scan", "Loop", "ReverseSequence", "Split"} & {node.op_type for node in nodes}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("sru-v2", {"Sub": 1, "Mul": 2, "Add": 2, "Sigmoid": 1}),
        ("sru-v1-relu", {"Sub": 1, "Mul": 1, "Add": 1}),
    ],
)
def test_the_srus_loop_holds_only_what_depends_on_the_state(kind: str, body: dict[str, int], tmp_path: Path) -> None:
    """One loop a direction; the one that runs backwards reads and writes backwards and turns nothing around."""
    nodes = made(tmp_path, kind, bidirectional=True)
    loops = [node for node in nodes if node.op_type == "Scan"]
    assert [Counter(node.op_type for node in loop.attributes["body"].as_graph()) for loop in loops] == [body] * 2
    directions = [list(loop.attributes["scan_input_directions"].as_ints()) for loop in loops]
    assert sorted(directions) == [[0, 0], [1, 1]]
    flips = [node for node in nodes if node.op_type == "Slice"]
    assert [node for node in flips if _step(node) == [-1]] == []


def _step(node: ir.Node) -> list[int]:
    value = node.inputs[4] if len(node.inputs) > 4 else None
    return [] if value is None or value.const_value is None else value.const_value.numpy().tolist()


def test_a_projected_lstm_is_a_loop(tmp_path: Path) -> None:
    """ONNX's LSTM has no projection."""
    nodes = made(tmp_path, "lstm-projected")
    assert Counter(node.op_type for node in nodes)["Scan"] == 1
    assert "LSTM" not in {node.op_type for node in nodes}


def test_batch_first_costs_one_transpose_of_the_ids_and_one_of_the_answer(tmp_path: Path) -> None:
    """Never one of the embedded rows, and none between layers."""
    nodes = made(tmp_path, "gru", num_layers=3)
    transposes = [node for node in nodes if node.op_type == "Transpose"]
    assert len(transposes) == 2
    assert [value.name for value in transposes[0].inputs if value is not None] == ["tokens"]


class Splits(nn.Module):
    """Lays out its weights by hand, as ports of other programs do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * HIDDEN, FEATURES))

    def forward(self, features: Tensor) -> Tensor:
        a, b, c = self.weight.chunk(3)
        first, second = torch.cat([c, a, b]).t().split([HIDDEN, 2 * HIDDEN], 1)
        return features @ torch.stack([first, second[:, :HIDDEN]]).sum(0)


def test_weights_that_a_model_lays_out_itself_are_laid_out_at_export(tmp_path: Path) -> None:
    exported = export(tmp_path, Embedded(Splits()))
    assert [node.op_type for node in exported.graph] == ["Gather"]


class Embedded(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(7, FEATURES), inner

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(self.embedding(tokens))


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22])
def test_the_file_has_the_opset_that_was_asked_for(opset: int, tmp_path: Path) -> None:
    exported = export(
        tmp_path,
        Tokens(cell("rnn-tanh", batch_first=True)),
        opset_version=opset,
        state=None,
        lengths=None,
        verify=False,
    )
    assert {each.domain: each.version for each in exported.proto.opset_import} == {"": opset}
    assert exported.report.manifest.source is not None
    assert exported.report.manifest.source.opset == opset
    ids = np.zeros((1, 2), np.int64)
    assert np.isfinite(exported.session().run(["output"], {"tokens": ids})[0]).all()
