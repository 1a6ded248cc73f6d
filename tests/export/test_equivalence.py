"""onnxruntime equals PyTorch, by the rule of the float64 truth, for every cell and way of exporting it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cellport.export import to_onnx, verify
from cellport.export.verification import Grid

from .models import MinGRU, MinState, Pooled, Tokens, Two, cell

SAMPLED = Grid(batches=(1, 2, 7), steps=(1, 13), chunks=(None, 5, 1))


def test_a_larger_classifier_computes_what_pytorch_computes(tmp_path: Path) -> None:
    """Layer normalisation folds into the tables, dropout leaves no node, the mean is over valid steps."""
    torch.manual_seed(0)
    model = Pooled().eval()
    args = (torch.arange(6).reshape(2, 3), torch.tensor([3, 1]))
    shapes = {"tokens": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}
    report = to_onnx(model, args, tmp_path / "m.onnx", dynamic_shapes=shapes, lookup=True)
    assert len(report.manifest.tables) == 8
    assert not report.manifest.causal
    verify(model, tmp_path / "m.onnx", grid=SAMPLED)


def test_states_of_two_cells_are_named_after_their_paths(tmp_path: Path) -> None:
    model = Two().eval()
    shapes = {"tokens": {0: "time", 1: "batch"}}
    report = to_onnx(model, (torch.zeros(2, 2, dtype=torch.long),), tmp_path / "m.onnx", dynamic_shapes=shapes)
    pairs = [(each.input, each.output) for each in report.manifest.states]
    assert pairs == [(f"encoder.{name}", f"encoder.{name}_out") for name in ("a.h", "b.h", "b.c")]
    assert report.manifest.causal
    verify(model, tmp_path / "m.onnx", grid=SAMPLED)


def test_a_cell_of_the_users_own_exports_with_its_state_and_its_tables(tmp_path: Path) -> None:
    model = MinGRU().eval()
    args = (torch.arange(6).reshape(2, 3), MinState(torch.zeros(2, 5)), torch.tensor([3, 1]))
    report = to_onnx(
        model,
        args,
        tmp_path / "m.onnx",
        output_names=["output", "h_out"],
        input_names=["tokens", "h", "lengths"],
        dynamic_shapes={"tokens": {0: "batch", 1: "time"}, "h": {0: "batch"}, "lengths": {0: "batch"}},
        state={"h_out": "h"},
        lookup=True,
    )
    assert report.manifest.causal
    assert len(report.manifest.tables) == 2
    verify(model, tmp_path / "m.onnx", args=args, grid=SAMPLED)


@pytest.mark.parametrize(
    ("kind", "state", "lengths"), [("gru", None, "auto"), ("sru-v2", "auto", None), ("gru", None, None)]
)
def test_a_file_without_states_or_lengths_computes_the_same(
    kind: str, state: Any, lengths: Any, tmp_path: Path
) -> None:
    model = Tokens(cell(kind, batch_first=True)).eval()
    shapes = {"tokens": {0: "batch", 1: "time"}}
    options = {"state": state, "lengths": lengths, "dynamic_shapes": shapes}
    report = to_onnx(model, (torch.arange(6).reshape(2, 3),), tmp_path / "m.onnx", verify=False, **options)
    assert bool(report.manifest.states) == report.manifest.causal == (state is not None)
    assert (report.manifest.lengths is not None) == (lengths is not None)
    verify(model, tmp_path / "m.onnx", grid=SAMPLED)
