"""What of a module's recurrent layers becomes inputs and outputs of the graph: as much as proves right."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cellport.errors import CellportError, ExportError
from cellport.manifest import BATCH, TIME

from .capture import Captured, Copies, capture
from .flat import Lift
from .probing import Call
from .proofs import horizon, why_not_causal, why_not_the_module, why_padding_is_read, why_rows_meet
from .signature import Leaf

__all__ = ["capture_lifted"]


def capture_lifted(
    copies: Copies,
    leaves: Sequence[Leaf],
    structure: Any,
    output_names: Sequence[str],
    pairs: Mapping[str, str],
    calls: Sequence[Call],
    *,
    states: bool,
    lengths: bool,
) -> tuple[Captured, bool]:
    """Capture a module with as much lifted as proves right.

    Args:
        copies: the module.
        leaves: its arguments.
        structure: how they are put together.
        output_names: names of its results.
        pairs: output by input of the states that its forward takes and returns.
        calls: its recurrent layers.
        states: whether to lift the states of the layers that forward leaves at a constant one.
        lengths: whether to add an input of lengths.

    Returns:
        The module, with notes of what was decided and why; and whether it may be run in chunks.

    Raises:
        ExportError: the module computes something else when its recurrent layers run in the form that exports.
    """
    notes: list[str] = []

    def attempt(lift: Lift) -> Captured:
        return capture(copies, leaves, structure, output_names, pairs, calls, lift)

    def build(lift: Lift, proof: Callable[[Captured], str | None]) -> tuple[Captured | None, str]:
        try:
            made = attempt(lift)
        except CellportError as error:
            return None, str(error)
        reason = proof(made) or why_not_the_module(made)
        return (made, "") if reason is None else (None, reason)

    captured = bare = attempt(Lift())
    if (reason := why_not_the_module(captured)) is not None:
        raise ExportError(f"{reason}; a recurrent layer is used in a way that cellport does not reproduce")
    axes = {axis for leaf in leaves for axis in leaf.axes if isinstance(axis, str)}
    timed = BATCH in axes and TIME in axes
    if not timed:
        missing = [axis for axis in (BATCH, TIME) if axis not in axes]
        notes.append(f"no input has an axis named {' or '.join(map(repr, missing))}, so nothing is lifted")
    elif (reason := why_rows_meet(captured)) is not None:
        notes.append(f"rows of a batch are not independent, which a server that batches requests must not do: {reason}")
    if captured.lengths is not None and timed and (reason := why_padding_is_read(captured, captured)) is not None:
        notes.append(
            f"{captured.lengths!r} does not hide padding, so only rows of equal length can share a batch: {reason}"
        )
        captured.lengths = None
    vague = _of_one_value([leaf for leaf in leaves if leaf.name not in pairs], captured.lengths) if timed else None
    if vague is not None:
        timed = False
        notes.append(
            f"nothing is lifted, because nothing can be proved: the example of {vague.name!r} holds the one integer "
            f"{vague.example.flatten()[0]}, and no others are known to be valid; give one with several"
        )
    free = [call for call in calls if call.free_lengths]
    if lengths and timed and captured.lengths is None and free:
        lift = Lift(lengths=tuple(call.path for call in free))
        better, reason = build(lift, lambda made: why_padding_is_read(made, bare))
        if better is None:
            notes.append(f"no lengths input, so only rows of equal length can share a batch: {reason}")
        else:
            captured = better
            notes.append(f"lengths added: padded rows proved equal to unpadded ones, up to {horizon(bare)} steps")
    causal = False
    if states and timed and calls:
        taken = {call.path for call in calls if call.initial is not None}
        inside = [call for call in calls if call.initial is None and not _of_user(call, pairs)]
        if inside:
            notes.append(f"states left inside: {inside[0].why_inside}")
        elif taken:
            lift = Lift(tuple(call.path for call in calls if call.path in taken), captured.module.lift.lengths)
            better, reason = build(lift, why_not_causal)
            if better is None:
                notes.append(f"states left inside: {reason}")
            else:
                captured, causal = better, True
                notes.append(f"states lifted: a run in chunks proved equal to one pass, over {horizon(bare)} steps")
    if captured.states and not causal and vague is None:
        failure = why_not_causal(captured)
        causal = failure is None
        proved = f"causal: a run in chunks proved equal to one pass, over {horizon(captured)} steps"
        notes.append(proved if causal else f"not causal: {failure}")
    captured.notes = notes
    return captured, causal


def _of_one_value(leaves: Sequence[Leaf], lengths: str | None) -> Leaf | None:
    """An argument of integers whose example holds only one, where that does not tell which others are valid."""
    for leaf in leaves:
        whole = not leaf.example.is_floating_point() and leaf.example.dtype != torch.bool
        dynamic = any(isinstance(axis, str) for axis in leaf.axes)
        unknown = leaf.rows is None and leaf.name != lengths
        if whole and dynamic and unknown and np.unique(leaf.example.numpy()).size == 1:
            return leaf
    return None


def _of_user(call: Call, pairs: Mapping[str, str]) -> bool:
    """Whether a layer's state may be one that forward takes: it depends on the inputs, and forward has states."""
    return bool(pairs) and "depends on the inputs" in call.why_inside
