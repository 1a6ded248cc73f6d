"""What an exported graph consists of."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from cellport.export.operators import GRU_GATES, LSTM_GATES
from cellport.manifest import METADATA_KEY, Manifest

from .conftest import Exported
from .models import FEATURES, HIDDEN, VOCABULARY

ALL = ["lstm", "gru", "rnn", "sru", "sru_plain"]


@pytest.fixture(params=ALL)
def exported(request: pytest.FixtureRequest) -> Exported:
    made: Exported = request.getfixturevalue(request.param)
    return made


def nodes(exported: Exported) -> list[ir.Node]:
    return list(ir.traversal.RecursiveGraphIterator(exported.graph))


@pytest.mark.parametrize(("name", "operator"), [("lstm", "LSTM"), ("gru", "GRU"), ("rnn", "RNN")])
def test_cells_that_onnx_knows_become_its_operators(name: str, operator: str, request: pytest.FixtureRequest) -> None:
    """One node a layer, and no loop."""
    exported: Exported = request.getfixturevalue(name)
    counts = Counter(node.op_type for node in nodes(exported))
    assert counts[operator] == 2
    assert counts["Scan"] == counts["Loop"] == 0


def test_torchs_gru_resets_after_the_product(gru: Exported) -> None:
    """The default of ONNX is the other form, and a silent error of 0.1."""
    made = [node for node in nodes(gru) if node.op_type == "GRU"]
    assert [node.attributes["linear_before_reset"].as_int() for node in made] == [1, 1]


@pytest.mark.parametrize(("name", "order"), [("lstm", LSTM_GATES), ("gru", GRU_GATES)])
def test_gates_are_laid_out_as_onnx_wants_them(
    name: str, order: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    """The file holds permuted weights and biases; nothing permutes them when a session starts."""
    exported: Exported = request.getfixturevalue(name)
    node = next(node for node in nodes(exported) if node.op_type == name.upper())
    cell = exported.model.cell
    assert isinstance(cell, torch.nn.Module)
    for position, parameter in ((1, "weight_ih_l0"), (2, "weight_hh_l0")):
        value = node.inputs[position]
        assert value is not None
        assert value.const_value is not None
        blocks = cell.get_parameter(parameter).detach().numpy().reshape(len(order), HIDDEN, -1)
        np.testing.assert_array_equal(value.const_value.numpy()[0].reshape(blocks.shape), blocks[list(order)])
    bias = node.inputs[3]
    assert bias is not None
    assert bias.const_value is not None
    halves = [cell.get_parameter(f"bias_{half}_l0").detach().numpy() for half in ("ih", "hh")]
    expected = np.concatenate([half.reshape(len(order), HIDDEN)[list(order)].ravel() for half in halves])
    np.testing.assert_array_equal(bias.const_value.numpy()[0], expected)


def test_the_srus_loop_holds_six_operators_and_no_copy(sru: Exported) -> None:
    bodies = [node.attributes["body"].as_graph() for node in nodes(sru) if node.op_type == "Scan"]
    assert len(bodies) == 2
    for body in bodies:
        assert Counter(node.op_type for node in body) == {"Sub": 1, "Mul": 2, "Add": 2, "Sigmoid": 1}


def test_nothing_that_only_weights_decide_is_left_to_the_session(exported: Exported) -> None:
    """Every node depends on an input, or on the shape of one."""
    graph = exported.graph
    depends = set(graph.inputs)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                depends.update(attribute.as_graph().inputs)
        assert any(value in depends for value in node.inputs) or node.op_type == "Scan", node
        depends.update(node.outputs)


def test_every_initializer_is_read(exported: Exported) -> None:
    graph = exported.graph
    assert [name for name, value in graph.initializers.items() if not value.uses()] == []


def test_no_copy_and_no_training_node_is_left(exported: Exported) -> None:
    assert not {"Identity", "Dropout", "Constant"} & {node.op_type for node in nodes(exported)}


def test_batch_and_time_are_open_and_named(exported: Exported) -> None:
    graph = exported.graph
    shapes = {value.name: [str(axis) for axis in value.shape or ()] for value in (*graph.inputs, *graph.outputs)}
    assert shapes["tokens"] == ["batch", "time"]
    assert shapes["scores"] == ["batch", "time", "4"]
    assert shapes["lengths"] == ["batch_or_1"]
    assert all("batch" in axes or "batch_or_1" in axes for axes in shapes.values())


def test_names_are_the_users(exported: Exported) -> None:
    """Inputs, then lengths, then states; outputs first, then states."""
    graph, manifest = exported.graph, exported.report.manifest
    states = [f"cell.{name}" for name in exported.model.cell.state_names]  # type: ignore[union-attr]
    assert [value.name for value in graph.inputs] == ["tokens", "lengths", *states]
    assert [value.name for value in graph.outputs] == ["scores", *(f"{name}_out" for name in states)]
    assert [each.name for each in manifest.inputs] == ["tokens", "lengths"]


def test_the_checker_passes_in_full_and_notices_a_broken_file(exported: Exported, tmp_path: object) -> None:
    proto = exported.proto
    onnx.checker.check_model(proto, full_check=True)
    proto.graph.node[-1].input[0] = "nothing"
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto, full_check=True)


def test_the_manifest_is_in_the_file(exported: Exported) -> None:
    metadata = {each.key: each.value for each in exported.proto.metadata_props}
    assert Manifest.from_json(metadata[METADATA_KEY]) == exported.report.manifest
    (tokens, lengths), states = exported.report.manifest.inputs, exported.report.manifest.states
    assert tokens.range is not None
    assert (tokens.range.minimum, tokens.range.maximum) == (0, VOCABULARY - 1)
    assert lengths.optional
    assert [each.axes for each in states] == [(2, "batch", HIDDEN)] * len(states)
    assert exported.report.manifest.causal


def test_projections_of_a_vocabulary_are_read_from_tables(sru: Exported) -> None:
    """No product stands in front of the first loop, and the embedding itself is gone."""
    order = [node.op_type for node in sru.graph]
    assert "MatMul" not in order[: order.index("Scan")]
    assert order[: order.index("Scan")].count("Gather") >= 4
    assert "embedding.weight" not in sru.graph.initializers
    tables = sru.report.manifest.tables
    assert [(each.vocabulary, each.width, each.bytes) for each in tables] == [(VOCABULARY, HIDDEN, 460)] * 4
    assert {each.name for each in tables} <= set(sru.graph.initializers)


def test_without_tables_the_embedding_stays(sru_plain: Exported) -> None:
    assert "embedding.weight" in sru_plain.graph.initializers
    assert sru_plain.report.manifest.tables == ()


def test_tables_are_exact_and_rounded_once(sru: Exported) -> None:
    """Each row is within half a unit in the last place of the float64 product of that row."""
    model = sru.model
    embedding = model.embedding.weight.detach().double().numpy()  # type: ignore[union-attr]
    layer = next(module for name, module in model.named_modules() if name.endswith("0") and hasattr(module, "weight_c"))
    weight = layer.weight.detach().numpy().reshape(FEATURES, HIDDEN, -1)
    skip = embedding @ weight[..., 3].astype(np.float64)
    candidate = embedding @ weight[..., 0].astype(np.float64)
    held = [value.const_value.numpy() for name, value in sru.graph.initializers.items() if ".table_" in name]  # type: ignore[union-attr]
    for expected in (skip, candidate):
        assert any(np.array_equal(table, expected.astype(np.float32)) for table in held)
