"""The proof that images of different sizes may share a run, which a server then relies on."""

from collections.abc import Callable, Mapping

import numpy as np

from cellport.manifest import BATCH, Axes

from .image_sizes import SIZES, ImageSizes
from .runs import Array, Arrays

_IMAGES = ((1.0, 1.0), (0.5, 0.8), (0.75, 0.3))
"""Sizes of the images, as parts of the largest, along the first axis and the others."""

_TOLERANCE = 1e-9


def padded_sizes(
    run: Callable[[Arrays], Arrays],
    inputs: Mapping[str, Axes],
    outputs: Mapping[str, Axes],
    examples: Arrays,
    least: int,
) -> tuple[ImageSizes | None, str]:
    """Return the input of sizes, if images in one batch are proved to be answered as each alone; and what was found.

    Every image is run alone, without padding, and among larger ones with anything around it.

    Args:
        run: the module in float64, of arrays by input name.
        inputs: axes of each input.
        outputs: axes of each output.
        examples: an example of each input.
        least: how many positions one of the result stands for, at most.
    """
    sizes = ImageSizes.among(inputs)
    if sizes is None:
        return None, ""
    if any(array.dtype.kind != "f" for name, array in examples.items() if name != SIZES):
        return None, "images of different sizes run apart: another input holds integers"
    rng = np.random.default_rng(0)
    largest = [(5 + 2 * position) * least + 1 for position in range(len(sizes.axes))]
    images = np.array(
        [[max(int(n * part[min(at, 1)]), 1) for at, n in enumerate(largest)] for part in _IMAGES], examples[SIZES].dtype
    )
    extent = {BATCH: len(images), **dict(zip(sizes.axes, largest, strict=True))}
    whole: Arrays = {SIZES: images}
    for name, axes in inputs.items():
        if name == SIZES:
            continue
        if BATCH not in axes or any(isinstance(axis, str) and axis not in extent for axis in axes):
            return None, f"images of different sizes run apart: input {name!r} has other axes than they"
        shape = [extent[axis] if isinstance(axis, str) else axis for axis in axes]
        whole[name] = rng.normal(size=shape)
    alone = [_cut(whole, inputs, sizes, images, row) for row in range(len(images))]
    try:
        together = run(whole)
        apart = [run(each) for each in alone]
    except Exception as error:
        return None, f"images of different sizes run apart: the module fails on them: {error}"
    for name, axes in outputs.items():
        if BATCH not in axes or any(isinstance(axis, str) and axis not in extent for axis in axes):
            return None, f"images of different sizes run apart: output {name!r} has other axes than they"
        for row, each in enumerate(apart):
            ours, theirs = together[name][_index(axes, sizes, images, row)], each[name]
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE):
                return None, f"images of different sizes run apart: {name!r} of an image depends on the larger ones"
    return sizes, f"{SIZES}: images in one batch proved equal to each alone"


def _cut(whole: Arrays, inputs: Mapping[str, Axes], sizes: ImageSizes, images: Array, row: int) -> Arrays:
    """Return one image alone, at its own size."""
    return {name: array[_index(inputs[name], sizes, images, row)].copy() for name, array in whole.items()}


def _index(axes: Axes, sizes: ImageSizes, images: Array, row: int) -> tuple[slice, ...]:
    """Return where the image of a row is in a tensor."""
    found = []
    for axis in axes:
        if axis == BATCH:
            found.append(slice(row, row + 1))
        elif axis in sizes.axes:
            found.append(slice(0, int(images[row, sizes.axes.index(str(axis))])))
        else:
            found.append(slice(None))
    return tuple(found)
