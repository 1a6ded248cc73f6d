"""The manifest as text and back, and what it refuses."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellport.errors import ManifestError
from cellport.manifest import (
    DTYPES,
    METADATA_KEY,
    VERSION,
    InputSpec,
    Manifest,
    OutputFigures,
    OutputSpec,
    Range,
    Source,
    StateSpec,
    TableSpec,
    Verification,
)

names = st.text(min_size=1, max_size=8)
figures = st.floats(0, 1e9)
others = st.lists(st.integers(0, 9) | st.sampled_from("abc"), max_size=3, unique_by=str)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest that is valid."""
    unique = draw(st.lists(names, min_size=8, max_size=8, unique=True))
    inputs = [
        InputSpec(
            name=unique[0],
            dtype=draw(st.sampled_from(sorted(DTYPES))),
            axes=("batch", "time", *draw(others)),
            role="sequence",
            range=draw(st.none() | st.builds(Range, minimum=st.integers(-5, 0), maximum=st.integers(0, 5))),
        ),
        InputSpec(
            name=unique[1], dtype="float32", axes=tuple(draw(others)), role="static", optional=draw(st.booleans())
        ),
    ]
    if draw(st.booleans()):
        inputs.append(InputSpec(name=unique[2], dtype="int64", axes=("batch",), role="lengths"))
    outputs = [
        OutputSpec(name=unique[3], dtype="float32", axes=("time", *draw(others)), chunking="concatenate"),
        OutputSpec(name=unique[4], dtype="bool", axes=tuple(draw(others)), chunking="last"),
    ]
    state = StateSpec(
        input=unique[5], output=unique[6], dtype="float32", axes=(2, "batch", 3), required=draw(st.booleans())
    )
    value = np.array(draw(st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6)), np.float32)
    return Manifest(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        states=draw(st.sampled_from([(), (state.with_initial(value.reshape(2, 1, 3)),)])),
        causal=draw(st.booleans()),
        tables=tuple(draw(st.lists(st.builds(TableSpec, name=names, dtype=names), max_size=2))),
        source=draw(st.none() | st.builds(Source, model=names, opset=st.integers(18, 22))),
        verification=draw(
            st.none()
            | st.builds(
                Verification,
                cases=st.integers(0, 99),
                outputs=st.lists(
                    st.builds(OutputFigures, name=names, onnx_error=figures, torch_error=figures, largest_truth=figures)
                ).map(tuple),
            )
        ),
    )


