"""What the lengths of a batch mean for its tensors: which steps are valid, where a sequence ends, its reversal.

Everything here selects (`torch.where`, gather) and never multiplies, so that NaN in the padding stays there.
"""

import torch
from torch import Tensor

__all__ = ["flip_valid", "mask_steps", "reversed_steps", "take_final", "valid_steps", "whole_axis"]


def whole_axis(lengths: Tensor, steps: int) -> Tensor:
    """Lengths [batch] with every negative one replaced by the size of the time axis."""
    return torch.where(lengths < 0, steps, lengths)


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """Which steps a sequence has: bool [time, batch] from int64 lengths [batch] without negatives."""
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths


def mask_steps(values: Tensor, valid: Tensor) -> Tensor:
    """`values` [time, batch, ...] where `valid` [time, batch] holds, 0 elsewhere; the gradient is 0 there too."""
    return torch.where(align(valid, values), values, torch.zeros((), dtype=values.dtype, device=values.device))


def align(mask: Tensor, values: Tensor) -> Tensor:
    """`mask` with axes of size 1 appended until it has the rank of `values`."""
    for _ in range(values.dim() - mask.dim()):
        mask = mask.unsqueeze(-1)
    return mask


def reversed_steps(lengths: Tensor, steps: int) -> Tensor:
    """For each slot the step that takes its place when the valid part is reversed: int64 [time, batch]."""
    step = torch.arange(steps, device=lengths.device).unsqueeze(1)
    return torch.where(step < lengths, lengths - 1 - step, step)


def flip_valid(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the valid part of each sequence and leave its padding in place.

    Args:
        values: [time, batch, features].
        lengths: int64 [batch] without negatives, or None for the whole time axis.
    """
    if lengths is None:
        return values.flip(0)
    index = reversed_steps(lengths, values.shape[0])
    return values.gather(0, index.unsqueeze(-1).expand_as(values))


def take_final(values: Tensor, lengths: Tensor | None, initial: Tensor) -> Tensor:
    """The value of each sequence's last valid step, or the initial one if it has none.

    Args:
        values: [time, batch, features].
        lengths: int64 [batch] without negatives, or None for the whole time axis (which is then not empty).
        initial: [batch, features].

    Returns:
        [batch, features].
    """
    if lengths is None:
        return values[-1]
    index = (lengths - 1).clamp(min=0).reshape(1, -1, 1).expand(1, -1, values.shape[-1])
    return torch.where((lengths > 0).unsqueeze(-1), values.gather(0, index).squeeze(0), initial)
