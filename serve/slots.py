"""Numbers of the places in which states are kept; the states themselves are in `cellport.serve.arena`."""

import heapq
import threading

INITIAL = 0
"""The slot that holds the initial values, and is never given out."""


class Slots:
    """Gives out numbers, the smallest free one first, so that the memory behind them stays dense. Thread-safe."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = INITIAL + 1
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """How many are given out."""
        return self._next - 1 - len(self._free)

    def take(self) -> int:
        """Give out a number, at least 1."""
        with self._lock:
            if self._free:
                return heapq.heappop(self._free)
            self._next += 1
            return self._next - 1

    def give(self, slot: int) -> None:
        """Take a number back."""
        with self._lock:
            heapq.heappush(self._free, slot)

    def __repr__(self) -> str:
        return f"<Slots {self.used} used>"


def powers_of_two(maximum: int) -> list[int]:
    """Return 1, 2, 4, … up to the first that is at least `maximum`."""
    found = [1]
    while found[-1] < maximum:
        found.append(2 * found[-1])
    return found
