"""Data made by code: strings of bits with their parity, and pairs of numbers with their sum."""

import torch
from torch import Tensor

__all__ = ["BITS", "DIGITS", "NO_DIGIT", "draw_parity", "draw_sums", "held_out"]

BITS, DIGITS = 20, 5
NO_DIGIT = 10
"""What a number shows after its last digit, while the sum is being answered."""


def held_out(bits: Tensor) -> Tensor:
    """Which strings [batch, BITS] of 0 and 1 are kept out of training: an eighth, picked by a multiplicative hash."""
    values = (bits.long() << torch.arange(bits.shape[1])).sum(1)
    return (values * 0x9E3779B1 >> 17) % 8 == 0


def draw_parity(count: int, generator: torch.Generator, training: bool = True) -> tuple[Tensor, Tensor]:
    """Strings of bits and whether the number of ones is odd.

    Args:
        count: of strings.
        generator: of the random numbers.
        training: strings that are not `held_out`, each with a share of ones of its own, drawn from 0 to 1; otherwise
            strings that are, with bits like fair coins.

    Returns:
        float32 [count, BITS] of -1 and 1, and int64 [count] of 0 and 1.
    """
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        share = torch.rand(count, 1, generator=generator) if training else torch.tensor(0.5)
        bits = torch.rand(count, BITS, generator=generator) < share
        found.append(bits[held_out(bits) != training])
    chosen = torch.cat(found)[:count]
    return chosen.float() * 2 - 1, chosen.sum(1) % 2


def draw_sums(count: int, generator: torch.Generator, digits: int = DIGITS) -> tuple[Tensor, Tensor]:
    """Pairs of numbers, digit by digit with the first digits first, and their sums in the same order.

    Args:
        count: of pairs.
        generator: of the random numbers.
        digits: of each number, leading zeros among them.

    Returns:
        int64 [count, 2 * digits + 1, 2], the two numbers side by side and then `NO_DIGIT` for each digit of the sum;
        int64 [count, digits + 1], what is to be answered at these last steps.
    """
    numbers = torch.randint(0, 10**digits, (count, 2), generator=generator)

    def spelled(values: Tensor, width: int) -> Tensor:
        return torch.stack([values // 10**place % 10 for place in reversed(range(width))], 1)

    silence = torch.full((count, digits + 1, 2), NO_DIGIT)
    return torch.cat([spelled(numbers, digits), silence], 1), spelled(numbers.sum(1), digits + 1)
