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
            *_convolution(3, 24, 5), *_convolution(24, FEATURES, 3, 2), *_convolution(FEATURES, FEATURES, 3, 2)
        )
        self.scores = nn.Conv2d(FEATURES, CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [batch, 3, height, width] to features and scores [batch, height, width, ...]."""
        features = self.layers(images)
        return features.permute(0, 2, 3, 1), self.scores(features).permute(0, 2, 3, 1)


class Regions(nn.Module):
    """Scores of each superpixel, from the mean features of its pixels.

    Args:
        hidden: features of a superpixel that the scores are made of.
        layers: of the Graph LSTM; 0 for a layer that sees one superpixel alone, in its place.
    """

    def __init__(self, hidden: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.graph = GraphLSTM(FEATURES, hidden, layers=layers) if layers else None
        self.alone = nn.Identity() if layers else nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, features: Tensor, neighbours: Tensor, levels: Tensor) -> Tensor:
        """Map features [nodes, FEATURES] and the schedule of the graph to scores [nodes, CLASSES]."""
        if self.graph is None:
            return self.head(self.alone(features))
        return self.head(self.graph(features, neighbours, levels)[0])


def region_means(values: Tensor, regions: Tensor, nodes: int) -> Tensor:
    """The mean over each superpixel of values [pixels, n], `regions` [pixels] being its number."""
    sums = values.new_zeros(nodes, values.shape[1]).index_add(0, regions, values)
    return sums / torch.bincount(regions, minlength=nodes).unsqueeze(1)


def loss_of(scores: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy per pixel of nodes' scores [nodes, CLASSES], a node weighing by its pixels of each class."""
    return -(counts * scores.log_softmax(-1)).sum() / counts.sum()


def _convolution(inputs: int, outputs: int, size: int, dilation: int = 1) -> list[nn.Module]:
    """To images of the same size."""
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2 * dilation, dilation=dilation, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
