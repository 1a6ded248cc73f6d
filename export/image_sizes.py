"""Inputs that hold the sizes of a batch's images: drawn as valid ones, with what lies outside of each image.

An integer input named ``sizes`` of axes [batch, N], such as `cellport.cells.MDLSTM` takes, is held to be one if
another input has N or more dynamic axes besides the batch: its columns are the sizes along the first N of these.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from cellport.cells import MDStack
from cellport.manifest import BATCH, Axes

from .runs import Array, Arrays

__all__ = ["SIZES", "ImageSizes", "coarseness"]

SIZES = "sizes"


@dataclass(frozen=True)
class ImageSizes:
    """An input of sizes.

    Attributes:
        source: an input that has the axes.
        axes: the axis of each column.
    """

    source: str
    axes: tuple[str, ...]

    @classmethod
    def among(cls, inputs: Mapping[str, Axes]) -> "ImageSizes | None":
        """The input of sizes of a model, if it has one.

        Args:
            inputs: axes of each input.
        """
        given = inputs.get(SIZES, ())
        if len(given) != 2 or given[0] != BATCH or not isinstance(given[1], int):
            return None
        for name, axes in inputs.items():
            dynamic = [axis for axis in axes if isinstance(axis, str) and axis != BATCH]
            if name != SIZES and BATCH in axes and len(dynamic) >= given[1]:
                return cls(name, tuple(dynamic[: given[1]]))
        return None

    def within(self, value: Array, sizes: Mapping[str, int]) -> Array:
        """Sizes [batch, N] that are at most those of the axes, by name."""
        return np.minimum(value, [sizes[axis] for axis in self.axes]).astype(value.dtype)

    def draw(self, rng: np.random.Generator, inputs: Mapping[str, Axes], clean: Arrays, garbage: Arrays) -> None:
        """Replace the sizes by random ones, from 0 to the whole axis, the first image being whole.

        Outside of the images floating-point inputs become 0 in `clean` and not a number in `garbage`.
        """
        shape = clean[self.source].shape
        limits = [shape[inputs[self.source].index(axis)] for axis in self.axes]
        dtype = clean[SIZES].dtype
        drawn = np.stack([rng.integers(0, n, len(clean[SIZES]), endpoint=True) for n in limits], -1).astype(dtype)
        drawn[:1] = limits
        clean[SIZES] = garbage[SIZES] = drawn
        for name, axes in inputs.items():
            if name not in clean or clean[name].dtype.kind != "f" or not {BATCH, *self.axes} <= set(axes):
                continue
            inside = np.ones(clean[name].shape, bool)
            for column, axis in enumerate(self.axes):
                place = np.arange(inside.shape[axes.index(axis)])
                place = place.reshape([-1 if each == axis else 1 for each in axes])
                inside &= place < drawn[:, column].reshape([-1 if each == BATCH else 1 for each in axes])
            clean[name] = np.where(inside, clean[name], 0).astype(clean[name].dtype)
            garbage[name] = np.where(inside, garbage[name], np.nan).astype(clean[name].dtype)


def coarseness(model: nn.Module) -> int:
    """How many positions of an image, along any axis, one of the result stands for; 1 without an `MDStack`.

    The tracer needs larger images, so that no axis has a single window anywhere: it takes that for a case of its own,
    which the graph is not.
    """
    return math.prod(max(each.coarseness) for each in model.modules() if isinstance(each, MDStack))
