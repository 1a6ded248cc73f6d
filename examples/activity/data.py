"""BasicMotions: four activities, as the accelerometer and the gyroscope of a watch saw them, and series made of them.

The recordings are in the package sktime, whose files are read and which is not imported.
"""

from importlib.metadata import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ACTIVITIES = ["standing", "walking", "running", "badminton"]
CHANNELS = 6
"""Accelerometer x, y, z and gyroscope x, y, z."""
RATE = 10
"""Steps a second."""


class Recordings(NamedTuple):
    """Recordings of one activity each: `x` float32 [recordings, steps, CHANNELS] and `y` int64 [recordings]."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


class Series(NamedTuple):
    """Series of changing activities: `x` float32 [series, steps, CHANNELS] and `y` int64 [series, steps]."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def load(part: str) -> Recordings:
    """The recordings of the archive's part "TRAIN" or "TEST": 40 of 10 seconds each, 10 of every activity."""
    name = f"sktime/datasets/data/BasicMotions/BasicMotions_{part}.ts"
    path = Path(str(next(each for each in files("sktime") or () if str(each) == name).locate()))
    lines = [line for line in path.read_text("utf-8").splitlines() if line and line[0] not in "#@"]
    x, y = [], []
    for line in lines:
        *channels, activity = line.split(":")
        x.append([[float(value) for value in channel.split(",")] for channel in channels])
        y.append(ACTIVITIES.index(activity.lower()))
    return Recordings(np.array(x, np.float32).transpose(0, 2, 1), np.array(y))


def draw(recordings: Recordings, series: int, steps: int, rng: np.random.Generator) -> Series:
    """Series of pieces of 3 to 10 seconds, each of another activity than the one before, from drawn recordings."""
    x = np.zeros((series, steps, CHANNELS), np.float32)
    y = np.zeros((series, steps), np.int64)
    whole = recordings.x.shape[1]
    for row in range(series):
        done, activity = 0, -1
        while done < steps:
            chosen = rng.choice(np.flatnonzero(recordings.y != activity))
            size = min(int(rng.integers(3 * RATE, whole + 1)), steps - done)
            start = int(rng.integers(whole - size + 1))
            x[row, done : done + size] = recordings.x[chosen, start : start + size]
            activity = recordings.y[chosen]
            y[row, done : done + size] = activity
            done += size
    return Series(x, y)


def join(recordings: Recordings, pieces: int, rng: np.random.Generator) -> Series:
    """Every recording once and whole, in series of so many pieces, each of another activity than the one before."""
    while True:
        order = rng.permutation(len(recordings.y)).reshape(-1, pieces)
        if (np.diff(recordings.y[order]) != 0).all():
            break
    steps = recordings.x.shape[1]
    return Series(
        recordings.x[order].reshape(len(order), pieces * steps, CHANNELS), recordings.y[order].repeat(steps, 1)
    )
