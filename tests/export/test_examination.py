"""The whole proof of a file: case by case, step by step, as a table, as JSON and as plots."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cellport.errors import EquivalenceError
from cellport.export.examination import plot_variants
from cellport.export.prove import examine
from cellport.export.verification import QUICK, Case, CaseFigures

from .conftest import Exported


def test_every_case_and_step_has_its_figures(sru: Exported, tmp_path: Path) -> None:
    found = examine(sru.model, sru.path, grid=QUICK, steps=40)
    outputs = {each.name for each in found.verification.outputs}
    assert len(found.cases) == found.verification.cases * len(outputs)
    for each in found.verification.outputs:
        assert each.onnx_error == max(case.error for case in found.cases if case.output == each.name)
    assert [(each.output, len(each.torch), len(each.onnx)) for each in found.steps] == [("scores", 40, 40)]
    assert 0 < max(found.steps[0].onnx) < 1e-5
    assert found.worst(2)[0].share >= found.worst(2)[1].share
    assert "closest cases" in found.table()
    assert len(json.loads(found.to_json())["cases"]) == len(found.cases)
    drawn = [*found.plot(tmp_path), plot_variants([("float32", 2.0, 1.0), ("int8", 0.5, 0.8)], tmp_path / "v.png")]
    assert [each.name for each in drawn] == ["error_by_step.png", "error_by_case.png", "v.png"]
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in drawn)


def test_a_case_is_measured_by_its_share_of_what_is_allowed() -> None:
    case = Case(1, 1, False, False, None, 0)
    figures = CaseFigures(case, "y", 2e-6, 1e-6, 4e-6)
    assert figures.share == 0.5
    assert replace(figures, bound=0.0).share == np.inf
    assert replace(figures, bound=0.0, error=0.0).share == 0.0


def test_a_file_that_is_wrong_is_refused_as_ever(gru: Exported) -> None:
    """The figures are no way around the rule."""
    other = type(gru.model)(gru.model.cell).eval()
    with pytest.raises(EquivalenceError):
        examine(other, gru.path, grid=QUICK)
