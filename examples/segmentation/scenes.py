"""Labelled images: scikit-learn's handwritten digits on scikit-image's photographs, cut into superpixels."""

from dataclasses import dataclass

import numpy as np
import skimage.data
from numpy.typing import NDArray
from skimage.segmentation import slic
from skimage.transform import resize
from sklearn.datasets import load_digits

from cellport.cells import neighbours_of

DIGITS = (0, 1, 4, 7)
SIDE, CLASSES = 64, 1 + len(DIGITS)
"""Pixels of a side; the ground (label 0) and the digits (labels 1 to 4)."""
_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
_SEGMENTS = 200
_GLYPH = 26


@dataclass(frozen=True)
class Scene:
    """One image.

    Attributes:
        image: [SIDE, SIDE, 3], 0 to 1.
        labels: [SIDE, SIDE], the class of each pixel.
        regions: [SIDE, SIDE], the superpixel of each pixel, from 0 on.
        neighbours: [regions, degree], the superpixels that each touches.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int64]
    regions: NDArray[np.int64]
    neighbours: NDArray[np.int64]

    @property
    def nodes(self) -> int:
        """Number of superpixels."""
        return len(self.neighbours)

    def mean(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean over each superpixel of values [SIDE, SIDE, n]: [regions, n]."""
        flat = values.reshape(-1, values.shape[-1])
        sums = np.zeros((self.nodes, flat.shape[1]))
        np.add.at(sums, self.regions.ravel(), flat)
        return (sums / np.bincount(self.regions.ravel())[:, None]).astype(np.float32)

    def counts(self) -> NDArray[np.float32]:
        """Pixels of each class in each superpixel, [regions, CLASSES]."""
        pairs = self.regions.ravel() * CLASSES + self.labels.ravel()
        return np.bincount(pairs, minlength=self.nodes * CLASSES).reshape(-1, CLASSES).astype(np.float32)


def touching(regions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbours of superpixels: those that share a boundary (the four neighbours of a pixel)."""
    sideways = np.stack([regions[:, :-1].ravel(), regions[:, 1:].ravel()], 1)
    upwards = np.stack([regions[:-1].ravel(), regions[1:].ravel()], 1)
    pairs = np.concatenate([sideways, upwards])
    return neighbours_of(np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0), int(regions.max()) + 1)


def compose(count: int, seed: int, held_out: bool) -> list[Scene]:
    """Make scenes of one to three digits.

    Args:
        count: how many.
        seed: of the random choices.
        held_out: whether digits and parts of photographs are those that no training scene has.
    """
    rng = np.random.default_rng(seed)
    digits = load_digits()
    of_test = np.arange(len(digits.target)) % 5 == 0
    chosen = np.flatnonzero((of_test == held_out) & np.isin(digits.target, DIGITS))
    grounds = [getattr(skimage.data, name)() for name in _PHOTOGRAPHS]
    return [_scene(rng, digits, chosen, grounds, held_out) for _ in range(count)]


def _scene(
    rng: np.random.Generator,
    digits: object,
    chosen: NDArray[np.int64],
    grounds: list[NDArray[np.uint8]],
    held_out: bool,
) -> Scene:
    ground = grounds[rng.integers(len(grounds))]
    border = int(0.7 * ground.shape[1])  # the right part of each photograph is held out
    part = ground[:, border:] if held_out else ground[:, :border]
    size = int(rng.integers(64, min(128, *part.shape[:2])))
    row, column = (int(rng.integers(0, part.shape[axis] - size + 1)) for axis in (0, 1))
    image = resize(part[row : row + size, column : column + size], (SIDE, SIDE), anti_aliasing=True)
    labels = np.zeros((SIDE, SIDE), np.int64)
    for _ in range(int(rng.integers(1, 4))):
        digit = int(rng.choice(chosen))
        glyph = resize(digits.images[digit] / 16, (_GLYPH, _GLYPH), order=1)  # type: ignore[attr-defined]
        top, left = rng.integers(0, SIDE - _GLYPH + 1, 2)
        place = (slice(top, top + _GLYPH), slice(left, left + _GLYPH))
        if labels[place].any():
            continue
        ink = rng.random(3)
        stroke = (np.clip(2.5 * glyph - 0.75, 0, 1) * 0.9)[..., None]
        image[place] = image[place] * (1 - stroke) + ink * stroke
        labels[place][glyph > 0.5] = 1 + DIGITS.index(digits.target[digit])  # type: ignore[attr-defined]
    regions = slic(image, _SEGMENTS, compactness=6, start_label=0).astype(np.int64)
    _, regions = np.unique(regions, return_inverse=True)
    regions = regions.reshape(SIDE, SIDE)
    return Scene(image.astype(np.float32), labels, regions, touching(regions))


def mean_iou(predicted: list[NDArray[np.int64]], scenes: list[Scene]) -> float:
    """Mean over the classes of intersection over union, over all pixels of all scenes."""
    truth = np.concatenate([scene.labels.ravel() for scene in scenes])
    found = np.concatenate([each.ravel() for each in predicted])
    table = np.bincount(truth * CLASSES + found, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    union = table.sum(0) + table.sum(1) - np.diag(table)
    return float((np.diag(table) / np.maximum(union, 1)).mean())
