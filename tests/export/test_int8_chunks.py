"""With ranges that are fixed, an int8 model may be cut in time and batched as before; else only nearly so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from cellport.export import to_onnx
from cellport.export.passes import Int8Weights
from cellport.export.runs import Arrays, Contract, in_chunks
from cellport.export.runtime import OnnxRunner
from cellport.manifest import METADATA_KEY, Manifest

from .models import VOCABULARY, Tokens, cell

STEPS = 12


@pytest.fixture(scope="module", params=["lstm", "gru"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An exported model, its contract, and the same with int8 weights, as a function of the pass's options."""
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    model = Tokens(cell(request.param, num_layers=2, batch_first=True)).eval()
    example = (torch.arange(6).reshape(2, 3),)
    shapes = {"tokens": {0: "batch", 1: "time"}}
    to_onnx(model, example, folder / "m.onnx", output_names=["y"], dynamic_shapes=shapes, lowering="scan", verify=False)

    def made(**options: Any) -> tuple[OnnxRunner, Contract]:
        changed = ir.load(folder / "m.onnx")
        contract = Contract.of(Manifest.from_json(changed.metadata_props[METADATA_KEY]))
        assert Int8Weights(minimum=0, minimum_in_bodies=0, **options)(changed).modified
        ir.save(changed, folder / "int8.onnx")
        return OnnxRunner(folder / "int8.onnx"), contract

    return made


TOKENS: Arrays = {"tokens": np.random.default_rng(0).integers(0, VOCABULARY, (4, STEPS))}


def off(new: Arrays, old: Arrays) -> float:
    return max(float(np.abs(new[name] - old[name]).max()) for name in old)


def test_chunks_and_rows_alone_compute_the_same_where_ranges_are_fixed(quantised: Callable[..., Any]) -> None:
    """Up to the rounding of float32 where the runtime sums in another order."""
    run, contract = quantised()
    whole = run(TOKENS)
    assert off(in_chunks(run, contract, TOKENS, [0, 1, 5, STEPS]), whole) <= 1e-6
    alone = run({"tokens": TOKENS["tokens"][:1]})
    assert np.abs(alone["y"] - whole["y"][:1]).max() <= 1e-6


def test_chunks_differ_where_ranges_are_found_in_each_call(quantised: Callable[..., Any]) -> None:
    run, contract = quantised(proven=False)
    assert off(in_chunks(run, contract, TOKENS, [0, 1, 5, STEPS]), run(TOKENS)) > 1e-4
