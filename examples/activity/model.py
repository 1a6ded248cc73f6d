"""The shape many-to-many, aligned, behind a standardisation that belongs to the model, so that it takes raw values."""

import torch
from torch import Tensor, nn

from examples.shapes.many_to_many_aligned import ManyToManyAligned

from .data import ACTIVITIES, CHANNELS


class Labeller(nn.Module):
    """Scores the activities after every step of a series.

    Args:
        mean: of each channel over the training recordings.
        deviation: standard deviation of each channel.
        hidden: size of the LSTM.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(CHANNELS).clone())
        self.register_buffer("deviation", deviation.reshape(CHANNELS).clone())
        self.labels = ManyToManyAligned(CHANNELS, len(ACTIVITIES), hidden, nn.LSTM)

    def forward(self, motion: Tensor) -> Tensor:
        """Map motion [batch, time, CHANNELS] to scores [batch, time, activities]."""
        return self.labels(torch.tanh((motion - self.mean) / (2 * self.deviation)))
