"""What a run of a model costs: seconds as a function of rows and steps, measured when it is loaded and ever after.

A run takes a fixed time and, for each step, a time that grows with the rows: hardly at first, where the machine waits
for memory, and in proportion from where it is full of arithmetic. Both are kept for rows of powers of two.
"""

import bisect
import math
from collections.abc import Callable, Sequence

from .slots import powers_of_two

_STEPS = 17
"""Steps of the longer of two runs whose difference is the time of a step."""

_WEIGHT = 0.1
"""Weight of the newest run in the correction; a machine that is shared has outliers."""

_LIMITS = 0.25, 4.0
"""Least and greatest factor that one run may stand for in the correction."""

_LEAST = 20e-6
"""Seconds that a run takes at least besides its steps."""

_ENOUGH = 1.25
"""How many times the least time a row may take, for its run to be efficient."""

_REMEMBERED = 1024
"""Answers to how many rows are enough that are kept."""

LONGER = 0.95
"""How many of the steps that the fastest chunk does in a second a longer one must do to be taken: what it does not cut
needs no further run, nor a place for its states."""

_FIXED, _STEP, _ROW = 50e-6, 20e-6, 2e-6
"""Seconds of a run, of a step and of a row in a step, of a model that nobody has measured."""


class CostModel:
    """The time of a run.

    Args:
        maximum: the most rows that it is asked for in earnest; beyond, time is taken to grow in proportion.

    Attributes:
        usual: rows of the newest runs, on average.
        usual_seconds: what they took, on average; infinite before there was one.
        measured: whether the figures come from the model itself, and are not the first guess.
    """

    def __init__(self, maximum: int = 64) -> None:
        self._rows = powers_of_two(maximum)
        self._fixed = [_FIXED] * len(self._rows)
        self._step = [_STEP + rows * _ROW for rows in self._rows]
        self._alone = list(zip(self._fixed, self._step, strict=True))
        self._enough: dict[int, int] = {}
        self.usual = 1.0
        self.usual_seconds = math.inf
        self.measured = False

    def __repr__(self) -> str:
        told = ", ".join(
            f"{rows}: {fixed * 1e6:.0f} + {step * 1e6:.1f} a step"
            for rows, fixed, step in zip(self._rows, self._fixed, self._step, strict=True)
        )
        return f"<CostModel of microseconds by rows: {told}>"

    def step_seconds(self, rows: int) -> float:
        """Return the time of one step of `rows` rows."""
        return self._at(self._step, rows)

    def seconds(self, rows: int, steps: int) -> float:
        """Return the time of a run of `rows` rows and `steps` steps."""
        return self._at(self._fixed, rows) + steps * self._at(self._step, rows)

    def sizes(self, *, timed: bool) -> list[tuple[int, int]]:
        """Return the rows and steps that `measure` asks for."""
        return [(rows, steps) for rows in self._rows for steps in ((1, _STEPS) if timed else (1,))]

    def measure(self, run: Callable[[int, int], float | None], *, timed: bool) -> None:
        """Measure the model.

        Args:
            run: runs it with some rows and steps and returns the seconds; None once no time is left for measuring.
            timed: it has a time axis.
        """
        for index, rows in enumerate(self._rows):
            short = run(rows, 1)
            long = run(rows, _STEPS) if timed and short is not None else short
            if short is None or long is None:
                self._extend(index)
                break
            step = max((long - short) / (_STEPS - 1), 1e-7) if timed else short
            fixed = max(short - step, _LEAST) if timed else 0.0
            if index:  # more rows never take less; a measurement that says so was disturbed
                step, fixed = max(step, self._step[index - 1]), max(fixed, self._fixed[index - 1])
            self._step[index], self._fixed[index] = step, fixed
            self.measured = True
        self._alone = list(zip(self._fixed, self._step, strict=True))
        self._enough.clear()
        self.usual = 1.0
        self.usual_seconds = math.inf

    def enough(self, steps: int) -> int:
        """Return the rows from which on more of them hardly make a run of so many steps more efficient.

        By what was measured when nothing else ran: small runs take place beside others, which makes them look slow
        beside large ones, and so would make runs larger and larger until there is one at a time.
        """
        found = self._enough.get(steps)
        if found is None:
            each = [(fixed + steps * step) / rows for rows, (fixed, step) in zip(self._rows, self._alone, strict=True)]
            found = next(rows for rows, time in zip(self._rows, each, strict=True) if time <= _ENOUGH * min(each))
            if len(self._enough) >= _REMEMBERED:
                self._enough.clear()
            self._enough[steps] = found
        return found

    def observe(self, rows: int, steps: int, seconds: float) -> None:
        """Correct the figures by a run that took place.

        A run that takes longer than expected may have done so at its beginning and end or in its steps. Each is
        corrected as far as it matters for the run, so that short runs and long ones together tell them apart.
        """
        self.usual += _WEIGHT * (rows - self.usual)
        known = self.usual_seconds
        self.usual_seconds = seconds if known == math.inf else known + _WEIGHT * (seconds - known)
        expected = self.seconds(rows, steps)
        wrong = min(max(seconds, expected * _LIMITS[0]), expected * _LIMITS[1]) - expected
        near = bisect.bisect_left(self._rows, rows)
        for index in {max(near - 1, 0), min(near, len(self._rows) - 1)}:
            fixed, taken = self._fixed[index], steps * self._step[index]
            gain = _WEIGHT * wrong / expected * (fixed + taken) / (fixed * fixed + taken * taken)
            self._fixed[index] *= 1 + gain * fixed
            self._step[index] *= 1 + gain * taken

    def _extend(self, known: int) -> None:
        """Carry the last measured figures on to the rows that were not reached, in proportion."""
        if known:
            for index in range(known, len(self._rows)):
                self._fixed[index] = self._fixed[known - 1]
                self._step[index] = self._step[known - 1] * self._rows[index] / self._rows[known - 1]

    def _at(self, figures: Sequence[float], rows: int) -> float:
        known = self._rows
        if rows >= known[-1]:
            return figures[-1] * rows / known[-1]
        index = bisect.bisect_right(known, rows)
        low, high = known[index - 1], known[index]
        part = (rows - low) / (high - low)
        return figures[index - 1] * (1 - part) + figures[index] * part


