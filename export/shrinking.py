"""Smaller tables and weights: what an export makes of them, and what that costs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from cellport.errors import ExportError
from cellport.manifest import BATCH, TIME, Manifest, TableSpec

from . import passes
from .capture import Captured
from .drawn import Draw
from .passes.prune_tables import read_counts
from .passes.tables import TableChange, tables_of
from .precision import measure
from .runs import Array, Arrays
from .signature import Leaf
from .verification import Case, feeds
from .writing import external_data

__all__ = ["Shrinking", "TableType", "WeightType"]

TableType = Literal["float32", "float16", "int8"]
WeightType = Literal["float32", "float16", "int8"]

_BATCHES, _STEPS, _SIZES, _ROUNDS = (1, 16), 64, (16, 64), 7
_TYPES = ("float32", "float16", "int8")


class Shrinking:
    """What of a graph is stored smaller.

    Args:
        tables: element type of lookup tables and embeddings.
        block: columns of an int8 table that share a scale; None for whole rows.
        counts: how often each token occurs, by input name: integers [vocabulary] or a file of them.
        weights: element type of weights.
        calibration: inputs by name, without padding, whose activations give int8 products a fixed range.

    Attributes:
        notes: what was changed or left, and why.
        only: the tokens that occur, by input name, where they were counted.
        shared_ranges: the weights whose int8 products find the range of activations in each call, from all its rows.

    Raises:
        ExportError: a type is not accepted.
    """

    def __init__(
        self,
        *,
        tables: TableType,
        block: int | None,
        counts: Mapping[str, Array | str | os.PathLike[str]],
        weights: WeightType,
        calibration: Sequence[Mapping[str, Array]] = (),
    ) -> None:
        for name, value in (("tables", tables), ("weights", weights)):
            if value not in _TYPES:
                raise ExportError(f"{name} is {value!r}; accepted: {', '.join(map(repr, _TYPES))}")
        if not isinstance(counts, Mapping):
            raise ExportError(f"counts is {counts!r}; accepted: a mapping from input name to counts or to their file")
        self._tables: TableType = tables
        self._block = block
        self._counts = counts
        self._weights: WeightType = weights
        if calibration and weights != "int8":
            raise ExportError(f"calibration is given, but weights is {weights!r}; accepted: with weights='int8' only")
        self._calibration = calibration
        self._changes: dict[str, TableChange] = {}
        self._unchanged = False
        self.notes: list[str] = []
        self.only: dict[str, Array] = {}
        self.shared_ranges: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the file has to compute what the module computes, for the tokens that occur."""
        return self._unchanged or self._tables == self._weights == "float32"

    def source(self) -> dict[str, Any]:
        """Fields of the manifest's `Source`."""
        return {"weights": self._weights, "tables": self._tables, "pruned": tuple(self._counts)}

    def run(self, graph: ir.Model, captured: Captured) -> None:
        """Make a graph smaller, in place; its inputs have their names."""
        if self.exact and not self._counts:
            return
        if self._counts:
            counts = {name: self._count(graph, name) for name in self._counts}
            for name, each in counts.items():
                if not np.any(each):
                    raise ExportError(
                        f"the counts of input {name!r} are all 0; accepted: a token that occurs, at least"
                    )
            self._run_tables(graph, passes.PruneTables(counts))
            self.only = {name: np.flatnonzero(each) for name, each in counts.items()}
        modified = False
        if self._tables != "float32":
            modified |= self._run_tables(graph, passes.TableTypes(self._tables, self._block))
        if self._weights == "float16":
            modified |= self._run(graph, passes.HalfWeights())
        elif self._weights == "int8":
            examples = [_completed(each, captured) for each in self._calibration]
            made = passes.Int8Weights(passes.calibrate(graph, examples) if examples else {})
            modified |= self._run(graph, made)
            self.shared_ranges = tuple(made.dynamic)
            if examples and made.dynamic:
                self.notes.append(
                    "calibration gives no range to the products with "
                    + ", ".join(map(repr, made.dynamic))
                    + ", which are in an LSTM operator or in a body inside of another: they find it in each call"
                )
        self._unchanged = not modified
        if not modified and (self._tables, self._weights) != ("float32", "float32"):
            self.notes.append(
                f"weights={self._weights!r}, tables={self._tables!r}: nothing in this graph is large enough to gain by "
                "it, so it stays in float32"
            )
        passes.RemoveDead()(graph)
        common.NameFixPass()(graph)

    def _run_tables(self, graph: ir.Model, made: Any) -> bool:
        modified = self._run(graph, made)
        self._changes |= {change.name: change for change in made.changes}
        return modified

    def _run(self, graph: ir.Model, made: Any) -> bool:
        result = made(graph)
        self.notes.extend(made.notes)
        return bool(result.modified)

    def _count(self, graph: ir.Model, name: str) -> Array:
        given = self._counts[name]
        if not isinstance(given, str | os.PathLike):
            return np.asarray(given)
        rows = [len(table.array) for table in tables_of(graph)]
        if not rows:
            raise ExportError(f"counts are given for input {name!r}, but the graph has no table")
        return read_counts(Path(given), max(rows))

    def tables_of(self, folded: Sequence[passes.FoldedTable]) -> list[TableSpec]:
        """The lookup tables as they are stored now."""
        made = []
        for table in folded:
            change = self._changes.get(table.name)
            dtype, size = (table.dtype, table.bytes) if change is None else (change.dtype, change.bytes)
            made.append(
                TableSpec(name=table.name, vocabulary=table.vocabulary, width=table.width, dtype=dtype, bytes=size)
            )
        return made

    def keep(self, graph: ir.Model, folder: Path) -> Path | None:
        """Write the graph as it is before it is made smaller, to compare its speed; None if it stays as it is."""
        if self.exact and not self._counts:
            return None
        path = folder / "wide.onnx"
        ir.save(graph, path, external_data=external_data(path).name)
        return path

    def compare_speed(
        self, wide: Path, small: Path, manifest: Manifest, examples: Mapping[str, Array], draw: Draw | None = None
    ) -> list[str]:
        """Time both files in interleaved rounds, with one thread, and say which is faster on this machine."""
        if self._unchanged and not self._counts:
            return []
        given = self._timed(manifest, examples, draw)
        ratios = measure({"wide": wide, "small": small}, given, rounds=_ROUNDS)["small"]
        told = [
            (f"{ratio:.2f} times faster" if ratio >= 1 else f"{1 / ratio:.2f} times SLOWER")
            + f" at {_sizes_told(manifest, given[number])}"
            for number, ratio in ratios.items()
        ]
        types = f"weights {self._weights}, tables {self._tables}" + (", pruned" if self._counts else "")
        return [
            f"{types}: {' and '.join(told)} than float32, on this machine, one thread, with the same form of each layer"
        ]

    def _timed(self, manifest: Manifest, examples: Mapping[str, Array], draw: Draw | None) -> dict[int, Arrays]:
        """Inputs to time: of small and large batches, or of small and large sizes of all axes if there is no batch."""
        lengths = manifest.lengths is not None
        if {BATCH, TIME}.intersection(axis for each in manifest.inputs for axis in each.axes):
            cases = [Case(batch, _STEPS, lengths, True, None, batch) for batch in _BATCHES]
            return {case.batch: feeds(manifest, case, examples, self.only, draw)[0] for case in cases}
        case = Case(1, 1, lengths, True, None, 0)
        return {size: feeds(manifest, case, examples, self.only, draw, (size,))[0] for size in _SIZES}


