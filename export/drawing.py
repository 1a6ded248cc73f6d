"""Random inputs for proofs: like the examples that the user gave, and reaching the values that are special.

Uniform integers alone would miss a branch on one token, standard normal numbers alone would leave the domain of a
logarithm.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_SPREAD = 0.2
_SELDOM, _OFTEN = 0.03, 0.3
"""How often each special number is drawn, and all of them together at most."""

_LEAST, _MOST = 1.5, 1e4
"""What a special number is between: normal numbers reach smaller ones, and larger ones are masks."""


def draw(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: str,
    bounds: tuple[int, int] | None = None,
    example: Array | None = None,
    special: Iterable[float] = (),
) -> Array:
    """Draw one input.

    Args:
        rng: the source of randomness.
        shape: of the result.
        dtype: NumPy's name of the element type.
        bounds: for integers, the smallest and the largest that is accepted, if that is known.
        example: a value that is accepted.
        special: numbers to draw too, where they are in the range of what is accepted.

    Returns:
        For floats, values of the example, each up or down by about a fifth, or standard normal ones where there is no
        example or it is constant. For integers with bounds, half uniform ones, half from the ends of the range and the
        example; without bounds, those of the example, or 0 and 1.
    """
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    seen = None if example is None or example.size == 0 else np.unique(example)
    if kind in "iu":
        if bounds is None:
            return rng.choice(np.array([0, 1]) if seen is None else seen, shape).astype(dtype)
        low, high = bounds
        ends = np.unique(np.clip([low, low + 1, low + 2, high], low, high))
        if seen is not None:
            ends = np.union1d(ends, seen[(seen >= low) & (seen <= high)])
        uniform = rng.integers(low, high, shape, endpoint=True)
        drawn = np.where(rng.random(shape) < 0.5, rng.choice(ends, shape), uniform).astype(dtype)
        named = np.array(sorted({int(each) for each in special if low <= each <= high and each == int(each)}), dtype)
        # Not often: what has happened in one chunk or row must not have happened in all others as well.
        seldom = min(_SELDOM * len(named), _OFTEN)
        return np.where(rng.random(shape) < seldom, rng.choice(named, shape), drawn) if named.size else drawn
    if seen is None or seen.size < 3 or not np.isfinite(seen).all():
        drawn = rng.standard_normal(shape).astype(dtype)
        positive = False
    else:
        drawn = (rng.choice(seen, shape) * (1 + _SPREAD * rng.standard_normal(shape))).astype(dtype)
        positive = bool(seen.min() > 0)
    thresholds = np.array(
        sorted({each for each in special if _LEAST < (each if positive else abs(each)) < _MOST}), dtype
    )
    if not thresholds.size:
        return drawn
    around = (rng.choice(thresholds, shape) * (1 + _SPREAD * rng.standard_normal(shape))).astype(dtype)
    seldom = min(_SELDOM * len(thresholds), _OFTEN)
    return np.where(rng.random(shape) < seldom, np.abs(around) if positive else around, drawn)


def draw_state(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Draw a state: normal numbers of half the standard size; for integers, such as a count of steps, 0 to 7."""
    if np.dtype(dtype).kind == "f":
        return (0.5 * rng.standard_normal(shape)).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 8, shape).astype(dtype)
