"""One way of calling what differs between torch.nn's cells and cellport's: lengths, a single step, the first state."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from cellport.cells import LSTMCell, SequenceCell, StepCell


def over_time(cell: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The output of a sequence cell with `batch_first`, for each step.

    Args:
        cell: RNN, LSTM, GRU or SRU of `cellport.cells`, or RNN, LSTM or GRU of torch.nn.
        x: [batch, time, features].
        lengths: int64 [batch], the valid steps of each row, at least 1; None for all of `time`.

    Returns:
        [batch, time, directions · hidden], 0 in the padding.
    """
    if isinstance(cell, SequenceCell):
        return cell(x, lengths=lengths)[0]
    if lengths is None:
        return cell(x)[0]
    packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return rnn.pad_packed_sequence(cell(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def summary(output: Tensor, lengths: Tensor, bidirectional: bool) -> Tensor:
    """What a cell has read when each row ends: [forward's last; backward's first], [batch, directions · hidden]."""
    index = (lengths - 1).reshape(-1, 1, 1)
    if not bidirectional:
        return output.gather(1, index.expand(-1, 1, output.shape[2])).squeeze(1)
    forward, backward = output.chunk(2, 2)
    return torch.cat([forward.gather(1, index.expand(-1, 1, forward.shape[2])).squeeze(1), backward[:, 0]], 1)


def state_sizes(cell: nn.Module) -> int:
    """How many tensors [batch, hidden] the state of a step cell has: two for an LSTM's h and c, one for others."""
    return 2 if isinstance(cell, nn.LSTMCell | LSTMCell) else 1


def advance(cell: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of a step cell.

    Args:
        cell: RNNCell, LSTMCell, GRUCell or SRUCell of `cellport.cells`, or RNNCell, LSTMCell or GRUCell of torch.nn.
        x: [batch, features].
        state: as many tensors [batch, hidden] as `state_sizes` says.

    Returns:
        The output [batch, hidden] and the new state.
    """
    given: Any = state if len(state) > 1 else state[0]
    found = cell(x, given)
    output, new = found if isinstance(cell, StepCell) else (None, found)
    kept = tuple(new) if len(state) > 1 else (new,)
    return (kept[0] if output is None else output), kept
