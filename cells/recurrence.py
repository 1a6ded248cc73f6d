"""One step function, run over time: a loop that trains, and torch's `scan` operator under export."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree

from .checks import CellError, check_lengths
from .lengths import align, mask_steps, valid_steps, whole_axis

__all__ = ["recurrence", "unroll"]

State = TypeVar("State")
Input = TypeVar("Input")
Output = TypeVar("Output")


def recurrence(
    step: Callable[[State, Input], tuple[State, Output]],
    state: State,
    inputs: Input,
    *,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Output, State]:
    """Run a step function over the time axis.

    `state`, `inputs` and the step's output are each a tensor or a (named) tuple, list or dict of tensors. The
    weights are what `step` closes over. In eager mode the steps run in a Python loop and gradients flow through
    them; under `torch.export` they become one `scan`, whose length and batch stay dynamic.

    Args:
        step: `(state, input) -> (state, output)` for one step. Its tensors have the batch as axis 0; a new state
            has the shapes and dtypes of the old one. It must not change its arguments in place. Steps in the
            padding see an input of zeros, and what they give is dropped.
        state: the initial state, [batch, ...] each.
        inputs: the sequence, [time, batch, ...] each.
        lengths: integer [batch], the valid steps of each sequence, 0 to the size of the time axis; a negative one
            means the whole axis. A step at or after the length leaves the state as it is, and the output there
            is 0. What the padding holds is never read.
        reverse: start at the last valid step of each sequence and go towards the first. Outputs stay in the time
            slot of the input that they belong to.

    Returns:
        The outputs [time, batch, ...], in the structure that `step` returns, and the final state. The final state
        of a sequence of length 0 is its initial state.

    Raises:
        CellError: if `inputs` hold no tensor, disagree on time and batch, or `lengths` are not accepted.
    """
    leaves = pytree.tree_leaves(inputs)
    _check_sequence(leaves)
    steps, batch = leaves[0].shape[:2]
    valid = None
    if lengths is not None:
        valid = valid_steps(whole_axis(check_lengths(lengths, steps, batch), steps), steps)
        # Masking what comes out is not enough: the gradient of a NaN input would still be NaN * 0 inside the step.
        leaves = [mask_steps(leaf, valid) for leaf in leaves]
    run = _FlatStep(step, state, inputs)
    order = [leaf.flip(0) for leaf in leaves] if reverse else leaves
    order_valid = valid.flip(0) if reverse and valid is not None else valid
    outputs, final, output_structure = _unroll(run, order, order_valid)
    if reverse:
        outputs = [output.flip(0) for output in outputs]
    if valid is not None:
        outputs = [mask_steps(output, valid) for output in outputs]
    return pytree.tree_unflatten(outputs, output_structure), pytree.tree_unflatten(final, run.state_structure)


def unroll(step: Callable[[State, Input], tuple[State, Output]], state: State, inputs: Input) -> tuple[Output, State]:
    """`recurrence` from the first step to the last, for schedules of their own: inputs agree on axis 0 alone.

    Args:
        step: as of `recurrence`, for tensors of any axes.
        state: the initial state.
        inputs: [steps, ...] each.

    Returns:
        The outputs [steps, ...] and the final state.
    """
    run = _FlatStep(step, state, inputs)
    outputs, final, output_structure = _unroll(run, pytree.tree_leaves(inputs), None)
    return pytree.tree_unflatten(outputs, output_structure), pytree.tree_unflatten(final, run.state_structure)


class _FlatStep:
    """A user's step as a function of flat lists of tensors, which is all that `scan` accepts."""

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], state: Any, inputs: Any) -> None:
        self.step = step
        self.initial, self.state_structure = pytree.tree_flatten(state)
        self.input_structure = pytree.tree_structure(inputs)

    def __call__(self, state: list[Tensor], input: list[Tensor], valid: Tensor | None) -> tuple[list[Tensor], Any]:
        """One step: the new state's tensors, kept as they were where `valid` [batch] is false, and the output."""
        new_state, output = self.step(
            pytree.tree_unflatten(state, self.state_structure), pytree.tree_unflatten(input, self.input_structure)
        )
        kept: list[Tensor] = pytree.tree_leaves(new_state)
        if valid is not None:
            kept = [torch.where(align(valid, new), new, old) for new, old in zip(kept, state, strict=True)]
        return kept, output

    def first(self, inputs: list[Tensor]) -> tuple[list[Tensor], Any]:
        """Try the step, outside of the trace, on what `inputs` [time, batch, ...] begin with; check its state.

        Returns:
            An output's tensors and its structure.
        """
        with disable_proxy_modes_tracing():
            state, output = self(self.initial, [_first(leaf) for leaf in inputs], None)
            self.check_state(state)
        return pytree.tree_flatten(output)

    def check_state(self, state: list[Tensor]) -> None:
        """Refuse a new state whose tensors do not have the shapes and dtypes of the initial ones."""
        got, accepted = ([(list(leaf.shape), leaf.dtype) for leaf in leaves] for leaves in (state, self.initial))
        if got != accepted:
            raise CellError(f"the step's new state is {got}; accepted is what the initial state is, {accepted}")


