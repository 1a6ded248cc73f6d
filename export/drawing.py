"""Random inputs for proofs: like the examples that the user gave, and reaching the values that are special.

Uniform integers alone would miss a branch on one token, standard normal numbers alone would leave the domain of a
logarithm.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_SPREAD = 0.2


def draw(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: str,
    bounds: tuple[int, int] | None = None,
    example: Array | None = None,
) -> Array:
    """Draw one input.

    Args:
        rng: the source of randomness.
        shape: of the result.
        dtype: NumPy's name of the element type.
        bounds: for integers, the smallest and the largest that is accepted, if that is known.
        example: a value that is accepted.

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
        special = np.unique(np.clip([low, low + 1, low + 2, high], low, high))
        if seen is not None:
            special = np.union1d(special, seen[(seen >= low) & (seen <= high)])
        uniform = rng.integers(low, high, shape, endpoint=True)
        return np.where(rng.random(shape) < 0.5, rng.choice(special, shape), uniform).astype(dtype)
    if seen is None or seen.size < 3 or not np.isfinite(seen).all():
        return rng.standard_normal(shape).astype(dtype)
    return (rng.choice(seen, shape) * (1 + _SPREAD * rng.standard_normal(shape))).astype(dtype)


def draw_state(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Draw a state: normal numbers of half the standard size; for integers, such as a count of steps, 0 to 7."""
    if np.dtype(dtype).kind == "f":
        return (0.5 * rng.standard_normal(shape)).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 8, shape).astype(dtype)
