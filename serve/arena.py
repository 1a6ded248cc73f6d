"""The states of all lanes of one model, in arrays that a run gathers its rows from and scatters them to."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from cellport.manifest import BATCH, StateSpec

from .codec import Array
from .slots import INITIAL

_FIRST = 64
_GROWTH = 1.5


class Arena:
    """States by slot.

    A state is kept with the axes that the graph has, and slots in place of rows: a gather gives just what the graph
    takes. A model whose states have dynamic axes of their own (``uniform`` is False) keeps each slot's arrays apart.

    Thread-safe: a gather or scatter sees all states of a slot or none.

    Args:
        states: of the model, by input name.

    Attributes:
        uniform: every state of the model has one shape, whatever the request.
        row_bytes: bytes of the states of one slot, where they are uniform.
    """

    def __init__(self, states: Mapping[str, StateSpec]) -> None:
        self._states = dict(states)
        self._axes = {name: state.batch_axis for name, state in states.items()}
        self.uniform = all(axis == BATCH or isinstance(axis, int) for state in states.values() for axis in state.axes)
        self._lock = threading.Lock()
        self._arrays: dict[str, Array] = {}
        self._apart: dict[int, dict[str, Array]] = {}
        self._initial = {name: state.initial_value() for name, state in states.items()}
        self.row_bytes = sum(each.nbytes for each in self._initial.values())
        self._capacity = 0

    def gather(self, slots: Sequence[int]) -> dict[str, Array]:
        """Return the states of some slots, as the graph takes them: the slots' order is the order of rows.

        A slot that nothing was written to holds what another lane left there; `INITIAL` holds the initial values.
        """
        if not self.uniform:
            return self._gather_apart(slots)
        index = np.asarray(slots, np.intp)
        with self._lock:
            self._reserve(int(index.max(initial=0)))
            return {name: array.take(index, self._axes[name]) for name, array in self._arrays.items()}

    def scatter(self, slots: Sequence[int], states: Mapping[str, Array], rows: Sequence[int] | None = None) -> None:
        """Write states.

        Args:
            slots: where to.
            states: by input name, as the graph returns them.
            rows: which rows of `states`, one for each slot; None for all of them.
        """
        with self._lock:
            if not self.uniform:
                for position, slot in enumerate(slots):
                    row = position if rows is None else rows[position]
                    self._apart[slot] = {name: array.take([row], self._axes[name]) for name, array in states.items()}
                return
            index = np.asarray(slots, np.intp)
            self._reserve(int(index.max(initial=0)))
            for name, array in states.items():
                axis = self._axes[name]
                part = array if rows is None else array.take(np.asarray(rows, np.intp), axis)
                self._arrays[name][(slice(None),) * axis + (index,)] = part

    def write(self, slot: int, states: Mapping[str, Array]) -> None:
        """Write batch-first states of one row; what is not given becomes the initial value."""
        given = {
            name: np.moveaxis(states[name], 0, self._axes[name]) if name in states else initial
            for name, initial in self._initial.items()
        }
        self.scatter([slot], given)

    def read(self, slot: int) -> dict[str, Array]:
        """Return the states of one slot, batch-first with one row, as copies."""
        found = self.gather([slot])
        return {name: np.moveaxis(array, self._axes[name], 0).copy() for name, array in found.items()}

    def bytes_of(self, slots: int) -> int:
        """Return the bytes of the states in so many slots: those in use, where states have no fixed size."""
        if self.uniform:
            return slots * self.row_bytes
        with self._lock:
            return sum(array.nbytes for states in self._apart.values() for array in states.values())

    def forget(self, slot: int) -> None:
        """Let go of what a slot holds, if that takes memory of its own."""
        if not self.uniform:
            with self._lock:
                self._apart.pop(slot, None)

    def _gather_apart(self, slots: Sequence[int]) -> dict[str, Array]:
        with self._lock:
            found = [self._initial if slot == INITIAL else self._apart[slot] for slot in slots]
        if len(found) == 1:
            return dict(found[0])
        return {name: np.concatenate([each[name] for each in found], axis) for name, axis in self._axes.items()}

    def _reserve(self, slot: int) -> None:
        """Make room for a slot; memory that no slot has been written to is not taken from the machine."""
        if slot < self._capacity:
            return
        capacity = max(_FIRST, slot + 1, int(self._capacity * _GROWTH))
        for name, initial in self._initial.items():
            axis = self._axes[name]
            shape = list(initial.shape)
            shape[axis] = capacity
            array = np.empty(shape, initial.dtype)
            place = (slice(None),) * axis
            if self._capacity:
                array[(*place, slice(0, self._capacity))] = self._arrays[name]
            else:
                array[(*place, slice(0, 1))] = initial
            self._arrays[name] = array
        self._capacity = capacity
