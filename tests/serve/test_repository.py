"""Finding and loading models."""

import dataclasses
from pathlib import Path
from typing import Any

import onnx
import pytest

from cellport.errors import ModelLoadError, ModelNotFoundError
from cellport.manifest import METADATA_KEY, InputSpec, Manifest
from cellport.serve import Model
from cellport.serve.repository import Repository, find_files

from . import models


def found(path: Path) -> list[tuple[str, str]]:
    return [(each.name, each.version) for each in find_files(path)]


def test_a_file_is_named_after_its_stem_and_a_model_onnx_after_its_folder(tmp_path: Path) -> None:
    assert found(models.save_affine(tmp_path / "tagger.onnx")) == [("tagger", "1")]
    assert found(models.save_affine(tmp_path / "plain" / "model.onnx")) == [("plain", "1")]
    assert found(models.save_affine(tmp_path / "deep" / "12" / "model.onnx")) == [("deep", "12")]


def test_a_folder_holds_models_of_numbered_versions_and_the_highest_is_the_newest(tmp_path: Path) -> None:
    for version in ("2", "10", "old"):
        models.save_affine(tmp_path / "a" / version / "model.onnx")
    (tmp_path / "a" / "3").mkdir()
    (tmp_path / "notes").mkdir()
    assert sorted(found(tmp_path)) == [("a", "10"), ("a", "2")]
    assert sorted(found(tmp_path / "a")) == [("a", "10"), ("a", "2")]
    repository = Repository.load(tmp_path)
    assert repository.versions("a") == ["2", "10"]
    assert repository.get("a").version == "10"
    assert repository.get("a", "2").version == "2"
    with pytest.raises(ModelNotFoundError, match="model 'b' is not served; accepted: 'a'"):
        repository.get("b")


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"holds no model; accepted: <name>/<version>/model\.onnx"):
        find_files(tmp_path)


def test_the_same_name_and_version_twice_is_refused(folder: Path) -> None:
    model = Model.load(folder / "affine" / "1" / "model.onnx", name="a")
    with pytest.raises(ModelLoadError, match="model 'a' has version 1 twice"):
        Repository([model, model])


def test_a_file_that_is_no_onnx_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("no model")
    with pytest.raises(ModelLoadError, match=r"x\.onnx cannot be loaded"):
        Model.load(tmp_path / "x.onnx")


def test_a_side_car_manifest_makes_a_foreign_file_stateful(tmp_path: Path) -> None:
    path = models.save_steps(tmp_path / "sums.onnx")
    foreign = onnx.load(path)
    manifest = next(each.value for each in foreign.metadata_props if each.key == METADATA_KEY)
    del foreign.metadata_props[:]
    onnx.save(foreign, path)
    assert Model.load(path).manifest.states == ()
    (tmp_path / "manifest.json").write_text(manifest)
    assert [each.input for each in Model.load(path).manifest.states] == ["total"]


def _edit(manifest: Manifest, **changes: Any) -> Manifest:
    tokens = dataclasses.replace(manifest.inputs[0], **changes)
    return dataclasses.replace(manifest, inputs=(tokens, *manifest.inputs[1:]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: _edit(m, name="words"), "the manifest has input 'words', the graph has"),
        (lambda m: _edit(m, dtype="int32"), "says input 'tokens' is int32, the graph says int64"),
        (lambda m: _edit(m, axes=("time",)), "axes ['time'], the graph says ['batch', 'time']"),
        (lambda m: _edit(m, optional=True), "'tokens' is optional, the graph has no default for it"),
        (lambda m: dataclasses.replace(m, inputs=m.inputs[1:]), "has input 'tokens', which the manifest does not"),
        (
            lambda m: dataclasses.replace(
                m, inputs=(*m.inputs, InputSpec(name="y", dtype="int8", axes=(), role="static"))
            ),
            "the manifest has input 'y'",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_the_graph_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    path = models.save_lstm(tmp_path / "lstm.onnx")
    model = onnx.load(path)
    for each in model.metadata_props:
        each.value = edit(Manifest.from_json(each.value)).to_json()
    onnx.save(model, path)
    with pytest.raises(ModelLoadError) as refusal:
        Model.load(path, name="lstm")
    assert message in str(refusal.value)


def test_a_broken_manifest_is_refused_with_the_files_path(tmp_path: Path) -> None:
    path = models.save_lstm(tmp_path / "lstm.onnx")
    model = onnx.load(path)
    model.metadata_props[0].value = '{"version": "9.0"}'
    onnx.save(model, path)
    with pytest.raises(ModelLoadError, match=r"lstm\.onnx has a manifest that cannot be used.*'9\.0'"):
        Model.load(path)