def best_chunk(remaining: Sequence[tuple[int, int]], costs: CostModel, *, limit: float) -> int:
    """Return for how many steps rows of different remaining lengths are best run together.

    The longest that does nearly as many of the wanted steps in a second as any: a short chunk pays the fixed time of a
    run more often, and a long one computes padding for the rows that end in it. Rows of one length are run to their
    end, within the limit.

    Args:
        remaining: for each request, its rows and the steps that they still have to do.
        costs: of the model.
        limit: seconds that a run may take, so that others can join and leave; overstepped only where a run would
            otherwise be mostly its fixed time.

    Returns:
        Steps, at least 1.
    """
    rows = sum(each[0] for each in remaining)
    step = costs.step_seconds(rows)
    fixed = costs.seconds(rows, 0)
    longest = max(steps for _, steps in remaining)
    most = max(1, min(longest, int(max(limit - fixed, 4 * fixed) / step)))
    shortest = min(steps for _, steps in remaining)
    if shortest >= most:
        return most
    found: list[tuple[int, float]] = []
    ended, alive = 0, rows  # steps of the rows that end before the candidate, and the rows that do not
    for count, steps in sorted(remaining, key=_steps):
        chunk = min(steps, most)
        found.append((chunk, (ended + alive * chunk) / (fixed + chunk * step)))
        if steps >= most:
            break
        ended += count * steps
        alive -= count
    least = LONGER * max(speed for _, speed in found)
    return max(chunk for chunk, speed in found if speed >= least)


def _steps(each: tuple[int, int]) -> int:
    return each[1]