@given(manifests())
def test_a_manifest_survives_being_text(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_metadata({METADATA_KEY: manifest.to_json(indent=1)}) == manifest


GOOD = Manifest(
    inputs=(
        InputSpec(name="x", dtype="int64", axes=("batch", "time"), role="sequence", range=Range(minimum=0, maximum=9)),
        InputSpec(name="n", dtype="int64", axes=("batch",), role="lengths", optional=True),
    ),
    outputs=(OutputSpec(name="y", dtype="float32", axes=("batch", "time", 3), chunking="concatenate"),),
    states=(StateSpec(input="h", output="h_out", dtype="float32", axes=(2, "batch", 3)),),
)


def test_a_field_of_a_later_version_is_ignored() -> None:
    value = json.loads(GOOD.to_json()) | {"version": "1.7", "new": 1}
    value["inputs"][0]["newer"] = [1]
    assert dataclasses.replace(Manifest.from_json(json.dumps(value)), version=VERSION) == GOOD


@pytest.mark.parametrize("version", ["2.0", "0.9", None, 1, "x"])
def test_another_major_version_is_refused(version: object) -> None:
    with pytest.raises(ManifestError, match=r"the manifest has version .*; accepted: 1\.x"):
        Manifest.from_json(json.dumps(json.loads(GOOD.to_json()) | {"version": version}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["inputs"], "x", r"manifest\.inputs is 'x'"),
        (["inputs", 0], 3, r"manifest\.inputs\[0\] is 3; an object is needed"),
        (["inputs", 0, "name"], "", "input has an empty name"),
        (["inputs", 0, "dtype"], "float33", "input 'x' has dtype 'float33'; accepted: .*float32"),
        (["inputs", 0, "axes"], ["batch", "batch"], "an axis name may appear once"),
        (["inputs", 0, "axes"], ["batch", -1], "has axis -1"),
        (["inputs", 0, "axes"], ["batch", 1.5], r"manifest\.inputs\[0\]\.axes\[1\] is 1\.5"),
        (["inputs", 0, "axes"], ["batch"], "role 'sequence' but no axis 'time'"),
        (["inputs", 0, "role"], "other", r"inputs\[0\]\.role is 'other'; accepted: 'sequence', 'static', 'lengths'"),
        (["inputs", 0, "range"], {"minimum": 3, "maximum": 1}, "range minimum 3 is above its maximum 1"),
        (["inputs", 0, "range"], {"minimum": 3}, r"inputs\[0\]\.range has no field 'maximum'"),
        (["inputs", 0, "role"], "lengths", "role 'lengths'; it must be int64"),
        (["inputs", 0, "optional"], "yes", r"optional is 'yes'"),
        (["inputs", 0, "unite"], "nodes", r"input 'x' is united along 'nodes'; accepted: one of \['batch', 'time'"),
        (["inputs", 0, "index_of"], "nodes", "input 'x' numbers positions of 'nodes'"),
        (["inputs", 1, "name"], "x", "input name 'x' appears more than once"),
        (["outputs", 0, "chunking"], "sum", r"chunking is 'sum'; accepted: 'concatenate', 'last'"),
        (["outputs", 0, "axes"], ["batch"], "output 'y' is to be concatenated but has no axis 'time'"),
        (["outputs", 0, "name"], "h_out", "output name 'h_out' appears more than once"),
        (["states", 0, "output"], "", "state 'h' has an empty output name"),
        (["states", 0, "axes"], [2, 3], "state 'h' has no axis 'batch'"),
        (["states", 0, "axes"], ["time", "batch"], "a state has no time axis"),
        (["states", 0, "dtype"], "string", "state 'h' has dtype 'string'"),
        (["states", 0, "initial"], "AAAA", "initial value of state 'h'"),
        (["states", 0, "initial"], "?", "initial value of state 'h'"),
        (["causal"], 1, r"manifest\.causal is 1"),
        (["source"], {"model": "m"}, r"manifest\.source has no field 'opset'"),
        (["source"], {"model": "m", "opset": 20, "versions": {"a": 1}}, r"versions\['a'\] is 1"),
    ],
)
def test_what_is_malformed_is_named(path: list[str | int], value: object, message: str) -> None:
    parsed: Any = json.loads(GOOD.to_json())
    target = parsed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(json.dumps(parsed))


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "is a JSON list; an object is needed")])
def test_text_that_is_no_object_is_refused(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(text)


def test_a_file_without_one_is_refused() -> None:
    with pytest.raises(ManifestError, match=f"no metadata '{METADATA_KEY}'"):
        Manifest.from_metadata({})


def test_two_inputs_with_lengths_are_refused() -> None:
    lengths = [InputSpec(name=name, dtype="int64", axes=("batch",), role="lengths") for name in "ab"]
    with pytest.raises(ManifestError, match="more than one input has role 'lengths'"):
        Manifest(inputs=tuple(lengths), outputs=())


def test_an_initial_value_is_kept_bit_for_bit() -> None:
    state = GOOD.states[0]
    value = np.arange(6, dtype=np.float32).reshape(2, 1, 3) / 7
    np.testing.assert_array_equal(state.with_initial(value).initial_value(), value)
    assert state.with_initial(np.zeros((2, 1, 3), np.float32)).initial is None
    assert state.batch_axis == 1
