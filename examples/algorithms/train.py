"""Training, the same for every model: Adam, gradients of norm 1 at most, a learning rate that falls at the end."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .models import Adder, Parity
from .tasks import DIGITS, draw_parity, draw_sums

__all__ = ["answers", "exact_sums", "right_parities", "train_adder", "train_parity"]

ROWS = 64
CHECK = 2000
PROMOTED = 0.95


def train_parity(model: Parity, steps: int, report: Callable[[str], None] = print) -> int:
    """Train until three checks in a row find no error, or for a number of steps.

    Args:
        model: what to train.
        steps: at most.
        report: told how it goes.

    Returns:
        The strings that it took.
    """
    generator, right = torch.Generator().manual_seed(1), 0
    for step in _steps(model, steps, 3e-3, lambda: _parity_loss(model, generator)):
        if step % 100:
            continue
        share = right_parities(model, *draw_parity(CHECK, generator))
        right = right + 1 if share == 1 else 0
        if step % 1000 == 0 or right == 3:
            report(f"  {step * ROWS:,} strings: {share:.2%} of {CHECK:,} others right")
        if right == 3:
            return step * ROWS
    return steps * ROWS


def train_adder(model: Adder, steps: int, report: Callable[[str], None] = print) -> int:
    """Train on sums of one digit, and of one digit more whenever 95 % are exact; then on all of these lengths.

    Args:
        model: what to train.
        steps: how many.
        report: told how it goes.

    Returns:
        The sums that it saw.
    """
    generator, longest = torch.Generator().manual_seed(2), 1

    def loss() -> Tensor:
        shorter = torch.rand((), generator=generator) < 0.3
        digits = int(torch.randint(1, longest + 1, (), generator=generator)) if shorter else longest
        read, wanted = draw_sums(ROWS, generator, digits)
        return nn.functional.cross_entropy(model(read)[:, digits:].flatten(0, 1), wanted.flatten())

    for step in _steps(model, steps, 5e-3, loss):
        if step % 50 and step != steps:
            continue
        share = exact_sums(model, *draw_sums(500, generator, longest))
        if step % 1000 == 0 or step == steps:
            report(f"  {step * ROWS:,} sums: {share:.2%} of 500 others of {longest} digits exact")
        if share > PROMOTED and longest < DIGITS:
            longest += 1
    return steps * ROWS


def answers(scores: Tensor, wanted: Tensor) -> Tensor:
    """Which rows of `scores` [batch, time, classes] are right at all of the last steps, as `wanted` [batch, last]."""
    last = scores[:, -wanted.shape[1] :]
    return (last.argmax(-1) == wanted).all(1)


@torch.no_grad()
def right_parities(model: nn.Module, bits: Tensor, wanted: Tensor) -> float:
    """The share of strings whose parity a model tells."""
    return float((model(bits).argmax(-1) == wanted).double().mean())


@torch.no_grad()
def exact_sums(model: nn.Module, read: Tensor, wanted: Tensor) -> float:
    """The share of sums of which a model gets all digits right."""
    return float(answers(model(read), wanted).double().mean())


def _parity_loss(model: Parity, generator: torch.Generator) -> Tensor:
    bits, wanted = draw_parity(ROWS, generator)
    return nn.functional.cross_entropy(model(bits), wanted)


def _steps(model: nn.Module, steps: int, rate: float, loss: Callable[[], Tensor]) -> Iterator[int]:
    """Take the steps; yields the number of those taken after each."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        falling = min(1.0, (1 - step / steps) / 0.4)
        optimiser.param_groups[0]["lr"] = rate * min((step + 1) / 100, max(falling, 0.02))
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        yield step + 1
