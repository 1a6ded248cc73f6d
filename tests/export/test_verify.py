"""A file that is not what the module computes is found out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cellport.errors import EquivalenceError, ExportError, ManifestError
from cellport.export import inspect, verify
from cellport.export.verification import Grid
from cellport.manifest import METADATA_KEY, Manifest

from .conftest import Exported, export
from .models import Mean, Tokens, cell

SMALL = Grid(batches=(1, 2), steps=(1, 5), chunks=(None, 2))


def changed(exported: Exported, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of a file with something changed."""
    proto = exported.proto
    change(proto)
    path = folder / "changed.onnx"
    onnx.save(proto, path)
    return path


def nudge(name: str, by: float) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = next(each for each in proto.graph.initializer if each.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] += by
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def manifest(exported: Exported, **fields: object) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        import dataclasses

        made = dataclasses.replace(exported.report.manifest, **fields)  # type: ignore[arg-type]
        next(each for each in proto.metadata_props if each.key == METADATA_KEY).value = made.to_json()

    return change


def test_a_good_file_gives_figures(lstm: Exported) -> None:
    figures = verify(lstm.model, lstm.path, grid=SMALL)
    assert figures.cases == len(list(SMALL.cases(lstm.report.manifest))) == 24
    assert [each.name for each in figures.outputs] == ["scores", "cell.h_out", "cell.c_out"]
    assert all(0 < each.onnx_error < 1e-5 for each in figures.outputs)


@pytest.mark.parametrize("by", [1e-3, np.nan])
def test_one_changed_weight_is_found(lstm: Exported, tmp_path: Path, by: float) -> None:
    """The message names the output and the case."""
    path = changed(lstm, tmp_path, nudge("head.bias", by))
    with pytest.raises(EquivalenceError, match=r"output 'scores' is off by .* at batch \d+, \d+ steps"):
        verify(lstm.model, path, grid=SMALL)


def test_one_changed_row_of_a_table_is_found(sru: Exported, tmp_path: Path) -> None:
    with pytest.raises(EquivalenceError):
        verify(sru.model, changed(sru, tmp_path, nudge("embedding.table_0", 1e-2)))


def test_states_in_the_wrong_order_are_found(lstm: Exported, tmp_path: Path) -> None:
    def swap(proto: onnx.ModelProto) -> None:
        h, c = (next(each for each in proto.graph.output if each.name == name) for name in ("cell.h_out", "cell.c_out"))
        names = {"cell.h_out": "cell.c_out", "cell.c_out": "cell.h_out"}
        for node in proto.graph.node:
            node.output[:] = [names.get(name, name) for name in node.output]
        assert h.name != c.name

    with pytest.raises(EquivalenceError, match="cell"):
        verify(lstm.model, changed(lstm, tmp_path, swap), grid=SMALL)


def test_other_weights_are_found(gru: Exported) -> None:
    other = Tokens(cell("gru", num_layers=2, batch_first=True)).eval()
    with pytest.raises(EquivalenceError):
        verify(other, gru.path, grid=SMALL)


def test_a_model_that_claims_to_be_causal_is_found(tmp_path: Path) -> None:
    exported = export(tmp_path, Mean(cell("gru", batch_first=True)))
    verify(exported.model, exported.path, grid=SMALL)
    path = changed(exported, tmp_path, manifest(exported, causal=True))
    with pytest.raises(EquivalenceError, match="chunks of 2"):
        verify(exported.model, path, grid=SMALL)


def test_a_graph_whose_length_is_fixed_is_found(lstm: Exported, tmp_path: Path) -> None:
    """An output of the wrong shape is an error of its own."""

    def cut(proto: onnx.ModelProto) -> None:
        for name, values in (("from", [0]), ("to", [4]), ("axis", [1])):
            proto.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        for node in proto.graph.node:
            node.output[:] = ["all" if name == "scores" else name for name in node.output]
        proto.graph.node.append(onnx.helper.make_node("Slice", ["all", "from", "to", "axis"], ["scores"]))

    with pytest.raises(EquivalenceError, match=r"has shape .* PyTorch gives"):
        verify(lstm.model, changed(lstm, tmp_path, cut), grid=SMALL)


def test_another_model_is_refused_by_name(lstm: Exported, gru: Exported) -> None:
    with pytest.raises(ExportError, match="in training mode"):
        verify(Tokens(cell("lstm")).train(), lstm.path)

    class Other(Tokens):
        def __init__(self) -> None:
            super().__init__(cell("lstm", batch_first=True))
            self.renamed = self.cell
            del self.cell

        def forward(self, tokens):  # type: ignore[no-untyped-def]
            return self.renamed(self.embedding(tokens))[0]

    with pytest.raises(ExportError, match="made from a model with a cell 'cell'"):
        verify(Other().eval(), lstm.path)


def test_a_file_without_a_manifest_is_refused(lstm: Exported, tmp_path: Path) -> None:
    path = changed(lstm, tmp_path, lambda proto: proto.ClearField("metadata_props"))
    with pytest.raises(ManifestError, match=METADATA_KEY):
        verify(lstm.model, path)
    with pytest.raises(ManifestError, match=METADATA_KEY):
        inspect(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="cannot load"):
        inspect(tmp_path / "x.onnx")


def test_inspect_reads_what_the_report_says(lstm: Exported) -> None:
    assert inspect(lstm.path) == lstm.report.manifest
    assert isinstance(inspect(lstm.path), Manifest)


def test_the_grid_leaves_out_what_a_model_does_not_have(tmp_path: Path) -> None:
    exported = export(tmp_path, Tokens(cell("gru", batch_first=True)), state=None, lengths=None)
    assert len(list(Grid().cases(exported.report.manifest))) == 12
