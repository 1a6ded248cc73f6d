"""Numbers with proven bounds on their errors: what quantised products may do to a recurrent network, step by step.

A `Ball` holds the float64 truth and how far a computation with errors may be from it, element by element. Each
operation widens the radius by the largest change that its operands' radii allow, so that a bound on the quantisation of
single products becomes one on a whole sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FLOAT32 = 2.0**-23


@dataclass(frozen=True)
class Ball:
    """The truth and the radius around it, of one shape."""

    value: Array
    radius: Array

    @classmethod
    def exact(cls, value: Array) -> "Ball":
        value = np.asarray(value, np.float64)
        return cls(value, np.zeros_like(value))

    def __add__(self, other: "Ball | Array | float") -> "Ball":
        other = _ball(other)
        return _rounded(self.value + other.value, self.radius + other.radius)

    def __sub__(self, other: "Ball | Array | float") -> "Ball":
        other = _ball(other)
        return _rounded(self.value - other.value, self.radius + other.radius)

    def __mul__(self, other: "Ball | Array | float") -> "Ball":
        other = _ball(other)
        radius = np.abs(self.value) * other.radius + np.abs(other.value) * self.radius + self.radius * other.radius
        return _rounded(self.value * other.value, radius)

    def through(self, function: Callable[[Array], Array]) -> "Ball":
        """A monotone function of each element."""
        value = function(self.value)
        ends = [np.abs(function(self.value + sign * self.radius) - value) for sign in (1, -1)]
        return _rounded(value, np.maximum(*ends))

    def product(self, weight: Array, left_error: float) -> "Ball":
        """Times a weight [inputs, columns] that is stored as int8, the left operand off by at most `left_error`.

        A column's scale is its largest absolute value / 127, and each of its elements is off by at most half of that.
        """
        weight = np.asarray(weight, np.float64)
        off = np.broadcast_to(np.abs(weight).max(0) / 127 / 2, weight.shape)
        reach = np.abs(self.value) + self.radius + left_error
        radius = (self.radius + left_error) @ np.abs(weight) + reach @ off
        return _rounded(self.value @ weight, radius + 4 * FLOAT32 * (reach @ np.abs(weight)))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _ball(value: "Ball | Array | float") -> Ball:
    return value if isinstance(value, Ball) else Ball.exact(np.asarray(value))


def _rounded(value: Array, radius: Array) -> Ball:
    """Add what float32 rounds off, and the few last places by which the runtime's tanh and sigmoid are off."""
    return Ball(value, radius + 8 * FLOAT32 * (np.abs(value) + radius))
