"""Names and axes are the user's, whatever they are."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from cellport.errors import ExportError
from cellport.export import to_onnx

from .conftest import export
from .models import CLASSES, FEATURES, HIDDEN, Tokens, cell


@pytest.mark.parametrize("name", ["batch_size", "ones_1", "cell.h_shape", "embedding.weight"])
def test_a_name_that_the_exporter_would_use_itself_stays_the_users(name: str, tmp_path: Path) -> None:
    exported = export(tmp_path, Tokens(cell("gru", batch_first=True)), output_names=[name], verify=False)
    assert [each.input for each in exported.report.manifest.states] == ["cell.h"]
    assert [value.name for value in exported.session().get_outputs()] == [name, "cell.h_out"]


def test_a_users_input_of_the_name_lengths_does_not_clash_with_the_added_one(tmp_path: Path) -> None:
    model = Tokens(cell("gru", batch_first=True))
    exported = export(tmp_path, model, input_names=["lengths"], dynamic_shapes=SHAPES, verify=False)
    assert [value.name for value in exported.graph.inputs] == ["lengths", "lengths_", "cell.h"]


SHAPES = {"tokens": {0: "batch", 1: "time"}}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tokens"], "name 'tokens' is an input and an output"),
        (["cell.h"], ""),
        (["cell.h_out"], ""),
    ],
)
def test_a_name_serves_one_tensor_only(names: list[str], said: str, tmp_path: Path) -> None:
    """What the user named is refused; a state that would take the user's name stays inside."""
    model = Tokens(cell("gru", batch_first=True))
    if said:
        with pytest.raises(ExportError, match=said):
            export(tmp_path, model, output_names=names)
    else:
        exported = export(tmp_path, model, output_names=names)
        assert exported.report.manifest.states == ()
        assert any(note.startswith("states left inside:") and names[0] in note for note in exported.report.notes)


@pytest.mark.parametrize(
    ("axes", "cases"),
    [({0: "batch"}, 2), ({1: "time"}, 4), ({}, 2), ({0: "rows", 1: "steps"}, 2)],
)
def test_a_model_without_batch_or_time_is_exported_as_it_is(axes: dict[int, str], cases: int, tmp_path: Path) -> None:
    """Only axes of these two names have a meaning; the others are the model's own."""
    report = export(tmp_path, Tokens(cell("lstm", batch_first=True)), dynamic_shapes={"tokens": axes}).report
    assert report.manifest.states == ()
    assert report.manifest.lengths is None
    assert report.manifest.verification is not None
    assert report.manifest.verification.cases == cases
    assert report.manifest.outputs[0].axes == (axes.get(0, 2), axes.get(1, 3), CLASSES)


class Nested(nn.Module):
    """Takes a dict of tensors, one of them in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = cell("gru", batch_first=True)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        return self.cell(inputs["features"])[0] * inputs["others"][0]


BOTH = {0: "batch", 1: "time"}


@pytest.mark.parametrize(
    "shapes",
    [
        {"inputs": {"features": BOTH, "others": [BOTH]}},
        ({"features": BOTH, "others": [BOTH]},),
        {"inputs.features": BOTH, "inputs.others.0": BOTH},
        {"inputs": {"features": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}, "others": [BOTH]}},
    ],
)
def test_nested_arguments_are_named_after_their_paths(shapes: Any, tmp_path: Path) -> None:
    """And their axes can be named nested, by position, or by path."""
    args = ({"features": torch.randn(2, 3, FEATURES), "others": [torch.rand(2, 3, HIDDEN)]},)
    report = to_onnx(Nested().eval(), args, tmp_path / "m.onnx", dynamic_shapes=shapes, verify=False)
    assert [(each.name, each.axes) for each in report.manifest.inputs[:2]] == [
        ("inputs.features", ("batch", "time", FEATURES)),
        ("inputs.others.0", ("batch", "time", HIDDEN)),
    ]
    graph = ir.load(report.path).graph
    assert [value.name for value in graph.inputs] == ["inputs.features", "inputs.others.0", "lengths", "cell.h"]


class Reshapes(Tokens):
    """Fixes the time axis to 3 steps."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).reshape(-1, 3, CLASSES)


def test_an_axis_that_the_model_fixes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"axes \['batch', 'time'\], but the model does not run with the sizes"):
        export(tmp_path, Reshapes(cell("gru", batch_first=True)))


class StateAlone(nn.Module):
    """Only its state has a batch axis."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return x + h.sum(0), h + 1


def test_an_optional_state_needs_an_input_that_tells_the_batch(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "output_names": ["y", "h_out"],
        "dynamic_shapes": {"x": {0: "time"}, "h": {0: "batch"}},
        "state": {"h_out": "h"},
    }
    args = (torch.zeros(4, 3), torch.zeros(2, 3))
    with pytest.raises(ExportError, match=r"nothing tells the batch size .* state_inputs='required'"):
        to_onnx(StateAlone().eval(), args, tmp_path / "m.onnx", **options)
    report = to_onnx(StateAlone().eval(), args, tmp_path / "m.onnx", state_inputs="required", **options)
    assert report.manifest.states[0].required
