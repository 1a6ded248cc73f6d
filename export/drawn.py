"""Inputs that the user draws: indices, permutations, schedules, and whatever else holds together only as a whole.

Integers that no axis of the module's own bounds, and inputs that must fit each other, cannot be drawn one by one.
A function of the user's draws them: `draw(rng, sizes)` gets a `numpy.random.Generator` and the wanted size of each
named axis, and gives arrays by input name, for all inputs or for some. They hang on nothing but these arguments. Where
sizes cannot be had together, such as many nodes in few slots, it may give others in a verification, but not to the
tracer, which asks for sizes of at least 11.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cellport.errors import ExportError
from cellport.manifest import Axes

from .runs import Array, Arrays
from .signature import Leaf

__all__ = ["Draw", "draw_all", "with_draw"]

Draw = Callable[[np.random.Generator, Mapping[str, int]], Mapping[str, Array]]


def draw_all(
    draw: Draw,
    rng: np.random.Generator,
    sizes: Mapping[str, int],
    inputs: Mapping[str, tuple[Axes, str]],
    *,
    exact: bool = True,
) -> tuple[Arrays, dict[str, int]]:
    """Draw inputs, and see that they are as asked.

    Args:
        draw: the user's function.
        rng: the source of randomness.
        sizes: the size of each named axis.
        inputs: axes and element type by name.
        exact: whether the sizes must be those; else they must agree with each other.

    Returns:
        The arrays, and the size of each named axis.

    Raises:
        ExportError: it fails, or gives a name, shape or type that was not asked for.
    """
    try:
        found = {name: np.asarray(value) for name, value in draw(rng, dict(sizes)).items()}
    except Exception as error:  # whatever the user's function raises
        raise ExportError(f"draw fails for the sizes {dict(sizes)}: {type(error).__name__}: {error}") from error
    real = dict(sizes) if exact else {}
    for name, value in found.items():
        if name not in inputs:
            raise ExportError(f"draw gives {name!r}; the inputs are {list(inputs)}")
        axes, dtype = inputs[name]
        if value.ndim == len(axes):
            for axis, size in zip(axes, value.shape, strict=True):
                if isinstance(axis, str):
                    real.setdefault(axis, size)
        wanted = [real.get(axis, sizes[axis]) if isinstance(axis, str) else axis for axis in axes]
        if list(value.shape) != wanted:
            raise ExportError(
                f"draw gives {name!r} of shape {list(value.shape)} for the sizes {dict(sizes)}; accepted is {wanted}, "
                f"the axes {list(axes)}"
            )
        if value.dtype.kind != np.dtype(dtype).kind:
            raise ExportError(f"draw gives {name!r} of dtype {value.dtype}; accepted is {dtype}")
        found[name] = value.astype(dtype)
    return found, {**sizes, **real}


@dataclass(frozen=True)
class _Drawn:
    """One input of those that are drawn together.

    Attributes:
        draw: the user's function.
        name: the input.
        inputs: axes and element type of all inputs, by name.
        sizes: the size of each axis in the example.
    """

    draw: Draw
    name: str
    inputs: Mapping[str, tuple[Axes, str]]
    sizes: Mapping[str, int]

    def __call__(self, sizes: Mapping[str, int], seed: int) -> Tensor:
        found, _ = draw_all(self.draw, np.random.default_rng(seed), {**self.sizes, **sizes}, self.inputs)
        if self.name not in found:
            raise ExportError(f"draw gives {list(found)} for the sizes {dict(sizes)}, but gave {self.name!r} before")
        return torch.from_numpy(found[self.name])


def with_draw(leaves: Sequence[Leaf], draw: Draw | None) -> list[Leaf]:
    """The leaves, of which those that `draw` gives are drawn by it.

    Raises:
        ExportError: it gives something else than these inputs.
    """
    if draw is None:
        return list(leaves)
    inputs = {leaf.name: (leaf.axes, str(leaf.example.dtype).removeprefix("torch.")) for leaf in leaves}
    sizes = {
        axis: size
        for leaf in leaves
        for axis, size in zip(leaf.axes, leaf.example.shape, strict=True)
        if isinstance(axis, str)
    }
    given, _ = draw_all(draw, np.random.default_rng(0), sizes, inputs, exact=False)
    return [
        replace(leaf, drawn=_Drawn(draw, leaf.name, inputs, sizes)) if leaf.name in given else leaf for leaf in leaves
    ]
