"""Rows of handwritten digits, composed of scikit-learn's digits, which ship with it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional as F

HEIGHT, WIDTH = 12, 44
SIDE = 8
"""Pixels of a digit, in both directions."""
TRAINED = 1415
"""Where the twelfth form of the data set begins."""


class Digits(NamedTuple):
    """Images float32 [digits, SIDE, SIDE], from 0 to 1, and which digit each is, int64 [digits]."""

    images: NDArray[np.float32]
    values: NDArray[np.int64]


class Rows(NamedTuple):
    """Rows of digits: float32 [rows, HEIGHT, WIDTH] and their numbers int64 [rows]."""

    images: NDArray[np.float32]
    numbers: NDArray[np.int64]


def load() -> tuple[Digits, Digits]:
    """The digits of eleven forms to train on, and those of the last three, held out.

    The data set does not name its writers, but it holds form after form of some 130 digits, which all are to be the
    same: a form begins with 0 to 9 three times (in two of them, one or two of these digits are missing).
    """
    images, values = load_digits(return_X_y=True)
    found = Digits((images.reshape(-1, SIDE, SIDE) / 16).astype(np.float32), values.astype(np.int64))
    return Digits(*(each[:TRAINED] for each in found)), Digits(*(each[TRAINED:] for each in found))


def varied(digits: Digits) -> Digits:
    """The digits as somebody else might have written them: turned, stretched, slanted, shifted and of another strength.

    By torch's random numbers.
    """
    count = len(digits.values)
    turn, slant, shift = 0.12 * torch.randn(count), 0.1 * torch.randn(count), 0.06 * torch.randn(2, count)
    stretch = 1 + 0.08 * torch.randn(2, count)
    across = torch.stack([stretch[0] * turn.cos(), slant - turn.sin(), shift[0]], 1)
    down = torch.stack([turn.sin(), stretch[1] * turn.cos(), shift[1]], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), [count, 1, SIDE, SIDE], align_corners=False)
    images = F.grid_sample(torch.from_numpy(digits.images).unsqueeze(1), grid, align_corners=False).squeeze(1)
    return Digits((images * (1 + 0.1 * torch.randn(count, 1, 1))).numpy(), digits.values)


def draw(digits: Digits, rows: int, rng: np.random.Generator, sizes: Sequence[int] = (2, 3, 4)) -> Rows:
    """Numbers of the given counts of digits, each count equally often, written by drawn images of them.

    The digits stand 0 to 2 pixels apart and up and down by as much as there is room for, and the number starts
    anywhere where it fits.
    """
    which = [np.flatnonzero(digits.values == value) for value in range(10)]
    images = np.zeros((rows, HEIGHT, WIDTH), np.float32)
    numbers = np.zeros(rows, np.int64)
    for row in range(rows):
        count = int(rng.choice(sizes))
        numbers[row] = rng.integers(10 ** (count - 1), 10**count)
        gaps = rng.integers(0, 3, count - 1)
        x = int(rng.integers(WIDTH - count * SIDE - gaps.sum() + 1))
        for value, gap in zip(str(numbers[row]), [*gaps, 0], strict=True):
            y = int(rng.integers(HEIGHT - SIDE + 1))
            images[row, y : y + SIDE, x : x + SIDE] = digits.images[rng.choice(which[int(value)])]
            x += SIDE + int(gap)
    return Rows(images, numbers)
