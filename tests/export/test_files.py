"""The file that an export leaves, or does not leave."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cellport.errors import EquivalenceError, ExportError
from cellport.export import graphing, inspect, verify

from .conftest import export
from .models import Tokens, cell
from .test_verify import SMALL


class Differs(Tokens):
    """Computes something else when it is exported, so that its file cannot equal it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + (0.001 if torch.compiler.is_exporting() else 0)


def test_a_file_that_is_not_the_model_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(EquivalenceError, match="output 'output' is off by"):
        export(tmp_path, Differs(cell("gru", batch_first=True)))
    assert list(tmp_path.iterdir()) == []


class Convolved(Tokens):
    """A convolution over time, which onnxruntime does not have for float64."""

    def __init__(self) -> None:
        super().__init__(cell("gru", batch_first=True))
        self.convolution = nn.Conv1d(4, 2, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.convolution(super().forward(tokens).transpose(1, 2)).transpose(1, 2)


def test_a_file_that_onnxruntime_cannot_load_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"onnxruntime cannot load .*implementation for Conv"):
        export(tmp_path, Convolved().double(), lowering="scan")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_a_large_model_stand_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of more than two gigabytes would not be protobuf; the limit is one."""
    monkeypatch.setattr(graphing, "_EXTERNAL_DATA_FROM", 0)
    exported = export(tmp_path, Tokens(cell("gru", batch_first=True)))
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert exported.report.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    onnx.checker.check_model(str(exported.path), full_check=True)
    verify(exported.model, exported.path, grid=SMALL)
    folder = tmp_path / "again"
    with pytest.raises(EquivalenceError):
        export(folder, Differs(cell("gru", batch_first=True)))
    assert list(folder.iterdir()) == []


def test_a_file_is_written_without_being_compared_where_that_is_wanted(tmp_path: Path) -> None:
    exported = export(tmp_path / "new" / "folder", Differs(cell("gru", batch_first=True)), verify=False)
    assert inspect(exported.path).verification is None
    assert "not verified" in str(exported.report)


def test_the_report_says_what_was_made(tmp_path: Path) -> None:
    report = export(tmp_path, Tokens(cell("gru", batch_first=True))).report
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{report.path}: 0.0 MiB, {report.nodes} nodes")
    assert "  states lifted: a run in chunks proved equal to one pass, over 150 steps" in lines
    assert "  equal to PyTorch in 32 cases:" in lines
    assert [line.split()[0] for line in lines[-2:]] == ["output:", "cell.h_out:"]
    assert np.isfinite(report.seconds)