def _sizes_told(manifest: Manifest, given: Arrays) -> str:
    """The size of each named axis of some inputs, such as `batch 16, 64 steps`."""
    sizes = {
        axis: size
        for each in manifest.inputs
        if each.name in given
        for axis, size in zip(each.axes, given[each.name].shape, strict=True)
        if isinstance(axis, str)
    }
    told = [f"{size} steps" if axis == TIME else f"{axis} {size}" for axis, size in sizes.items()]
    return ", ".join(told) or "its one size"


def _completed(given: Mapping[str, Array], captured: Captured) -> dict[str, Array]:
    """Inputs with states at their initial value and lengths that cover the whole time axis where they are left out.

    Raises:
        ExportError: another input is missing, or one is not what the model takes.
    """
    known = {leaf.name: leaf for leaf in captured.leaves()}
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise ExportError(f"calibration holds {given!r:.200}; accepted: mappings from {sorted(known)} to arrays")
    contract, feeds_ = captured.contract(), {name: _array(value, known[name]) for name, value in given.items()}
    missing = [leaf.name for leaf in captured.inputs if leaf.name not in given and leaf.name != captured.lengths]
    if missing:
        raise ExportError(f"an example of calibration lacks the input {missing[0]!r}; it has {sorted(given)}")
    sizes: dict[str, int] = {}
    for name, value in feeds_.items():
        for axis, size in zip(known[name].axes, value.shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise ExportError(
                    f"an example of calibration has {size} along {axis!r} in {name!r} and {sizes[axis]} in another "
                    "input"
                )
    batch = contract.batch(feeds_)
    if captured.lengths is not None:
        feeds_.setdefault(captured.lengths, np.full(batch, contract.steps(feeds_)))
    for state in captured.states:
        shape = [batch if axis == BATCH else size for axis, size in zip(state.axes, state.initial.shape, strict=True)]
        feeds_.setdefault(state.input, np.broadcast_to(state.initial.numpy(), shape).copy())
    return feeds_


def _array(given: object, leaf: Leaf) -> Array:
    """An input of a calibration set as the model takes it."""
    value = np.asarray(given)
    wanted = leaf.example.numpy().dtype
    said = f"calibration gives {leaf.name!r} as {value.dtype} {list(value.shape)}"
    fits = len(value.shape) == len(leaf.axes) and all(
        size > 0 if isinstance(axis, str) else size == axis for axis, size in zip(leaf.axes, value.shape, strict=False)
    )
    if not fits or not np.can_cast(value.dtype, wanted, "same_kind"):
        raise ExportError(f"{said}; accepted: {wanted} {list(leaf.axes)}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ExportError(f"{said}, with values that are not finite; accepted: finite ones")
    if leaf.rows is not None and not (value.min() >= 0 and value.max() < leaf.rows):
        raise ExportError(f"{said}, from {value.min()} to {value.max()}; accepted: 0 to {leaf.rows - 1}")
    return value.astype(wanted)
