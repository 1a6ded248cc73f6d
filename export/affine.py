"""Numbers of a forward as rules of the sizes of its axes and of the step, fitted to what runs of it showed."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["STEP", "Number", "Sample", "fit"]

STEP = "step"

Sample = tuple[Mapping[str, int], int | None]
"""The sizes of a run, and the step within a loop."""


@dataclass(frozen=True)
class Number:
    """A sum of products of sizes.

    Attributes:
        terms: a whole factor for each product of axis names; the empty product is the constant.
        step: the factor of the step.
    """

    terms: tuple[tuple[tuple[str, ...], int], ...]
    step: int = 0

    def at(self, sizes: Mapping[str, Any]) -> Any:
        """Its value at some sizes, and at step 0."""
        total: Any = 0
        for names, factor in self.terms:
            product: Any = factor
            for name in names:
                product = product * sizes[name]
            total = total + product
        return total

    def plus(self, other: "Number | int", factor: int = 1) -> "Number":
        """The sum with `factor` times another."""
        if isinstance(other, int):
            other = Number((((), other),))
        terms = dict(self.terms)
        for names, each in other.terms:
            terms[names] = terms.get(names, 0) + factor * each
        kept = tuple(sorted((names, each) for names, each in terms.items() if each))
        return Number(kept, self.step + factor * other.step)

    def minus(self, other: "Number | int") -> "Number":
        """The difference."""
        return self.plus(other, -1)

    @property
    def constant(self) -> int | None:
        """Its value if it depends on nothing."""
        if self.step or any(names for names, _ in self.terms):
            return None
        return dict(self.terms).get((), 0)


def fit(values: Sequence[int], samples: Sequence[Sample]) -> Number | None:
    """The rule that gives each value at its sizes and step; None if there is none."""
    axes = sorted(samples[0][0])
    steps = [step or 0 for _, step in samples]
    if len(set(values)) == 1:
        return Number((((), int(values[0])),) if values[0] else ())
    single = [(), *((name,) for name in axes)]
    pairs = [*single, *itertools.combinations_with_replacement(axes, 2)]
    for products in (single, pairs):
        columns = [[_product(sizes, names) for names in products] for sizes, _ in samples]
        matrix = np.array([[*row, step] for row, step in zip(columns, steps, strict=True)], dtype=np.float64)
        found = np.round(np.linalg.lstsq(matrix, np.array(values, dtype=np.float64), rcond=None)[0]).astype(int)
        if np.array_equal(matrix.astype(int) @ found, values):
            terms = tuple((names, int(factor)) for names, factor in zip(products, found[:-1], strict=True) if factor)
            return Number(tuple(sorted(terms)), int(found[-1]))
    return None


def _product(sizes: Mapping[str, int], names: Sequence[str]) -> int:
    product = 1
    for name in names:
        product *= sizes[name]
    return product
