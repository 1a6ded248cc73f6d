"""A network of the package `sru` exports, verified, with its projections and norms outside of the loop."""

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from cellport.cells import SRU
from cellport.export import to_onnx

OPTIONS: dict[str, dict[str, Any]] = {
    "pre-norm-factorised": {"num_layers": 2, "layer_norm": True, "projection_size": 4, "rescale": True},
    "post-norm-bidirectional": {
        "bidirectional": True,
        "layer_norm": True,
        "normalize_after": True,
        "proj_input_to_hidden_first": True,
        "use_tanh": True,
    },
}


@pytest.fixture(scope="module")
def package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sru", reason="the sru package or its compiler is missing", exc_type=Exception)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_only_the_cell_is_in_the_loop(package: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = SRU.from_sru(package.SRU(6, 8, **{"num_layers": 1, **options})).eval()
    path = tmp_path / "sru.onnx"
    report = to_onnx(
        model, (torch.randn(4, 2, 6),), path, dynamic_shapes={"input": {0: "time", 1: "batch"}}, output_names=["h", "c"]
    )
    loops = [node for node in onnx.load(path).graph.node if node.op_type == "Scan"]
    assert len(loops) == model.num_layers * model.num_directions
    for loop in loops:
        body = [node.op_type for node in loop.attribute[0].g.node]
        assert sorted(set(body)) in (["Add", "Mul", "Sigmoid", "Sub"],), body
    assert report.manifest.verification is not None
