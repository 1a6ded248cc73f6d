"""The rule by which a file passes, on functions in place of the file and the module."""

from typing import Any

import numpy as np
import pytest

from cellport.errors import EquivalenceError, ExportError
from cellport.export.runs import Arrays, Runner
from cellport.export.verification import FACTOR, SLACK, Case, Grid, compare, feeds
from cellport.manifest import InputSpec, Manifest, OutputSpec, Range, StateSpec, Verification

INPUT = InputSpec(name="x", dtype="float32", axes=("batch", "time", 2), role="sequence")
LENGTHS = InputSpec(name="lengths", dtype="int64", axes=("batch",), role="lengths", optional=True)
STATE = StateSpec(input="h", output="h_out", dtype="float32", axes=("batch", 2))
OUTPUT = OutputSpec(name="y", dtype="float32", axes=("batch", "time", 2), chunking="concatenate")
PLAIN = Manifest(inputs=(INPUT,), outputs=(OUTPUT,))
ONE = Grid(batches=(1, 2), steps=(3,))


def off(error: float, *, dtype: str = "float64", at: int | None = None) -> Runner:
    """The identity with one value off by `error`, in batches of any size or only of one."""

    def run(given: Arrays) -> Arrays:
        value = given["x"].astype(dtype)
        if at is None or len(value) == at:
            value.flat[0] += error
        return {"y": value}

    return run


def check(onnx: Runner, float32: Runner, manifest: Manifest = PLAIN, float64: Runner | None = None) -> Verification:
    return compare(manifest, onnx, float32, float64 or off(0), ONE)


def test_an_error_may_be_four_times_pytorchs_own_and_a_little_more() -> None:
    largest = check(off(0), off(0)).outputs[0].largest_truth
    bound = FACTOR * 1e-3 + SLACK * max(1.0, largest)
    figures = check(off(0.999 * bound), off(1e-3))
    assert figures.outputs[0].onnx_error == pytest.approx(0.999 * bound)
    assert figures.outputs[0].torch_error == pytest.approx(1e-3)
    with pytest.raises(EquivalenceError, match="output 'y' is off by"):
        check(off(1.001 * bound), off(1e-3))


def test_each_case_is_held_to_pytorchs_own_error_in_that_case() -> None:
    """A large error of PyTorch's elsewhere excuses nothing; the worst case is named."""
    check(off(3e-3, at=2), off(1e-3, at=2))
    with pytest.raises(EquivalenceError, match=r"output 'y' is off by .* at batch 1, 3 steps"):
        check(off(3e-3), off(1e-3, at=2))


def test_a_case_that_breaks_the_rule_is_looked_at_again_with_neighbouring_weights() -> None:
    """One lucky run of PyTorch is no measure of a module that amplifies its rounding; a wrong file stays wrong."""
    looked: list[Runner] = []

    def neighbours() -> list[Runner]:
        looked.extend([off(1e-3), off(2e-2), off(0)])
        return looked[-3:]

    found = compare(PLAIN, off(7e-2), off(1e-3), off(0), ONE, neighbours=neighbours)
    assert (found.second_looks, len(looked)) == (2, 6)
    assert found.outputs[0].torch_error == pytest.approx(1e-3)
    with pytest.raises(EquivalenceError, match=r"off by 0\.09"):
        compare(PLAIN, off(9e-2), off(1e-3), off(0), ONE, neighbours=neighbours)
    assert compare(PLAIN, off(3e-3), off(1e-3), off(0), ONE, neighbours=neighbours).second_looks == 0


