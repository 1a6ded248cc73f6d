"""Checks of the tensors of a request; each error names the tensor, its value and what is accepted."""

from collections.abc import Mapping

import numpy as np

from cellport.errors import InvalidRequestError
from cellport.manifest import BATCH, TIME, Axes, InputSpec

from .codec import Array, datatype_of, dtype_of
from .layouts import batch_first, padding

_FEW = 64
"""Elements up to which Python finds the smallest and the largest sooner than NumPy."""


def check_index(spec: InputSpec, array: Array, size: int) -> None:
    """Refuse what is no position of the axis: a graph may read another position for it."""
    if not array.size or (array.min() >= -1 and array.max() < size):
        return
    outside = (array < -1) | (array >= size)
    at = np.unravel_index(int(outside.argmax()), array.shape)
    accepted = f"0 to {size - 1}, the axis {spec.index_of!r}, or -1 for none" if size else "-1 for none"
    raise InvalidRequestError(
        f"input {spec.name!r} has value {array[at]} at {[int(index) for index in at]}; accepted: {accepted}"
    )


def check_tensor(kind: str, name: str, array: Array, dtype: str, axes: Axes, sizes: dict[str, tuple[int, str]]) -> None:
    """Check one batch-first tensor; `sizes` collects the size of each named axis and the tensor that set it."""
    found = dtype_of(array)
    if not array.dtype.isnative:
        raise InvalidRequestError(f"{kind} {name!r} has dtype {array.dtype}; accepted: this machine's byte order")
    if found != dtype:
        raise InvalidRequestError(f"{kind} {name!r} has datatype {datatype_of(found)}; accepted: {datatype_of(dtype)}")
    shape = list(array.shape)
    if len(shape) != len(axes):
        raise InvalidRequestError(
            f"{kind} {name!r} has shape {shape} of {len(shape)} axes; accepted: {len(axes)} axes {list(axes)}"
        )
    for axis, size in zip(axes, shape, strict=True):
        if isinstance(axis, int):
            if size != axis:
                raise InvalidRequestError(f"{kind} {name!r} has shape {shape}; accepted: {list(axes)}")
        elif axis in (BATCH, TIME) and size < 1:
            raise InvalidRequestError(f"{kind} {name!r} has shape {shape}; axis {axis!r} must be at least 1")
        elif sizes.setdefault(axis, (size, name))[0] != size:
            expected, other = sizes[axis]
            raise InvalidRequestError(
                f"{kind} {name!r} has shape {shape}; axis {axis!r} must be {expected}, as in {other!r}"
            )


def check_lengths(spec: InputSpec, lengths: Array, time: int | None) -> Array:
    """Refuse lengths beyond the time axis; return them."""
    limit = time if time is not None else 0
    wrong = np.flatnonzero((lengths < 0) | (lengths > limit))
    if wrong.size:
        row = int(wrong[0])
        raise InvalidRequestError(
            f"input {spec.name!r} has length {lengths[row]} for row {row}; accepted: 0 to {limit}, the time axis"
        )
    return lengths


def check_extents(spec: InputSpec, extents: Array, sizes: Mapping[str, int]) -> Array:
    """Refuse sizes beyond the axes that they are of; return them."""
    limits = np.array([sizes[axis] for axis in spec.of])
    wrong = np.argwhere((extents < 0) | (extents > limits))
    if len(wrong):
        row, column = map(int, wrong[0])
        raise InvalidRequestError(
            f"input {spec.name!r} has size {extents[row, column]} for row {row}; accepted: 0 to {limits[column]}, "
            f"the axis {spec.of[column]!r}"
        )
    return extents


def check_range(spec: InputSpec, array: Array, lengths: Array | None) -> Array:
    """Refuse values outside the range, except in padding, where they are replaced: the graph would fail on them."""
    limits = spec.range
    if limits is None or not array.size:
        return array
    if array.size <= _FEW:  # NumPy's reductions take longer to begin than this
        values = array.ravel().tolist()
        least, greatest = min(values), max(values)
    else:
        least, greatest = int(array.min()), int(array.max())
    if limits.minimum <= least and greatest <= limits.maximum:
        return array
    outside = (array < limits.minimum) | (array > limits.maximum)
    if lengths is not None and TIME in spec.axes:
        axes = batch_first(spec.axes)
        shape = [1] * array.ndim
        shape[axes.index(TIME)] = -1
        steps = np.arange(array.shape[axes.index(TIME)]).reshape(shape)
        valid = steps < lengths.reshape(-1, *[1] * (array.ndim - 1))
        array = np.where(valid, array, np.array(padding(spec), array.dtype))
        outside = outside & valid
    if outside.any():
        at = np.unravel_index(int(outside.argmax()), array.shape)
        raise InvalidRequestError(
            f"input {spec.name!r} has value {array[at]} at {[int(index) for index in at]}; "
            f"accepted: {limits.minimum} to {limits.maximum}"
        )
    return array
