"""Figures of smaller files are those of what was run."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cellport.errors import ExportError
from cellport.export.precision import Variant, compare_variants, largest_errors, measure, size_of
from cellport.export.runs import Arrays

FEEDS = {1: {"x": np.array([[1.0, 2.0]], np.float32)}, 2: {"x": np.array([[1.0, 2.0], [-4.0, 0.0]], np.float32)}}


class Clock:
    """Seconds that pass only where a runner takes them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def runner(self, *seconds: float) -> Any:
        """A model that takes these seconds in turn, after one run that takes long."""
        waiting = [100.0, *seconds]

        def run(feeds: Arrays) -> Arrays:
            self.now += waiting.pop(0)
            return feeds

        return run


def test_speeds_are_medians_of_ratios_and_the_first_run_does_not_count() -> None:
    """Times of one round are compared: the medians of 2, 8, 50 and 3, 1, 25 have another ratio."""
    clock = Clock()
    models = {"float32": clock.runner(2, 8, 50), "int8": clock.runner(3, 1, 25)}
    assert measure(models, {1: {}}, rounds=3, clock=clock) == {"float32": {1: 1.0}, "int8": {1: 2.0}}


def test_rounds_are_interleaved_and_every_other_one_goes_backwards() -> None:
    order: list[str] = []

    def runner(name: str) -> Any:
        return lambda feeds: order.append(name) or feeds

    measure({"a": runner("a"), "b": runner("b")}, {1: {}}, rounds=3, clock=iter(range(99)).__next__)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


def test_notes_say_where_a_file_is_slower() -> None:
    variant = Variant("int8", 1, {}, {}, None, {1: 1 / 1.3, 16: 2.0}, "float32")
    assert variant.notes == [
        "int8 is 1.30 times slower than float32 at batch 1 here",
        "int8 is 2.00 times faster than float32 at batch 16 here",
    ]
    assert Variant("float32", 1, {}, {}, None, {1: 1.0}, "float32").notes == []


def test_errors_are_the_largest_of_all_runs() -> None:
    truths = [({"x": np.array([1.0])}, {"y": np.array([1.5])}), ({"x": np.array([-4.0])}, {"y": np.array([-4.25])})]
    assert largest_errors(lambda feeds: {"y": feeds["x"], "other": feeds["x"]}, truths) == {"y": 0.5}


def model(path: Path, factor: float) -> Path:
    text = '<ir_version: 10, opset_import: ["" : 20]> agraph (float[b, 2] x) => (float[b, 2] y)'
    onnx.save(onnx.parser.parse_model(f"{text} <float f = {{{factor}}}> {{ y = Mul(x, f) }}"), path)
    return path


def test_files_are_compared_with_a_float64_truth(tmp_path: Path) -> None:
    files = {"exact": model(tmp_path / "a.onnx", 3.0), "off": model(tmp_path / "b.onnx", 3.25)}

    def truth(feeds: Arrays) -> Arrays:
        assert feeds["x"].dtype == np.float64
        return {"y": 3 * feeds["x"]}

    exact, off = compare_variants(files, truth, FEEDS, metric=lambda run: run(FEEDS[1])["y"].sum(), rounds=2)
    assert (exact.errors, off.errors) == ({"y": 0.0}, {"y": 1.0})
    assert exact.largest == {"y": 12.0}
    assert (exact.metric, off.metric) == (9.0, 9.75)
    assert exact.speed == {1: 1.0, 2: 1.0}
    assert set(off.speed) == {1, 2}
    assert off.bytes == files["off"].stat().st_size
    assert str(off).startswith("off: 0.00 MiB; error y 1.0e+00 of 1.2e+01; speed ")
    assert str(off).endswith("; metric 9.75")


def test_external_data_counts(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"abc")
    (tmp_path / "m.onnx.data").write_bytes(b"defgh")
    assert size_of(tmp_path / "m.onnx") == 8


@pytest.mark.parametrize(("models", "feeds", "rounds"), [({}, FEEDS, 1), ({"a": len}, {}, 1), ({"a": len}, FEEDS, 0)])
def test_nothing_to_measure_is_refused(models: Any, feeds: Any, rounds: int) -> None:
    with pytest.raises(ExportError, match="accepted: at least one of each"):
        measure(models, feeds, rounds=rounds)
