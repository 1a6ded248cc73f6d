"""Handwritten digits of 8 by 8 pixels: scikit-learn's, split in their order, distorted, and cut to their ink."""

import math
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

SIDE = 8
CLASSES = 10
_LEVELS = 16
"""Of grey above white, in the files."""


class Digits(NamedTuple):
    """Images float32 [images, SIDE, SIDE], 0 for white to 1 for ink, and what they show, int64 [images]."""

    images: Tensor
    labels: Tensor


class Ragged(NamedTuple):
    """Images of different sizes in one tensor.

    Attributes:
        images: float32 [images, height, width], each image in the corner where both indices are 0.
        sizes: int64 [images, 2], each image's own height and width.
    """

    images: Tensor
    sizes: Tensor


def load() -> Digits:
    """All 1,797 images, in the order of the data set, in which those of one writer mostly follow each other."""
    found = load_digits()
    return Digits(torch.from_numpy(found.images).float() / _LEVELS, torch.from_numpy(found.target).long())


def split(digits: Digits) -> tuple[Digits, Digits]:
    """The first four fifths, and the last fifth: not shuffled, so that hardly anybody wrote in both."""
    first = len(digits.labels) * 4 // 5
    return Digits(*[each[:first] for each in digits]), Digits(*[each[first:] for each in digits])


def distort(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, slant, stretch and shift each image [images, SIDE, SIDE] a little, and write it thicker or thinner."""

    def draw(most: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * most * strength

    angle, slant = draw(math.radians(18)), draw(0.3)
    tall, wide = draw(0.18).exp(), draw(0.225).exp()
    cosine, sine = angle.cos(), angle.sin()
    down, right = draw(1.5 / SIDE), draw(1.5 / SIDE)  # 3/4 of a pixel: the axes of grid_sample are 2 long
    rows = [wide * cosine, slant - sine, right, sine, tall * cosine, down]
    where = F.affine_grid(torch.stack(rows, 1).unflatten(1, (2, 3)), [len(images), 1, SIDE, SIDE], align_corners=False)
    found = F.grid_sample(images.unsqueeze(1), where, align_corners=False).squeeze(1)
    return found ** draw(0.45).exp().reshape(-1, 1, 1)


def cut(images: Tensor) -> Ragged:
    """The smallest rectangle of each image that holds all its ink; an image without any keeps one pixel."""
    inked = images > 0.5 / _LEVELS
    spans = [_span(inked.any(2)), _span(inked.any(1))]
    sizes = torch.stack([last - first + 1 for first, last in spans], 1)
    place = torch.arange(images.shape[1])
    rows, columns = ((first.unsqueeze(1) + place).clamp(max=images.shape[1] - 1) for first, _ in spans)
    number = torch.arange(len(images)).reshape(-1, 1, 1)
    moved = images[number, rows.unsqueeze(2), columns.unsqueeze(1)]
    inside = (place.reshape(1, -1, 1) < sizes[:, 0].reshape(-1, 1, 1)) & (place < sizes[:, 1].reshape(-1, 1, 1))
    height, width = sizes.amax(0).tolist()
    return Ragged((moved * inside)[:, :height, :width], sizes)


def _span(inked: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last place [images] that holds, of bool [images, places]; 0 and 0 if none does."""
    count = inked.shape[1]
    some = inked.any(1)
    last = count - 1 - inked.flip(1).long().argmax(1)
    return inked.long().argmax(1), torch.where(some, last, 0)


def enlarge(ragged: Ragged, height: int, width: int, fill: float) -> Ragged:
    """The same images with more padding around them, which holds `fill`."""
    images, sizes = ragged
    rows, columns = torch.arange(height).reshape(1, -1, 1), torch.arange(width)
    inside = (rows < sizes[:, 0].reshape(-1, 1, 1)) & (columns < sizes[:, 1].reshape(-1, 1, 1))
    larger = F.pad(images, (0, width - images.shape[2], 0, height - images.shape[1]))
    return Ragged(torch.where(inside, larger, fill), sizes)