def _unroll(run: _FlatStep, inputs: list[Tensor], valid: Tensor | None) -> tuple[list[Tensor], list[Tensor], Any]:
    return (_scan if torch.compiler.is_exporting() else _loop)(run, inputs, valid)


def _loop(run: _FlatStep, inputs: list[Tensor], valid: Tensor | None) -> tuple[list[Tensor], list[Tensor], Any]:
    state: list[Tensor] = run.initial
    if not inputs[0].shape[0]:
        example, structure = run.first(inputs)
        return [leaf.new_empty((0, *leaf.shape)) for leaf in example], state, structure
    outputs = []
    # The gradient of an index is as large as the whole input, at every step; that of unbind is made once.
    slices = list(zip(*(leaf.unbind(0) for leaf in inputs), strict=True))
    for t in range(inputs[0].shape[0]):
        state, output = run(state, list(slices[t]), None if valid is None else valid[t])
        if t == 0:
            run.check_state(state)
        outputs.append(pytree.tree_leaves(output))
    return [torch.stack(column) for column in zip(*outputs, strict=True)], state, pytree.tree_structure(output)


def _scan(run: _FlatStep, inputs: list[Tensor], valid: Tensor | None) -> tuple[list[Tensor], list[Tensor], Any]:
    # scan gives its outputs as a flat list: only a trial of the step tells their structure.
    _, structure = run.first(inputs)
    masked = valid is not None

    def body(state: list[Tensor], slices: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        new_state, output = run(state, slices[1:] if masked else slices, slices[0] if masked else None)
        # scan refuses a tensor that is returned twice or returned as it came in.
        return [_copy(leaf) for leaf in new_state], [_copy(leaf) for leaf in pytree.tree_leaves(output)]

    # scan also compares the strides of the first state and of the next.
    initial: list[Tensor] = []
    for leaf in (each.contiguous() for each in run.initial):
        # One tensor in two places, such as zeros for two states, is taken for an alias.
        initial.append(leaf.clone() if any(leaf is other for other in initial) else leaf)
    scanned = [valid, *inputs] if valid is not None else inputs
    with warnings.catch_warnings():
        # The tracer looks at .grad of whatever the step closes over, and warns of itself where that is no parameter.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        final, outputs = scan(body, initial, scanned)
    return outputs, final, structure


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _first(sequence: Tensor) -> Tensor:
    """The first step of a sequence, or zeros in its place where the sequence is empty."""
    if torch.compiler.is_exporting() or sequence.shape[0]:
        return sequence[0]
    return sequence.new_zeros(sequence.shape[1:])


def _check_sequence(leaves: list[Any]) -> None:
    if not leaves:
        raise CellError("inputs hold no tensor; accepted is at least one tensor [time, batch, ...]")
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.dim() < 2:
            what = f"shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else f"type {type(leaf).__name__}"
            raise CellError(f"an input of the recurrence has {what}; accepted is a tensor [time, batch, ...]")
        if not torch.compiler.is_exporting() and leaf.shape[:2] != leaves[0].shape[:2]:
            raise CellError(
                f"inputs have time and batch {list(leaves[0].shape[:2])} and {list(leaf.shape[:2])}; "
                "accepted are inputs that agree on both"
            )
