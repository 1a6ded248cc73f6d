"""A sequence, and an answer for each step, as in labelling the frames of a video."""

from collections.abc import Callable

from torch import Tensor, nn

from .calls import over_time


class ManyToManyAligned(nn.Module):
    """Labels every step of a series of features, from what came so far: it can be streamed.

    Args:
        features: of each step.
        classes: of a label.
        hidden: size of the cell.
        cell: the class of a sequence cell, such as `torch.nn.LSTM` or `cellport.cells.SRU`.
        layers: stacked layers.
    """

    def __init__(
        self, features: int, classes: int, hidden: int = 64, cell: Callable[..., nn.Module] = nn.LSTM, layers: int = 1
    ) -> None:
        super().__init__()
        self.cell = cell(features, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map steps [batch, time, features] to scores [batch, time, classes]."""
        return self.head(over_time(self.cell, x))
