"""A model file makes the server read files of its own folder only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from cellport.errors import ModelLoadError
from cellport.serve import Engine, Model
from cellport.serve.external_data import check_external_data

from . import models

DATA = np.array(1, np.float32).tobytes()


def outside(location: str) -> onnx.TensorProto:
    """A scalar tensor whose data is in another file."""
    tensor = onnx.TensorProto(name="one", data_type=onnx.TensorProto.FLOAT, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def save(folder: Path, location: str) -> Path:
    """A model that adds a tensor from `location`."""
    path = models.save_affine(folder / "model.onnx")
    model = onnx.load(path)
    [one] = [each for each in model.graph.initializer if each.name == "one"]
    one.CopyFrom(outside(location))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("location", ["model.onnx.data", "weights/a.data", "linked.data"])
def test_data_in_the_models_folder_is_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights").mkdir()
    for name in ("model.onnx.data", "weights/a.data"):
        (tmp_path / name).write_bytes(DATA)
    (tmp_path / "linked.data").symlink_to("model.onnx.data")
    with Engine([Model.load(save(tmp_path, location))]) as engine:
        np.testing.assert_array_equal(engine.infer("model", {"x": np.ones((1, 3), np.float32)})["y"], [[3, 3, 3]])


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/hostname", "is an absolute path"),
        ("C:\\secret", "is an absolute path"),
        ("../secret", "goes up"),
        ("..\\secret", "goes up"),
        ("weights/../../secret", "goes up"),
        ("weights/../inside", "goes up"),
        ("link", "is a link out of the folder"),
        ("linked/secret", "is a link out of the folder"),
        ("missing", "is no file"),
        ("weights", "is no file"),
        ("", "is no file"),
        ("a\0b", "is no file"),
        ("n" * 5000, "is no file"),
        ("round", "is no file"),
        ("*/_ORT_MEM_ADDR_/*", "is no file"),  # where onnxruntime itself would read the offset as an address
    ],
)
def test_data_elsewhere_is_refused_by_the_tensors_name_and_location(tmp_path: Path, location: str, reason: str) -> None:
    folder = tmp_path / "model"
    (folder / "weights").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(DATA)
    (folder / "inside").write_bytes(DATA)
    (folder / "link").symlink_to("../secret")
    (folder / "linked").symlink_to("..")
    (folder / "round").symlink_to("round")
    with pytest.raises(ModelLoadError) as refusal:
        Model.load(save(folder, location))
    assert f"tensor 'one' has its data at {location!r}, which {reason}; accepted: a file in" in str(refusal.value)


def _sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.array([0])), dims=[1])


def _attribute(model: onnx.ModelProto) -> onnx.AttributeProto:
    return model.graph.node.add(op_type="Constant").attribute.add(name="value")


PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], object]] = {
    "an initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "a sparse initializer": lambda model, tensor: model.graph.sparse_initializer.append(_sparse(tensor)),
    "the indices of one": lambda model, tensor: model.graph.sparse_initializer.add(indices=tensor),
    "an attribute": lambda model, tensor: _attribute(model).t.CopyFrom(tensor),
    "an attribute's list": lambda model, tensor: _attribute(model).tensors.append(tensor),
    "a sparse attribute": lambda model, tensor: _attribute(model).sparse_tensor.CopyFrom(_sparse(tensor)),
    "a list of sparse ones": lambda model, tensor: _attribute(model).sparse_tensors.append(_sparse(tensor)),
    "a loop's body": lambda model, tensor: _attribute(model).g.initializer.append(tensor),
    "a graph in a list": lambda model, tensor: _attribute(model).graphs.add(initializer=[tensor]),
    "a body in a body": lambda model, tensor: (
        _attribute(model).g.node.add().attribute.add().g.initializer.append(tensor)
    ),
    "a function": lambda model, tensor: model.functions.add().node.add().attribute.add().t.CopyFrom(tensor),
    "a function's default": lambda model, tensor: model.functions.add().attribute_proto.add().t.CopyFrom(tensor),
    "a training graph": lambda model, tensor: model.training_info.add().algorithm.initializer.append(tensor),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_is_found_wherever_a_model_can_hold_one(tmp_path: Path, place: str) -> None:
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    PLACES[place](model, outside("../secret"))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelLoadError, match=r"'\.\./secret'"):
        check_external_data(tmp_path / "model.onnx")


def test_a_file_that_only_seems_to_name_a_location_is_refused_as_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("the location of nothing")
    with pytest.raises(ModelLoadError, match="it is not an ONNX file"):
        check_external_data(tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_text("")
    check_external_data(tmp_path / "x.onnx")
