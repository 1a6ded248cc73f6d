"""A trial of a model file that was described by hand: does it take and return what its manifest says?"""

import itertools

import numpy as np
import onnxruntime

from cellport.errors import ManifestError
from cellport.manifest import BATCH, TIME, Axes, InputSpec, Manifest, OutputSpec, StateSpec

from .codec import Array
from .contract import Contract
from .layouts import padding

_ROWS, _STEPS = 3, 17
_CLOSE = 0.01
"""Part of an output's largest value by which a row may differ when it runs alone: far more than rounding, and far less
than what rows that see each other differ by."""


def try_out(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """Run a file and compare what it returns with its manifest: the axes of every output, and that rows are apart.

    It is run over some rows and steps of random numbers (of the least valid value, where they are integers), and then
    over the last of these rows alone. Nothing is tried of a model that takes text, or has axes whose sizes only its
    users know. Whether a sequence may be run in chunks is for ``cellport verify`` to say.

    Raises:
        ManifestError: the graph fails, or does not do what the manifest says.
    """
    described: list[InputSpec | OutputSpec | StateSpec] = [*manifest.inputs, *manifest.outputs, *manifest.states]
    axes = {axis for each in described for axis in each.axes}
    if axes - {BATCH, TIME} - {axis for axis in axes if isinstance(axis, int)} or manifest.sizes is not None:
        return
    if any(each.dtype in ("string", "bfloat16") for each in described):
        return
    # No fixed axis has these sizes, so that axes in another order are not taken for each other.
    free = (size for size in itertools.count(_ROWS) if size not in axes)
    rows = next(free)
    steps = next(size for size in free if size >= _STEPS)
    feeds = _feeds(manifest, rows, steps)
    results = _run(session, manifest, feeds, rows, steps)
    contract = Contract(manifest)
    if not contract.splits or not contract.rowwise:
        return
    batched = {each.name: each.axes for each in manifest.inputs} | {each.input: each.axes for each in manifest.states}
    last = {name: _last(array, batched[name]) for name, array in feeds.items()}
    alone = _run(session, manifest, last, 1, steps)
    for name, array in alone.items():
        expected = _last(results[name], contract.output_layouts[name].graph).astype(np.float64)
        largest = float(np.abs(expected).max(initial=0.0))
        if not np.allclose(array, expected, rtol=0, atol=_CLOSE * largest, equal_nan=True):
            raise ManifestError(
                f"in a trial, output {name!r} of one row differs from that of the same row among {rows}; accepted: "
                f"inputs whose axis {BATCH!r} counts independent rows"
            )


def _feeds(manifest: Manifest, rows: int, steps: int) -> dict[str, Array]:
    random = np.random.default_rng(0)
    sizes = {BATCH: rows, TIME: steps}
    feeds: dict[str, Array] = {}
    for each in manifest.inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in each.axes]
        if each.role == "lengths":
            feeds[each.name] = np.full(shape, steps, np.int64)
        elif each.dtype.startswith("float"):
            feeds[each.name] = random.standard_normal(shape).astype(each.dtype)
        else:
            feeds[each.name] = np.full(shape, padding(each), each.dtype)
    for state in manifest.states:
        feeds[state.input] = np.repeat(state.initial_value(), rows, state.batch_axis)
    return feeds


def _run(
    session: onnxruntime.InferenceSession, manifest: Manifest, feeds: dict[str, Array], rows: int, steps: int
) -> dict[str, Array]:
    """Run the graph and check the shapes of what it returns."""
    outputs: dict[str, Axes] = {each.name: each.axes for each in manifest.outputs}
    outputs |= {each.output: each.axes for each in manifest.states}
    timed = any(TIME in each.axes for each in manifest.inputs)
    told = f"a trial of {rows} rows" + (f" and {steps} steps" if timed else "")
    try:
        results = dict(zip(outputs, session.run(list(outputs), feeds), strict=True))
    except Exception as error:  # onnxruntime's exceptions share no narrower base class
        given = ", ".join(f"{name!r} {list(array.shape)}" for name, array in feeds.items())
        raise ManifestError(f"{told} failed; given: {given}: {error}") from error
    for name, axes in outputs.items():
        sizes = {BATCH: rows, TIME: steps}
        expected = [axis if isinstance(axis, int) else sizes[axis] for axis in axes]
        if list(results[name].shape) != expected:
            raise ManifestError(
                f"in {told} output {name!r} has shape {list(results[name].shape)}; the manifest says {list(axes)}, "
                f"which is {expected}"
            )
    return results


def _last(array: Array, axes: Axes) -> Array:
    """Return the last row."""
    return array.take([-1], axes.index(BATCH)) if BATCH in axes else array
