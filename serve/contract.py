"""What a model accepts of one request, by its manifest.

A request is batch-first in every tensor: where the graph has the batch axis elsewhere, as in a state of
``[layers, batch, hidden]``, a request has it in front. `Contract.bind` checks a request and puts it into that form;
`cellport.serve.ticks` joins bound requests and moves the axes to where the graph has them.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from cellport.errors import InvalidRequestError
from cellport.manifest import BATCH, TIME, InputSpec, Manifest, StateSpec
from cellport.unions import union_axes

from .checks import check_extents, check_index, check_lengths, check_range, check_tensor
from .codec import Array, names
from .layouts import Layout, batch_first, padding

_FILLED = ("lengths", "sizes")
"""Roles of inputs that the server fills in where a request leaves them out."""

_PLANS = 1024
"""Forms of requests whose checks are remembered."""


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
    lengths: InputSpec | None
    extents: InputSpec | None
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
        state_layouts: of the states, by input name.
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
        self.state_layouts = {name: Layout.of(each.axes) for name, each in self.states.items()}
        self.lengths = manifest.lengths
        self.sizes = sizes
        self._plans: dict[Hashable, _Plan] = {}
        self._fetches: dict[tuple[tuple[str, ...], bool, bool], list[str]] = {}

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
        lengths = extents = None
        if plan.lengths is not None:
            lengths = check_lengths(plan.lengths, arrays[plan.lengths.name], plan.time)
        if plan.extents is not None:
            extents = check_extents(plan.extents, arrays[plan.extents.name], plan.sizes)
        inputs: dict[str, Array] = {}
        for name, at, spec in plan.inputs:
            array = arrays[name]
            if at is not None:
                array = array[at]
            inputs[name] = array if spec is None else check_range(spec, array, lengths)
        if self._indices:
            sizes = {**plan.sizes, BATCH: plan.rows}
            for spec in self._indices:
                if spec.name in inputs and spec.index_of in sizes:
                    check_index(spec, inputs[spec.name], sizes[spec.index_of])
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
                check_tensor("input", name, array, spec.dtype, axes, sizes)
                inputs.append((name, at, spec if spec.range is not None else None))
        states = [name for name in self.states if name in arrays]
        for name in states:
            state = self.states[name]
            check_tensor("state", name, arrays[name], state.dtype, batch_first(state.axes), sizes)
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
        given = [each for each in (self.lengths, self.sizes) if each is not None and each.name in arrays]
        for spec in given:
            array = arrays[spec.name]
            check_tensor("input", spec.name, array, spec.dtype, spec.axes, sizes)
            if array.shape[0] != rows:  # no other input has a batch axis
                raise InvalidRequestError(f"input {spec.name!r} has {array.shape[0]} rows; accepted: {rows}")
        return _Plan(
            rows=rows,
            time=time,
            inputs=inputs,
            states=states,
            lengths=self.lengths if self.lengths in given else None,
            extents=self.sizes if self.sizes in given else None,
            outputs=self._select(outputs),
            squeeze=squeeze,
            sizes={axis: size for axis, (size, _) in sizes.items() if axis not in (BATCH, TIME)},
            plain=self.rowwise
            and not (self._indices or given or states)
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
            check_tensor("state", name, array, state.dtype, batch_first(state.axes), sizes)
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
