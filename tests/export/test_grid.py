"""Files equal modules, by the rule of the float64 truth, on a seeded grid of more than two thousand combinations."""

from pathlib import Path

import pytest

from cellport.export import to_onnx
from cellport.export.prove import examine

from .grid import KINDS, Combination, Drawn, combinations

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

EACH = 10
WHOLE = combinations(240)


def check(combination: Combination, folder: Path) -> int:
    model, args, options = combination.build()
    to_onnx(model, args, folder / "model.onnx", **options, verify=False)
    found = examine(model, folder / "model.onnx", args=args, grid=Drawn(seed=combination.seed, count=EACH), steps=0)
    assert found.verification.cases > 0
    return found.verification.cases


def test_the_grid_draws_every_value_of_every_option() -> None:
    assert len({str(each) for each in WHOLE}) == len(WHOLE)
    for name, values in {
        "kind": set(KINDS),
        "model": {"tokens", "lengths", "features"},
        "layers": {1, 2, 3},
        "bidirectional": {False, True},
        "opset": {18, 19, 20, 21, 22},
        "lookup": {"auto", False, True},
        "lowering": {"auto", "native", "scan"},
        "state_inputs": {"optional", "required"},
    }.items():
        assert {getattr(each, name) for each in WHOLE} == values


@pytest.mark.parametrize("combination", combinations(len(KINDS), seed=3), ids=str)
def test_a_sample_of_the_grid(combination: Combination, tmp_path: Path) -> None:
    check(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", WHOLE, ids=str)
def test_the_whole_grid(combination: Combination, tmp_path: Path) -> None:
    """240 models and ways of exporting them, ten cases each where there are as many."""
    check(combination, tmp_path)
