"""Packed sequences as padded ones with their lengths.

torch packs a padded batch into the rows that are valid at each step. Such a tensor has no batch and no time axis, and
its size depends on the values of the lengths, so no graph with dynamic axes can hold one. While a module is watched,
`pack_padded_sequence` hands out a stand-in that keeps the padded tensor and the lengths, recurrent layers take and
return it, and `pad_packed_sequence` opens it again. Nothing is sorted: rows stay where they are.

The padded result keeps the whole time axis of what was packed, where torch cuts it to the longest row unless it is
told a `total_length`; `uncut` counts such results, so that a module which could tell the two apart is found.
"""

import types
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from cellport.errors import ExportError

__all__ = ["REPLACED", "Padded", "pack", "padding", "uncut", "unpack"]


class Padded(PackedSequence):
    """What stands for a packed sequence: values [time, batch, features] and int64 lengths [batch]."""

    values: Tensor
    lengths: Tensor

    def __new__(cls, values: Tensor, lengths: Tensor) -> "Padded":
        """Keep both as they are."""
        made: Padded = tuple.__new__(cls, (None, None, None, None))
        made.values, made.lengths = values, lengths
        return made

    @property
    def data(self) -> NoReturn:
        """Refused."""
        _refuse("data")

    @property
    def batch_sizes(self) -> NoReturn:
        """Refused."""
        _refuse("batch_sizes")

    @property
    def sorted_indices(self) -> NoReturn:
        """Refused."""
        _refuse("sorted_indices")

    @property
    def unsorted_indices(self) -> NoReturn:
        """Refused."""
        _refuse("unsorted_indices")

    def __iter__(self) -> NoReturn:
        """Refused."""
        _refuse("data")

    def __getitem__(self, index: Any) -> NoReturn:
        """Refused."""
        _refuse("data")

    def to(self, *args: Any, **kwargs: Any) -> "Padded":
        """Move or convert the values."""
        return Padded(self.values.to(*args, **kwargs), self.lengths)


def _refuse(field: str) -> NoReturn:
    raise ExportError(
        f"the model uses PackedSequence.{field}, which has no form with dynamic axes; "
        "apply the operation to the padded tensor, before pack_padded_sequence or after pad_packed_sequence"
    )


padding: ContextVar[bool] = ContextVar("padding", default=False)
"""Whether this thread's calls of torch's packing functions are to be replaced."""

uncut: ContextVar[int] = ContextVar("uncut", default=0)
"""How many results of `pad_packed_sequence` kept steps that torch's own would have cut off."""


def _copy(function: Any) -> Callable[..., Any]:
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)


_PACK, _UNPACK = _copy(rnn.pack_padded_sequence), _copy(rnn.pad_packed_sequence)


def pack(input: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> PackedSequence:
    """`torch.nn.utils.rnn.pack_padded_sequence`, sorted or not."""
    if not padding.get():
        packed: PackedSequence = _PACK(input, lengths, batch_first, enforce_sorted)
        return packed
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
    return Padded(input.transpose(0, 1) if batch_first else input, lengths)


def unpack(
    sequence: PackedSequence, batch_first: bool, padding_value: float, total_length: Any
) -> tuple[Tensor, Tensor]:
    """`torch.nn.utils.rnn.pad_packed_sequence`; the lengths come back as int64.

    Raises:
        ExportError: the sequence was not made by `pack_padded_sequence`, or `total_length` is not the size of the time
            axis that was packed.
    """
    if not padding.get():
        opened: tuple[Tensor, Tensor] = _UNPACK(sequence, batch_first, padding_value, total_length)
        return opened
    if not isinstance(sequence, Padded):
        raise ExportError("pad_packed_sequence is given a sequence that pack_padded_sequence did not make in forward")
    values, lengths = sequence.values, sequence.lengths.to(torch.int64)
    steps = values.shape[0]
    if total_length is not None and total_length != steps:
        raise ExportError(
            f"pad_packed_sequence is given total_length={total_length}; accepted: None, or the size of the time axis "
            f"that was packed, {steps}"
        )
    if total_length is None:
        uncut.set(uncut.get() + 1)
    valid = torch.arange(steps, device=values.device).unsqueeze(1) < lengths
    values = torch.where(valid.reshape(*valid.shape, *(1,) * (values.dim() - 2)), values, padding_value)
    return (values.transpose(0, 1) if batch_first else values), lengths


def _pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    from cellport.export.packing import pack

    return pack(input, lengths, batch_first, enforce_sorted)


def _pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    from cellport.export.packing import unpack

    return unpack(sequence, batch_first, padding_value, total_length)


REPLACED: dict[types.FunctionType, types.CodeType] = {
    rnn.pack_padded_sequence: _pack_padded_sequence.__code__,  # type: ignore[dict-item]
    rnn.pad_packed_sequence: _pad_packed_sequence.__code__,  # type: ignore[dict-item]
}
"""Code that takes the place of torch's own while a module is watched.

The code and not the name is replaced, because modules import these functions by name.
"""
