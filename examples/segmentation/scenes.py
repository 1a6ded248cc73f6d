"""Labelled images: digits of one material on another, cut from real digits and photographs, and their superpixels."""

from dataclasses import dataclass

import numpy as np
import skimage.data
from numpy.typing import NDArray
from skimage.segmentation import slic
from skimage.transform import resize
from sklearn.datasets import load_digits

from cellport.cells import neighbours_of

MATERIALS = ("brick", "grass", "gravel")
"""Photographs of scikit-image, and the labels 0, 1 and 2."""
SIDE, CLASSES = 64, len(MATERIALS)
"""Pixels of a side."""
_SEGMENTS = 200
_GLYPHS = (32, 49)
"""Pixels of a side of a digit: from the first, below the second."""


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
    """Make scenes of one to three digits, each of one material, over a ground of one.

    Args:
        count: how many.
        seed: of the random choices.
        held_out: whether digits and parts of photographs are those that no training scene has.
    """
    rng = np.random.default_rng(seed)
    digits = load_digits().images / 16
    chosen = digits[(np.arange(len(digits)) % 5 == 0) == held_out]
    materials = [getattr(skimage.data, name)() / 255 for name in MATERIALS]
    return [_scene(rng, chosen, [part(each, held_out) for each in materials]) for _ in range(count)]


def part(photograph: NDArray[np.float64], held_out: bool) -> NDArray[np.float64]:
    """What a photograph is cut to: its right part is held out."""
    border = int(0.65 * photograph.shape[1])
    return photograph[:, border:] if held_out else photograph[:, :border]


def _scene(rng: np.random.Generator, digits: NDArray[np.float64], materials: list[NDArray[np.float64]]) -> Scene:
    label = int(rng.integers(CLASSES))
    image = _piece(rng, materials[label])
    labels = np.full((SIDE, SIDE), label)
    for _ in range(int(rng.integers(1, 4))):
        side, label = int(rng.integers(*_GLYPHS)), int(rng.integers(CLASSES))
        top, left = rng.integers(0, SIDE - side + 1, 2)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[top : top + side, left : left + side] = resize(rng.choice(digits), (side, side), order=1) > 0.4
        image[mask] = _piece(rng, materials[label])[mask]
        labels[mask] = label
    regions = slic(image, _SEGMENTS, compactness=6, start_label=0).astype(np.int64)
    _, regions = np.unique(regions, return_inverse=True)
    regions = regions.reshape(SIDE, SIDE)
    return Scene(image.astype(np.float32), labels, regions, touching(regions))


def _piece(rng: np.random.Generator, material: NDArray[np.float64]) -> NDArray[np.float64]:
    """A part of a photograph at some scale and of some brightness and contrast, stained: [SIDE, SIDE, 3]."""
    size = int(rng.integers(SIDE, 2 * SIDE + 1))
    row, column = (int(rng.integers(0, length - size + 1)) for length in material.shape)
    piece = resize(material[row : row + size, column : column + size], (SIDE, SIDE), anti_aliasing=True)
    grey = 0.5 + rng.uniform(0.1, 0.2) * (piece - piece.mean()) / piece.std()
    return np.clip(grey[..., None] * rng.uniform(0.4, 1.3, 3), 0, 1)  # type: ignore[no-any-return]


def mean_iou(predicted: list[NDArray[np.int64]], scenes: list[Scene]) -> float:
    """Mean over the classes of intersection over union, over all pixels of all scenes."""
    truth = np.concatenate([scene.labels.ravel() for scene in scenes])
    found = np.concatenate([each.ravel() for each in predicted])
    table = np.bincount(truth * CLASSES + found, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    union = table.sum(0) + table.sum(1) - np.diag(table)
    return float((np.diag(table) / np.maximum(union, 1)).mean())