def test_a_case_that_breaks_the_rule_is_looked_at_again_with_many_rows() -> None:
    """Products of many rows take their sums in another order; a module whose rows see each other is no measure."""

    def lucky_alone(feeds: Arrays) -> Arrays:
        found = off(1e-3)(feeds)
        return found if len(feeds["x"]) < 16 else off(2e-2)(feeds)

    def seeing(feeds: Arrays) -> Arrays:
        found = off(0)(feeds)
        return {name: value + (len(feeds["x"]) >= 16) for name, value in found.items()}

    assert compare(PLAIN, off(7e-2), lucky_alone, off(0), ONE).second_looks == 2
    with pytest.raises(EquivalenceError, match=r"off by 0\.09"):
        compare(PLAIN, off(9e-2), lucky_alone, off(0), ONE)
    with pytest.raises(EquivalenceError, match=r"off by 0\.07"):
        compare(PLAIN, off(7e-2), lucky_alone, seeing, ONE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_an_error_unless_pytorch_has_it_too(value: float) -> None:
    check(off(value), off(value), float64=off(value))
    check(off(value), off(value))
    with pytest.raises(EquivalenceError, match="off by inf"):
        check(off(value), off(0))


def test_an_integer_must_be_the_truths_or_float32s_own() -> None:
    """Where two classes tie, float32 itself may decide otherwise than float64."""
    manifest = Manifest(inputs=(INPUT,), outputs=(OutputSpec(**{**vars(OUTPUT), "dtype": "int64"}),))

    def integers(add: int) -> Runner:
        return lambda given: {"y": np.zeros(given["x"].shape, np.int64) + add}

    for onnx in (0, 1):
        compare(manifest, integers(onnx), integers(1), integers(0), ONE)
    with pytest.raises(EquivalenceError, match="output 'y' is off by"):
        compare(manifest, integers(2), integers(1), integers(0), ONE)


def test_an_output_of_another_shape_is_an_error_of_its_own() -> None:
    with pytest.raises(EquivalenceError, match=r"output 'y' has shape \[1, 2, 2\] at batch 1.* gives \[1, 3, 2\]"):
        check(lambda given: {"y": given["x"][:, :2]}, off(0))


def test_a_case_that_the_module_cannot_run_is_named() -> None:
    """Such as more steps than it has positions for."""

    def fails(given: Arrays) -> Arrays:
        raise IndexError("index out of range in self")

    with pytest.raises(
        ExportError, match=r"the model does not run at batch 1, 3 steps.* IndexError: index out of range"
    ):
        check(off(0), fails)


def manifest(**fields: Any) -> Manifest:
    return Manifest(**{"inputs": (INPUT, LENGTHS), "outputs": (OUTPUT,), "states": (STATE,), "causal": True, **fields})


@pytest.mark.parametrize(
    ("made", "cases"),
    [
        (manifest(), 3 * 2 * 2 * (1 + 2 + 3 + 3)),
        (manifest(causal=False), 3 * 2 * 2 * 4),
        (manifest(inputs=(INPUT,)), 3 * 2 * (1 + 2 + 3 + 3)),
        (PLAIN, 3 * 4),
        (Manifest(inputs=(), outputs=()), 3),
    ],
)
def test_the_full_grid_has_every_combination_that_a_model_allows(made: Manifest, cases: int) -> None:
    """Batches of 1, 2, 7; 1, 2, 13 and 64 steps, cut by 5 and by 1 where that cuts; ragged; from random states."""
    found = list(Grid().cases(made))
    assert len(found) == cases
    assert len({(each.batch, each.steps, each.ragged, each.random_state, each.chunk) for each in found}) == cases


def test_ragged_cases_have_garbage_where_padding_is_and_only_there() -> None:
    case = Case(batch=5, steps=6, ragged=True, random_state=True, chunk=None, seed=3)
    tokens = InputSpec(
        name="t", dtype="int64", axes=("time", "batch"), role="sequence", range=Range(minimum=3, maximum=9)
    )
    clean, garbage = feeds(manifest(inputs=(INPUT, tokens, LENGTHS)), case)
    lengths = clean["lengths"]
    valid = np.arange(6) < lengths[:, None]
    assert lengths.max() == 6
    assert not valid.all()
    assert np.isnan(garbage["x"][~valid]).all()
    np.testing.assert_array_equal(garbage["x"][valid], clean["x"][valid])
    np.testing.assert_array_equal(garbage["t"].T[valid], clean["t"].T[valid])
    assert set(garbage["t"].ravel()) <= set(range(3, 10))
    assert not np.array_equal(garbage["t"], clean["t"])
    assert clean["h"].any()


def test_states_that_must_be_given_start_at_their_initial_value() -> None:
    case = Case(batch=2, steps=1, ragged=False, random_state=False, chunk=None, seed=0)
    required = StateSpec(**{**vars(STATE), "required": True}).with_initial(np.array([[1, 2]], np.float32))
    clean, _ = feeds(manifest(states=(required,)), case)
    np.testing.assert_array_equal(clean["h"], [[1, 2], [1, 2]])
    assert "h" not in feeds(manifest(), case)[0]
