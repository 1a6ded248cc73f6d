"""Three readers of an image: along both dimensions, along both and depth, and row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cellport.cells import LSTM, MDLSTM, GridLSTM

from .data import CLASSES, SIDE

DIRECTIONS: list[tuple[int, ...]] = [(), (1,), (0,), (0, 1)]
"""The dimensions that each direction goes backwards along, in MDLSTM's order: an image is read from four corners."""


class ByMDLSTM(nn.Module):
    """Layers of a multi-dimensional LSTM in four directions, and a decision by their summary.

    Args:
        hidden: features per direction of each layer.
    """

    def __init__(self, hidden: Sequence[int] = (16, 24)) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        features = 1
        for size in hidden:
            self.layers.append(MDLSTM(features, size, cell="leaky", batch_first=True))
            features = self.layers[-1].output_size
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * features, CLASSES)

    def forward(self, image: Tensor, sizes: Tensor) -> Tensor:
        """Map images [batch, height, width] and their own sizes [batch, 2] to scores [batch, CLASSES]."""
        values = centred(image)
        for layer in self.layers:
            values = layer(values, sizes)
        return self.head(self.dropout(summary(values, sizes)))


class ByGridLSTM(nn.Module):
    """A Grid LSTM over height, width and depth in four directions, and a decision by their summary.

    Args:
        hidden: features per direction along each dimension.
        layers: size of the grid along depth.
    """

    def __init__(self, hidden: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.grid = GridLSTM(1, hidden, layers, dimensions=3, directions=DIRECTIONS, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * self.grid.output_size, CLASSES)

    def forward(self, image: Tensor, sizes: Tensor) -> Tensor:
        """Map images [batch, height, width] and their own sizes [batch, 2] to scores [batch, CLASSES]."""
        values, _ = self.grid(centred(image), None, sizes)
        return self.head(self.dropout(summary(values, sizes)))


class ByRows(nn.Module):
    """An LSTM to which a row is a step, so that all images have the same width; it decides after the last row.

    Args:
        hidden: size of the LSTM.
        layers: of them.
    """

    def __init__(self, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.lstm = LSTM(SIDE, hidden, layers, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, image: Tensor, lengths: Tensor) -> Tensor:
        """Map images [batch, height, SIDE] and their own heights [batch] to scores [batch, CLASSES]."""
        _, state = self.lstm(2 * image - 1, lengths=lengths)
        return self.head(self.dropout(state.h[-1]))


def centred(image: Tensor) -> Tensor:
    """A feature -1 to 1 for each pixel of 0 to 1."""
    return (2 * image - 1).unsqueeze(-1)


def summary(values: Tensor, sizes: Tensor) -> Tensor:
    """What four directions say of a whole image: each at its far corner, where it has seen everything, and on average.

    Args:
        values: [batch, height, width, 4 * features], the directions being those of `DIRECTIONS`; 0 outside of an image.
        sizes: int64 [batch, 2], 0 to those of the axes.

    Returns:
        [batch, 8 * features]; 0 for an image without pixels.
    """
    height, width = (sizes - 1).clamp(min=0).unbind(1)
    first = torch.zeros_like(height)
    rows = torch.stack([first if 0 in flip else height for flip in DIRECTIONS], 1)
    columns = torch.stack([first if 1 in flip else width for flip in DIRECTIONS], 1)
    places = values.unflatten(3, (len(DIRECTIONS), -1)).flatten(1, 2)
    index = (rows * values.shape[2] + columns).unsqueeze(1).unsqueeze(3)
    corners = places.gather(1, index.expand(-1, -1, -1, places.shape[3])).flatten(1)
    mean = values.sum((1, 2)) / sizes.prod(1, keepdim=True).clamp(min=1)
    return torch.cat([corners, mean], 1)
