"""What a forward may return: its cell's own pair, one tensor twice, an input, a weight, one scalar, a dict."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cellport.cells import SequenceCell
from cellport.export import to_onnx

from .conftest import export
from .models import CLASSES, FEATURES, Tokens, cell


@pytest.mark.parametrize("kind", ["gru", "lstm", "sru-v2"])
def test_a_bare_cell_is_a_model(kind: str, tmp_path: Path) -> None:
    """Its final state is a result of its own and a state too."""
    made: SequenceCell = cell(kind, num_layers=2)
    names = list(made.state_names)
    report = to_onnx(
        made.eval(),
        (torch.randn(3, 2, FEATURES),),
        tmp_path / "m.onnx",
        output_names=["output", *(f"last_{name}" for name in names)],
        dynamic_shapes={"input": {0: "time", 1: "batch"}},
    )
    assert [(each.input, each.output) for each in report.manifest.states] == [(name, f"{name}_out") for name in names]
    assert [each.chunking for each in report.manifest.outputs] == ["concatenate"] + ["last"] * len(names)
    assert report.manifest.causal


class Returns(Tokens):
    """A tagger that returns something unusual."""

    def __init__(self, what: str) -> None:
        super().__init__(cell("gru", batch_first=True))
        self.what = what

    def forward(self, tokens: Tensor) -> Any:
        scores = super().forward(tokens)
        return {
            "twice": (scores, scores),
            "equal": (scores.exp(), scores.exp()),
            "input": (scores, tokens),
            "weight": (scores, self.head.bias),
            "classes": (scores, scores.argmax(-1)),
            "dict": {"scores": scores, "best": scores.amax(-1)},
            "nothing": (scores, None, scores[:, -1]),
        }[self.what]


@pytest.mark.parametrize(
    ("what", "dtype", "axes"),
    [
        ("twice", "float32", ("batch", "time", CLASSES)),
        ("equal", "float32", ("batch", "time", CLASSES)),
        ("input", "int64", ("batch", "time")),
        ("weight", "float32", (CLASSES,)),
        ("classes", "int64", ("batch", "time")),
        ("dict", "float32", ("batch", "time")),
        ("nothing", "float32", ("batch", CLASSES)),
    ],
)
def test_a_second_result_of_any_kind_has_a_name_of_its_own(
    what: str, dtype: str, axes: tuple[int | str, ...], tmp_path: Path
) -> None:
    report = export(tmp_path, Returns(what), output_names=["first", "second"], lengths=None).report
    second = report.manifest.outputs[1]
    assert (second.name, second.dtype, second.axes) == ("second", dtype, axes)
    assert report.manifest.causal


class Cellless(nn.Module):
    """A model without any cell."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


def test_a_model_without_a_cell_is_exported_as_it_is(tmp_path: Path) -> None:
    report = to_onnx(
        Cellless().eval(), (torch.randn(2, FEATURES),), tmp_path / "m.onnx", dynamic_shapes={"features": {0: "batch"}}
    )
    assert (report.manifest.states, report.manifest.lengths, report.manifest.causal) == ((), None, False)
