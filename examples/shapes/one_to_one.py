"""One input, one answer: a recurrent cell that is run for a single step, which makes it a gated feed-forward layer."""

from collections.abc import Callable

from torch import Tensor, nn

from .calls import over_time


class OneToOne(nn.Module):
    """Classifies single rows of features.

    Args:
        features: of the input.
        classes: of the answer.
        hidden: size of the cell.
        cell: the class of a sequence cell, such as `torch.nn.LSTM` or `cellport.cells.SRU`.
    """

    def __init__(self, features: int, classes: int, hidden: int = 64, cell: Callable[..., nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.cell = cell(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows [batch, features] to scores [batch, classes]."""
        return self.head(over_time(self.cell, x.unsqueeze(1)).squeeze(1))
