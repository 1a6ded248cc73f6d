"""Smaller tables and weights through `to_onnx`: what the file, its manifest and the report say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cellport.errors import ExportError
from cellport.export import Report, to_onnx, verify
from cellport.export.runs import Runner
from cellport.export.runtime import OnnxRunner

from .models import VOCABULARY, Tokens, cell

SHAPES: dict[str, Any] = {"tokens": {0: "batch", 1: "time"}}
IDS = torch.arange(6).reshape(2, 3)
HIDDEN = 160
COUNTS = np.where(np.arange(VOCABULARY) < 7, 5, 0)


def export(kind: str, path: Path, **options: Any) -> tuple[torch.nn.Module, Report]:
    torch.manual_seed(0)
    model = Tokens(cell(kind, features=96, hidden=HIDDEN, batch_first=True), features=96).eval()
    model.embedding = torch.nn.Embedding(VOCABULARY * 100, 96).eval()
    said = {"dynamic_shapes": SHAPES, "lowering": "scan", "lookup": "auto", **options}
    return model, to_onnx(model, (IDS,), path, **said)


def mean(run: Runner) -> float:
    return float(run({"tokens": np.arange(40).reshape(4, 10)})["output"].mean())


# Values are a few units, and a few rounding steps of the type (2⁻¹¹ and 1/254 of a value) add up in an output.
@pytest.mark.parametrize(("tables", "width", "bound"), [("float16", 2, 16 / 2**11), ("int8", 1, 16 / 254)])
@pytest.mark.parametrize("kind", ["lstm", "sru-v2"])
def test_tables_take_fewer_bytes_and_are_measured(
    kind: str, tables: Any, width: int, bound: float, tmp_path: Path
) -> None:
    model, report = export(kind, tmp_path / "m.onnx", tables=tables, evaluate=mean)
    assert report.manifest.source is not None
    assert report.manifest.source.tables == tables
    assert not report.exact
    rows = VOCABULARY * 100
    for table in report.manifest.tables:
        scales = 4 * rows if tables == "int8" else 0
        assert (table.dtype, table.bytes) == (tables, rows * table.width * width + scales)
    assert report.manifest.verification is not None
    assert max(each.onnx_error for each in report.manifest.verification.outputs) < bound
    assert report.metric is not None
    assert 0 < abs(report.metric[0] - report.metric[1]) < bound
    assert any("than float32, on this machine" in note for note in report.notes)
    assert "measured against PyTorch" in str(report)
    verify(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn-tanh", "sru-v2"])
def test_weights_take_fewer_bytes_and_are_measured(kind: str, weights: Any, tmp_path: Path) -> None:
    _, wide = export(kind, tmp_path / "wide.onnx", lookup=False, verify=False)
    _, report = export(kind, tmp_path / "m.onnx", lookup=False, weights=weights)
    assert report.bytes < wide.bytes
    assert report.manifest.source is not None
    assert report.manifest.source.weights == weights
    assert report.manifest.verification is not None
    assert max(each.onnx_error for each in report.manifest.verification.outputs) < 0.1


def test_int8_products_may_have_ranges_of_a_calibration_set(tmp_path: Path) -> None:
    """States and lengths of the examples may be left out; what was fixed is in the notes."""
    rng = np.random.default_rng(0)
    examples = [{"tokens": rng.integers(0, VOCABULARY * 100, (4, 20))} for _ in range(5)]
    options = {"weights": "int8", "lookup": False, "evaluate": mean}
    _, free = export("gru", tmp_path / "free.onnx", **options)
    _, fixed = export("gru", tmp_path / "fixed.onnx", **options, calibration=examples)
    assert any("with a fixed range" in note for note in fixed.notes)
    for report in (free, fixed):
        assert report.metric is not None
        assert abs(report.metric[0] - report.metric[1]) < 0.1
    with pytest.raises(ExportError, match="lacks the input 'tokens'"):
        export("gru", tmp_path / "m.onnx", weights="int8", calibration=[{}])
    with pytest.raises(ExportError, match="with weights='int8' only"):
        export("gru", tmp_path / "m.onnx", calibration=examples)


def test_tokens_that_never_occur_share_a_row_and_the_others_are_exact(tmp_path: Path) -> None:
    counts = np.tile(COUNTS, 100)
    _, wide = export("gru", tmp_path / "wide.onnx", verify=False)
    _, report = export("gru", tmp_path / "m.onnx", counts={"tokens": counts})
    assert report.manifest.source is not None
    assert report.manifest.source.pruned == ("tokens",)
    assert sum(each.bytes for each in report.manifest.tables) < 0.4 * sum(each.bytes for each in wide.manifest.tables)
    (spec,) = (each for each in report.manifest.inputs if each.name == "tokens")
    assert spec.range is not None
    assert spec.range.maximum == VOCABULARY * 100 - 1
    ids = np.flatnonzero(counts)[:60].reshape(3, 20)
    found, before = (OnnxRunner(tmp_path / name)({"tokens": ids})["output"] for name in ("m.onnx", "wide.onnx"))
    np.testing.assert_array_equal(found, before)


def test_counts_may_come_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.tile(COUNTS, 100))
    _, report = export("gru", tmp_path / "m.onnx", counts={"tokens": tmp_path / "counts.npy"})
    assert any("tokens of input 'tokens' do not occur" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int4"}, "weights is 'int4'; accepted: 'float32', 'float16', 'int8'"),
        ({"tables": "int4"}, "tables is 'int4'; accepted: 'float32', 'float16', 'int8'"),
        ({"tables": "int8", "table_block": 0}, "table_block is 0; accepted: a number of columns, at least 1"),
        ({"counts": [1, 2]}, "counts is .* accepted: a mapping from input name"),
        ({"counts": {"words": np.ones(3, int)}}, "counts are given for input 'words'"),
        ({"counts": {"tokens": np.ones(3, int)}}, "are for 3 tokens"),
        ({"weights": "int8", "calibration": ["x"]}, "calibration holds 'x'; accepted: mappings from"),
        ({"weights": "int8", "calibration": [{"tokens": IDS.numpy(), "more": 1}]}, "accepted: mappings from"),
        (
            {"weights": "int8", "calibration": [{"tokens": IDS.numpy()[0]}]},
            r"\[3\]; accepted: int64 \['batch', 'time'\]",
        ),
        ({"weights": "int8", "calibration": [{"tokens": IDS.numpy()[:0]}]}, r"\[0, 3\]; accepted: int64"),
        ({"weights": "int8", "calibration": [{"tokens": np.ones((2, 3))}]}, "as float64"),
        ({"weights": "int8", "calibration": [{"tokens": np.full((2, 3), 2300)}]}, "2300; accepted: 0 to 2299"),
        (
            {"weights": "int8", "calibration": [{"tokens": IDS.numpy(), "lengths": np.ones(3, int)}]},
            "3 along 'batch' in 'lengths' and 2 in another",
        ),
    ],
)
def test_wrong_use_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export("gru", tmp_path / "m.onnx", **options)


@pytest.mark.parametrize("options", [{"weights": "int8"}, {"weights": "float16"}, {"tables": "int8"}])
def test_what_is_too_small_to_gain_stays_exact_and_says_so(options: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is called int8 that is not, and no speed is compared with itself."""
    model = Tokens(cell("gru", batch_first=True)).eval()
    report = to_onnx(model, (IDS,), tmp_path / "m.onnx", dynamic_shapes=SHAPES, lowering="scan", **options)
    assert any("nothing in this graph is large enough to gain by it" in note for note in report.notes)
    assert not any("than float32, on this machine" in note for note in report.notes)
