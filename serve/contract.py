"""What a model accepts of one request, by its manifest.

A request is batch-first in every tensor: where the graph has the batch axis elsewhere, as in a state of
``[layers, batch, hidden]``, a request has it in front. `Contract.bind` checks a request and puts it into that form;
`cellport.serve.ticks` joins bound requests and moves the axes to where the graph has them.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np

from cellport.errors import InvalidRequestError
from cellport.manifest import BATCH, TIME, Axes, InputSpec, Manifest, StateSpec
from cellport.unions import union_axes

from .codec import Array, datatype_of, dtype_of, names

_FILLED = ("lengths", "sizes")
"""Roles of inputs that the server fills in where a request leaves them out."""

_PLANS = 1024
"""Forms of requests whose checks are remembered."""

_FEW = 64


@functools.cache
def batch_first(axes: Axes) -> Axes:
    """Return `axes` with the batch axis in front, as they are on the wire."""
    if BATCH not in axes:
        return axes
    return (BATCH, *(axis for axis in axes if axis != BATCH))


class Layout(NamedTuple):
    """Where the axes of a tensor are.

    Attributes:
        batch: the batch axis in the graph; None if there is none.
        time: the time axis of the batch-first tensor; None if there is none.
        wire: the axes of the batch-first tensor.
        fill: what its padding is filled with.
    """

    batch: int | None
    time: int | None
    wire: Axes
    fill: int

    @classmethod
    def of(cls, axes: Axes, fill: int = 0) -> Self:
        """Return the layout of a tensor with these axes in the graph."""
        wire = batch_first(axes)
        return cls(axes.index(BATCH) if BATCH in axes else None, wire.index(TIME) if TIME in wire else None, wire, fill)


@dataclass(kw_only=True, eq=False, slots=True)
class Bound:
    """A request that fits its model.

    Attributes:
        rows: rows of the request.
        time: steps of the request; None for a model whose inputs have no time axis.
        inputs: batch-first arrays by name, without lengths.
        lengths: valid steps of each row, `[rows]`; None where the whole time axis is valid.
        extents: sizes of each row along the axes that may be padded, `[rows, axes]`; None where the rows fill them.
        states: batch-first states that the request gives, by input name.
        outputs: names that the answer holds, in order.
        squeeze: the request left the time axis out, so the answer does.
        sizes: sizes of the dynamic axes other than batch and time.
        size: bytes of the inputs.
        keys: what is known of all requests of this form, by whom it was found out.
    """

    rows: int
    time: int | None
    inputs: Mapping[str, Array]
    lengths: Array | None
    states: Mapping[str, Array]
    outputs: tuple[str, ...]
    squeeze: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    extents: Array | None = None
    size: int = 0
    keys: dict[Hashable, Hashable] | None = None


@dataclass(kw_only=True, eq=False, slots=True)
class _Plan:
    """What is known of a request by its names, element types and shapes.

    `inputs` are names, the index that puts back an axis that is left out, and the specification if it has a range.
    `plain` says that the request's arrays are the inputs as they are.
    """

    rows: int
    time: int | None
    inputs: Sequence[tuple[str, tuple[slice | None, ...] | None, InputSpec | None]]
    states: Sequence[str]
    lengths: str | None
    extents: str | None
    outputs: tuple[str, ...]
    squeeze: bool
    sizes: Mapping[str, int]
    plain: bool
    size: int
    keys: dict[Hashable, Hashable]


class Contract:
    """The checks that a manifest implies.

    Args:
        manifest: the model's.

    Attributes:
        manifest: the same.
        inputs: specifications of inputs by name.
        states: specifications of states by input name.
        state_outputs: specifications of states by output name.
        recurrent: sequences can be run: the model is causal and has states.
        splits: inputs and outputs have a batch axis, so rows of different requests can be joined and told apart again.
        rowwise: every input has a batch axis.
        pads: requests of different time can be joined by padding.
        joins: axes besides time along which requests of different size can be joined by padding.
        unites: axes along which requests are put one behind the other, where they can be run as one graph.
        cuts: a request can be run in chunks, and others can join and leave in between.
        concatenated: names of the outputs whose chunks, one after the other, make the whole.
        fetchable: names of all outputs, states among them.
        input_layouts: of the inputs, without states, by name.
        output_layouts: of the outputs, states among them, by name.
        lengths: the input of that role; None if there is none.
        sizes: the input of that role; None if there is none.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.inputs: dict[str, InputSpec] = {each.name: each for each in manifest.inputs}
        self.states: dict[str, StateSpec] = {each.input: each for each in manifest.states}
        self.state_outputs: dict[str, StateSpec] = {each.output: each for each in manifest.states}
        self.outputs = {each.name: each for each in manifest.outputs}
        self.recurrent = manifest.causal and bool(manifest.states)
        self.splits = all(BATCH in each.axes for each in manifest.outputs) and any(
            BATCH in each.axes for each in manifest.inputs
        )
        self._indices = [each for each in manifest.inputs if each.index_of is not None]
        if any(each.index_of == BATCH for each in self._indices):
            self.splits = False  # rows know of each other
        self.rowwise = all(BATCH in each.axes for each in manifest.inputs)
        self.concatenated = frozenset(each.name for each in manifest.outputs if each.chunking == "concatenate")
        self.fetchable = (*self.outputs, *self.state_outputs)
        timed = [each for each in manifest.inputs if TIME in each.axes]
        self.cuts = (
            manifest.causal
            and self.splits
            and bool(timed)
            and all(BATCH in each.axes for each in timed)
            and all(each.name in self.concatenated or TIME not in each.axes for each in manifest.outputs)
        )
        known = {BATCH, TIME}
        for each in manifest.inputs:
            known.update(axis for axis in each.axes if isinstance(axis, str))
        # An output axis of its own name may depend on the padded time in a way that cannot be undone.
        self.pads = manifest.lengths is not None and all(
            isinstance(axis, int) or axis in known for each in manifest.outputs for axis in each.axes
        )
        sizes = manifest.sizes
        self._sizes_name = sizes.name if sizes is not None else None
        self.joins: tuple[str, ...] = ()
        if (
            sizes is not None
            and self.splits
            and all(isinstance(a, int) or a in known for e in manifest.outputs for a in e.axes)
        ):
            self.joins = sizes.of
        self.unites = union_axes(manifest)
        self.input_layouts = {each.name: Layout.of(each.axes, padding(each)) for each in manifest.inputs}
        self.output_layouts = {each.name: Layout.of(each.axes) for each in manifest.outputs}
        self.output_layouts |= {name: Layout.of(each.axes) for name, each in self.state_outputs.items()}
        self.lengths = manifest.lengths
        self.sizes = sizes
        self._plans: dict[Hashable, _Plan] = {}
        self._fetches: dict[tuple[tuple[str, ...], bool, bool], list[str]] = {}
        self._lengths_name = manifest.lengths.name if manifest.lengths is not None else None

    def bind(
        self,
        arrays: Mapping[str, Array],
        outputs: Sequence[str] = (),
        *,
        sequences: int = 0,
        form: Hashable = None,
    ) -> Bound:
        """Check a request.

        Args:
            arrays: batch-first tensors by name: inputs, and states by their input names.
            outputs: names asked for; empty for every output that is not a state.
            sequences: of how many sequences the request holds steps, one row each; such a request may leave out the
                time axis. 0 for a request outside of sequences.
            form: the same object for requests with the same names, element types, shapes and outputs; None for none.

        Raises:
            InvalidRequestError: the request does not fit the model; the message names the tensor, its value and what
                is accepted.
        """
        if form is None:
            form = (tuple(outputs), *[(name, array.dtype, array.shape) for name, array in arrays.items()])
        plan = self._plans.get((sequences, form))
        if plan is None:
            plan = self._plan(arrays, outputs, sequences)
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[sequences, form] = plan
        if plan.plain:
            return Bound(
                rows=plan.rows,
                time=plan.time,
                inputs=arrays,
                lengths=None,
                states={},
                outputs=plan.outputs,
                squeeze=plan.squeeze,
                sizes=plan.sizes,
                size=plan.size,
                keys=plan.keys,
            )
        lengths = self._check_lengths(arrays[plan.lengths], plan.time) if plan.lengths else None
        extents = self._check_extents(arrays[plan.extents], plan.sizes) if plan.extents else None
        inputs: dict[str, Array] = {}
        for name, at, spec in plan.inputs:
            array = arrays[name]
            if at is not None:
                array = array[at]
            inputs[name] = array if spec is None else self._check_range(spec, array, lengths)
        if self._indices:
            sizes = {**plan.sizes, BATCH: plan.rows}
            for spec in self._indices:
                if spec.name in inputs and spec.index_of in sizes:
                    _check_index(spec, inputs[spec.name], sizes[spec.index_of])
        return Bound(
            rows=plan.rows,
            time=plan.time,
            inputs=inputs,
            lengths=lengths,
            states={name: arrays[name] for name in plan.states},
            outputs=plan.outputs,
            squeeze=plan.squeeze,
            sizes=plan.sizes,
            extents=extents,
            size=plan.size,
            keys=plan.keys if self.rowwise else None,
        )

    def _plan(self, arrays: Mapping[str, Array], outputs: Sequence[str], sequences: int) -> "_Plan":
        """Check all of a request but its values."""
        self._check_names(arrays)
        sizes: dict[str, tuple[int, str]] = {}
        squeeze = bool(sequences) and self._is_single_step(arrays)
        inputs: list[tuple[str, tuple[slice | None, ...] | None, InputSpec | None]] = []
        for name, spec in self.inputs.items():
            if name in arrays and spec.role not in _FILLED:
                array = arrays[name]
                axes = batch_first(spec.axes)
                at: tuple[slice | None, ...] | None = None
                if squeeze and TIME in axes and array.ndim == len(axes) - 1:
                    at = (*[slice(None)] * axes.index(TIME), None)
                    array = array[at]
                _check_tensor("input", name, array, spec.dtype, axes, sizes)
                inputs.append((name, at, spec if spec.range is not None else None))
        states = [name for name in self.states if name in arrays]
        for name in states:
            state = self.states[name]
            _check_tensor("state", name, arrays[name], state.dtype, batch_first(state.axes), sizes)
        rows = sizes[BATCH][0] if BATCH in sizes else 1
        if sequences and rows != sequences:
            if sequences == 1:
                accepted = "1 row for a sequence id"
            else:
                accepted = f"{sequences}, one for each sequence id"
            raise InvalidRequestError(
                f"input {sizes[BATCH][1]!r} has {rows} rows inside a sequence; accepted: {accepted}"
            )
        time = sizes[TIME][0] if TIME in sizes else None
        lengths = self._lengths_name if self._lengths_name is not None and self._lengths_name in arrays else None
        if lengths is not None:
            _check_tensor("input", lengths, arrays[lengths], "int64", (BATCH,), sizes)
            if arrays[lengths].shape[0] != rows:  # no other input has a batch axis
                raise InvalidRequestError(f"input {lengths!r} has {arrays[lengths].shape[0]} rows; accepted: {rows}")
        extents = self._sizes_name if self._sizes_name is not None and self._sizes_name in arrays else None
        if extents is not None:
            spec = self.inputs[extents]
            _check_tensor("input", extents, arrays[extents], spec.dtype, spec.axes, sizes)
            if arrays[extents].shape[0] != rows:
                raise InvalidRequestError(f"input {extents!r} has {arrays[extents].shape[0]} rows; accepted: {rows}")
        return _Plan(
            rows=rows,
            time=time,
            inputs=inputs,
            states=states,
            lengths=lengths,
            extents=extents,
            outputs=self._select(outputs),
            squeeze=squeeze,
            sizes={axis: size for axis, (size, _) in sizes.items() if axis not in (BATCH, TIME)},
            plain=self.rowwise
            and not (self._indices or lengths or extents or states)
            and all(at is None and spec is None for _, at, spec in inputs),
            size=sum(arrays[name].nbytes for name, _, _ in inputs),
            keys={},
        )

    def bind_states(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Check the states, of one row, that a sequence is to start from.

        Raises:
            InvalidRequestError: one is not a state of the model, or does not fit.
        """
        sizes: dict[str, tuple[int, str]] = {BATCH: (1, "sequence")}
        for name, array in arrays.items():
            if name not in self.states:
                raise InvalidRequestError(f"state {name!r} is not one of the model's; accepted: {names(self.states)}")
            state = self.states[name]
            _check_tensor("state", name, array, state.dtype, batch_first(state.axes), sizes)
        return {name: array.copy() for name, array in arrays.items()}

    def _check_names(self, arrays: Mapping[str, Array]) -> None:
        for name in arrays:
            if name not in self.inputs and name not in self.states:
                accepted = names([*self.inputs, *self.states])
                raise InvalidRequestError(f"input {name!r} is not one of the model's; accepted: {accepted}")
        for name, spec in self.inputs.items():
            # Lengths and sizes that are left out mean the whole axes, which the server knows.
            if name not in arrays and not spec.optional and spec.role not in _FILLED:
                raise InvalidRequestError(
                    f"input {name!r} is missing; given: {names(arrays)}; required: {names(self.required)}"
                )

    def axes_of(self, output: str) -> Axes:
        """Return the axes of an output, or of the output of a state."""
        return (self.outputs[output] if output in self.outputs else self.state_outputs[output]).axes

    def fetches(self, outputs: tuple[str, ...], *, ends: bool, keeps: bool) -> list[str]:
        """Return what a run has to compute for a request, in the manifest's order.

        Args:
            outputs: those that the request wants.
            ends: the request, or a row of it, ends with the run.
            keeps: its states are wanted afterwards.
        """
        found = self._fetches.get((outputs, ends, keeps))
        if found is None:
            wanted = {name for name in outputs if ends or name in self.concatenated}
            if keeps:
                wanted.update(self.state_outputs)
            if len(self._fetches) >= _PLANS:
                self._fetches.clear()
            found = self._fetches[outputs, ends, keeps] = [name for name in self.fetchable if name in wanted]
        return found

    @property
    def required(self) -> list[str]:
        """Names of the inputs that every request has to give."""
        return [each.name for each in self.manifest.inputs if not each.optional and each.role not in _FILLED]

    def _is_single_step(self, arrays: Mapping[str, Array]) -> bool:
        timed = [name for name, spec in self.inputs.items() if TIME in spec.axes and name in arrays]
        short = [name for name in timed if arrays[name].ndim == len(self.inputs[name].axes) - 1]
        return bool(timed) and len(short) == len(timed)

    def _check_lengths(self, lengths: Array, time: int | None) -> Array:
        limit = time if time is not None else 0
        wrong = np.flatnonzero((lengths < 0) | (lengths > limit))
        if wrong.size:
            row = int(wrong[0])
            raise InvalidRequestError(
                f"input {self._lengths_name!r} has length {lengths[row]} for row {row}; accepted: 0 to {limit}, the "
                "time axis"
            )
        return lengths

    def _check_extents(self, extents: Array, sizes: Mapping[str, int]) -> Array:
        spec = self.inputs[str(self._sizes_name)]
        limits = np.array([sizes[axis] for axis in spec.of])
        wrong = np.argwhere((extents < 0) | (extents > limits))
        if len(wrong):
            row, column = map(int, wrong[0])
            raise InvalidRequestError(
                f"input {spec.name!r} has size {extents[row, column]} for row {row}; accepted: 0 to {limits[column]}, "
                f"the axis {spec.of[column]!r}"
            )
        return extents

    def _check_range(self, spec: InputSpec, array: Array, lengths: Array | None) -> Array:
        """Refuse values outside the range, except in padding, where they are replaced: the graph would fail on them."""
        limits = spec.range
        if limits is None or not array.size:
            return array
        if array.size <= _FEW:  # NumPy's reductions take longer to begin than this
            values = array.ravel().tolist()
            least, greatest = min(values), max(values)
        else:
            least, greatest = int(array.min()), int(array.max())
        if limits.minimum <= least and greatest <= limits.maximum:
            return array
        outside = (array < limits.minimum) | (array > limits.maximum)
        if lengths is not None and TIME in spec.axes:
            axes = batch_first(spec.axes)
            shape = [1] * array.ndim
            shape[axes.index(TIME)] = -1
            steps = np.arange(array.shape[axes.index(TIME)]).reshape(shape)
            valid = steps < lengths.reshape(-1, *[1] * (array.ndim - 1))
            array = np.where(valid, array, np.array(padding(spec), array.dtype))
            outside = outside & valid
        if outside.any():
            at = np.unravel_index(int(outside.argmax()), array.shape)
            raise InvalidRequestError(
                f"input {spec.name!r} has value {array[at]} at {[int(index) for index in at]}; "
                f"accepted: {limits.minimum} to {limits.maximum}"
            )
        return array

    def _select(self, outputs: Sequence[str]) -> tuple[str, ...]:
        if not outputs:
            return tuple(self.outputs)
        for name in outputs:
            if name not in self.outputs and name not in self.state_outputs:
                accepted = names([*self.outputs, *self.state_outputs])
                raise InvalidRequestError(f"output {name!r} is not one of the model's; accepted: {accepted}")
        if len(set(outputs)) != len(outputs):
            repeated = next(name for name in outputs if list(outputs).count(name) > 1)
            raise InvalidRequestError(f"output {repeated!r} is asked for more than once")
        return tuple(outputs)


def _check_index(spec: InputSpec, array: Array, size: int) -> None:
    """Refuse what is no position of the axis: a graph may read another position for it."""
    if not array.size or (array.min() >= -1 and array.max() < size):
        return
    outside = (array < -1) | (array >= size)
    at = np.unravel_index(int(outside.argmax()), array.shape)
    accepted = f"0 to {size - 1}, the axis {spec.index_of!r}, or -1 for none" if size else "-1 for none"
    raise InvalidRequestError(
        f"input {spec.name!r} has value {array[at]} at {[int(index) for index in at]}; accepted: {accepted}"
    )


def padding(spec: InputSpec) -> int:
    """Return the value that fills an input's padding: 0, or the valid value nearest to it."""
    if spec.range is None:
        return 0
    return min(max(0, spec.range.minimum), spec.range.maximum)


def _check_tensor(
    kind: str, name: str, array: Array, dtype: str, axes: Axes, sizes: dict[str, tuple[int, str]]
) -> None:
    """Check one batch-first tensor; `sizes` collects the size of each named axis and the tensor that set it."""
    found = dtype_of(array)
    if not array.dtype.isnative:
        raise InvalidRequestError(f"{kind} {name!r} has dtype {array.dtype}; accepted: this machine's byte order")
    if found != dtype:
        raise InvalidRequestError(f"{kind} {name!r} has datatype {datatype_of(found)}; accepted: {datatype_of(dtype)}")
    shape = list(array.shape)
    if len(shape) != len(axes):
        raise InvalidRequestError(
            f"{kind} {name!r} has shape {shape} of {len(shape)} axes; accepted: {len(axes)} axes {list(axes)}"
        )
    for axis, size in zip(axes, shape, strict=True):
        if isinstance(axis, int):
            if size != axis:
                raise InvalidRequestError(f"{kind} {name!r} has shape {shape}; accepted: {list(axes)}")
        elif axis in (BATCH, TIME) and size < 1:
            raise InvalidRequestError(f"{kind} {name!r} has shape {shape}; axis {axis!r} must be at least 1")
        elif sizes.setdefault(axis, (size, name))[0] != size:
            expected, other = sizes[axis]
            raise InvalidRequestError(
                f"{kind} {name!r} has shape {shape}; axis {axis!r} must be {expected}, as in {other!r}"
            )
