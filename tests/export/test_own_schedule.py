"""A schedule that the package does not have exports like its own: the one of docs/cells.md."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cellport.export import to_onnx

PAGE = Path(__file__).parents[2] / "docs" / "cells.md"


@pytest.fixture(scope="module")
def unit() -> Any:
    """The unit of the page, with a dilation of 4."""
    section = PAGE.read_text().split("## A schedule of your own")[1]
    names: dict[str, Any] = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    torch.manual_seed(0)
    return names["DilatedUnit"](3, 5, 4).eval()


def cell_by_cell(unit: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The equation in float64, one step after the other."""
    w, b, u = (each.detach().double().numpy() for each in (unit.input.weight, unit.input.bias, unit.hidden.weight))
    h: list[Any] = []
    for t, step in enumerate(x.astype(np.float64)):
        before = h[t - 4] @ u.T if t >= 4 else 0.0
        h.append(np.tanh(step @ w.T + b + before))
    return np.stack(h)


def test_a_schedule_of_ones_own_exports_with_open_sizes_as_one_scan_over_its_rounds(tmp_path: Path, unit: Any) -> None:
    path = tmp_path / "dilated.onnx"
    to_onnx(
        unit,
        (torch.randn(13, 2, 3),),
        path,
        input_names=["x"],
        output_names=["h"],
        dynamic_shapes=({0: "time", 1: "batch"},),
    )
    assert [node.op_type for node in onnx.load(path).graph.node].count("Scan") == 1
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for time in (1, 2, 3, 4, 5, 8, 31, 100):
        for batch in (1, 3):
            x = random.normal(size=(time, batch, 3)).astype(np.float32)
            [found] = session.run(["h"], {"x": x})
            truth = cell_by_cell(unit, x)
            with torch.inference_mode():
                own = np.abs(unit(torch.from_numpy(x)).numpy() - truth).max()
            assert np.abs(found - truth).max() <= 4 * own + 1e-6 * max(1.0, np.abs(truth).max())
