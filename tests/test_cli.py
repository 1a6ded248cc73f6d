"""The commands export, verify and inspect, as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cellport.cli import main

FACTORY = """
import torch
from torch import nn
from cellport.cells import GRU
from cellport.export import ExportSpec

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.cell = nn.Embedding(11, 8), GRU(8, 32, batch_first=True)

    def forward(self, tokens):
        return self.cell(self.embedding(tokens))[0]

def factory():
    shapes = {"tokens": {0: "batch", 1: "time"}}
    return ExportSpec(Net(), (torch.zeros(2, 3, dtype=torch.long),), output_names=["y"], dynamic_shapes=shapes)

def nothing():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's module and two files of weights, as the current one."""
    (tmp_path / "made_for_the_command_line.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from made_for_the_command_line import Net  # type: ignore[import-not-found]

    torch.manual_seed(1)
    weights = Net().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save(weights, tmp_path / "weights.pt")
    return tmp_path


MODEL = "made_for_the_command_line:factory"


@pytest.mark.parametrize("weights", ["weights.safetensors", "weights.pt"])
def test_a_model_is_exported_verified_and_inspected(
    weights: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", MODEL, "--weights", weights, "--out", "made/m.onnx"]) == 0
    assert "equal to PyTorch in 32 cases" in capsys.readouterr().out
    assert main(["verify", MODEL, "made/m.onnx", "--weights", weights, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verification"]["cases"] == 108
    assert len(found["cases"]) == 2 * 108
    assert main(["inspect", "made/m.onnx"]) == 0
    shown = capsys.readouterr().out
    for part in ("[batch, time]", "0 to 10", "cell.h_out", "causal", "equal to PyTorch"):
        assert part in shown
    assert main(["inspect", "made/m.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["states"][0]["input"] == "cell.h"


def test_other_weights_than_the_files_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", MODEL, "--weights", "weights.pt", "--out", "m.onnx", "--json", "--no-verify"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["verification"] is None
    assert main(["verify", MODEL, "m.onnx"]) == 1
    assert "is off by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "nowhere:f", "--out", "m.onnx"], "cannot find the factory 'nowhere:f'"),
        (["export", "made_for_the_command_line:f", "--out", "m.onnx"], "cannot find the factory"),
        (["export", "made_for_the_command_line:nothing", "--out", "m.onnx"], "returned a int; accepted: an ExportSpec"),
        (["export", MODEL, "--out", "m.onnx", "--weights", "none.pt"], "there is no weights file 'none.pt'"),
        (["export", MODEL, "--out", "m.onnx", "--weights", "made_for_the_command_line.py"], "cannot load the weights"),
        (["inspect", "none.onnx"], "cannot load 'none.onnx'"),
    ],
)
def test_a_failure_says_why(words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["export"],
        ["inspect"],
        ["export", MODEL],
        ["export", "nowhere", "--out", "m.onnx"],
        ["export", MODEL, "--out", "m.onnx", "--opset", "3"],
        ["export", MODEL, "--out", "m.onnx", "--tables", "int4"],
    ],
)
def test_bad_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: cellport" in capsys.readouterr().err


def test_smaller_tables_and_counts_are_options(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", MODEL, "--out", str(tmp_path / "m.onnx"), "--tables", "int8", "--lowering", "scan"]
    assert main([*words, "--weight-type", "float16"]) == 0
    assert "weights float16, tables int8" in capsys.readouterr().out
    assert main([*words, "--counts", "tokens", "none.npy"]) == 1
    assert "none.npy" in capsys.readouterr().err


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("cellport")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    for name in ("export", "verify", "inspect", "serve", "infer"):
        assert name in shown
