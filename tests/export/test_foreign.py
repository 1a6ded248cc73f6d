"""ONNX files that cellport did not export."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cellport.cli import main
from cellport.errors import EquivalenceError, ExportError
from cellport.export import inspect
from cellport.export.foreign import check_chunks, draft, side_car
from cellport.manifest import Manifest


class Recogniser(nn.Module):
    """What a user exported with torch.onnx.export: features, lengths or not, and the state of an LSTM."""

    def __init__(self, *, leaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head, self.leaks = nn.LSTM(4, 3, 2), nn.Linear(3, 5), leaks

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (h, c) = self.lstm(x, (h, c))
        scores = self.head(output)
        return (scores - scores.mean(0) if self.leaks else scores), h, c


NAMES = [
    (("features", "h0", "c0"), ("scores", "hn", "cn")),
    (("input", "hidden_in", "cell_in"), ("output", "hidden_out", "cell_out")),
    (("audio", "past.h", "past.c"), ("logits", "present.h", "present.c")),
    (("x", "stateH", "stateC"), ("y", "newStateH", "newStateC")),
]


def exported(
    folder: Path, names: Any = NAMES[0], axes: tuple[str | None, str | None] = ("time", "batch"), **options: Any
) -> Path:
    path = folder / "foreign.onnx"
    inputs, outputs = names
    time, batch = axes
    sequence = {0: time, 1: batch} if time and batch else [0, 1]
    state = {1: batch} if batch else [1]
    dynamic = dict.fromkeys((inputs[0], outputs[0]), sequence)
    dynamic |= dict.fromkeys((*inputs[1:], *outputs[1:]), state)
    example = (torch.randn(3, 2, 4), torch.zeros(2, 2, 3), torch.zeros(2, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Recogniser(**options).eval(),
            example,
            str(path),
            dynamo=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=dynamic,
            opset_version=20,
        )
    return path


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0][1])
def test_states_are_found_by_name_and_shape(names: Any, tmp_path: Path) -> None:
    made = draft(exported(tmp_path, names))
    inputs, outputs = names
    assert [(each.input, each.output) for each in made.manifest.states] == list(
        zip(inputs[1:], outputs[1:], strict=True)
    )
    assert {each.axes for each in made.manifest.states} == {(2, "batch", 3)}
    assert [each.axes for each in made.manifest.inputs] == [("time", "batch", 4)]
    assert made.manifest.outputs[0].chunking == "concatenate"
    assert not made.manifest.causal
    assert any(f"{outputs[1]!r} is taken for the next value of {inputs[1]!r}" in reason for reason in made.reasons)


def test_axes_are_found_by_words_in_their_names(tmp_path: Path) -> None:
    made = draft(exported(tmp_path, axes=("n_frames", "batch_size")))
    assert made.manifest.inputs[0].axes == ("time", "batch", 4)
    assert "the axis 'n_frames' is taken for 'time'" in made.reasons


def test_the_axis_of_a_state_that_changes_is_the_batch(tmp_path: Path) -> None:
    """Where names say nothing."""
    made = draft(exported(tmp_path, axes=("alpha", "beta")))
    assert made.manifest.inputs[0].axes == ("time", "batch", 4)
    assert made.manifest.states[0].axes == (2, "batch", 3)


def test_a_run_in_chunks_is_compared_with_one_pass(tmp_path: Path) -> None:
    path = exported(tmp_path)
    figures = check_chunks(path, draft(path).manifest)
    assert figures.cases == 15
    assert set(figures.differences) == {"scores", "hn", "cn"}
    assert max(figures.differences.values()) < 1e-5


def test_a_model_that_looks_over_the_whole_time_axis_is_found_out(tmp_path: Path) -> None:
    path = exported(tmp_path, leaks=True)
    with pytest.raises(EquivalenceError, match=r"output 'scores' differs by .* at batch"):
        check_chunks(path, draft(path).manifest)


def test_a_swapped_pair_of_states_is_found_out(tmp_path: Path) -> None:
    """A guess that is wrong does not pass the check."""
    path = exported(tmp_path, (("x", "a", "b"), ("y", "b_out", "a_out")))
    manifest = draft(path).manifest
    assert [(each.input, each.output) for each in manifest.states] == [("a", "a_out"), ("b", "b_out")]
    with pytest.raises(EquivalenceError):
        check_chunks(path, manifest)


def test_the_command_drafts_shows_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(tmp_path)
    assert main(["inspect", "--init", str(path)]) == 0
    said = capsys.readouterr().out
    assert "This is a guess" in said
    assert "'hn' is taken for the next value of 'h0'" in said
    assert not inspect(path).causal
    assert main(["inspect", "--init", str(path)]) == 1
    assert "--force writes over it" in capsys.readouterr().err
    assert main(["verify", str(path)]) == 0
    assert "computes the same in chunks as in one pass" in capsys.readouterr().out
    assert Manifest.from_file(side_car(path)).causal
    assert main(["inspect", "--init", "--force", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["reasons"]


def test_a_manifest_without_states_or_time_cannot_be_checked(tmp_path: Path) -> None:
    path = exported(tmp_path)
    manifest = draft(path).manifest
    bare = Manifest(inputs=manifest.inputs, outputs=manifest.outputs)
    with pytest.raises(ExportError, match="names no state"):
        check_chunks(path, bare)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot read"):
        draft(tmp_path / "m.onnx")
