"""A small convolution net, and a Graph LSTM over the superpixels of what it sees."""

import torch
from torch import Tensor, nn

from cellport.cells import GraphLSTM

from .scenes import CLASSES

FEATURES = 32


class Pixels(nn.Module):
    """Features of each pixel, and scores of the classes by a 1x1 convolution (Liang et al. 2016's confidences)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(24, FEATURES, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(FEATURES, FEATURES, 3, padding=2, dilation=2),
            nn.ReLU(),
        )
        self.scores = nn.Conv2d(FEATURES, CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [batch, 3, height, width] to features and scores [batch, height, width, ...]."""
        features = self.layers(images)
        return features.permute(0, 2, 3, 1), self.scores(features).permute(0, 2, 3, 1)


class Regions(nn.Module):
    """Scores of each superpixel, from the mean features of its pixels."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.graph = GraphLSTM(FEATURES, hidden, layers=2)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """Map features [nodes, FEATURES] and the schedule of the graph to scores [nodes, CLASSES]."""
        return self.head(self.graph(features, neighbours, levels)[0])


def region_means(values: Tensor, regions: Tensor, nodes: int) -> Tensor:
    """The mean over each superpixel of values [pixels, n], `regions` [pixels] being its number."""
    sums = values.new_zeros(nodes, values.shape[1]).index_add(0, regions, values)
    return sums / torch.bincount(regions, minlength=nodes).unsqueeze(1)


def loss_of(scores: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy per pixel of nodes' scores [nodes, CLASSES], a node weighing by its pixels of each class."""
    weight = torch.ones(CLASSES)
    weight[1:] = 3.0  # most pixels are ground
    return -(counts * weight * scores.log_softmax(-1)).sum() / (counts * weight).sum()
