"""Multi-dimensional LSTMs stacked with subsampling windows, as in hierarchical image networks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import CellError, check_flag, check_size
from .md_lstm import MDLSTM
from .sizes import check_sizes, mask_grid, valid_positions

__all__ = ["MDStack", "windows"]


def windows(values: Tensor, window: Sequence[int], sizes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Gather non-overlapping windows of positions into features.

    Args:
        values: [n_1, ..., n_N, batch, features].
        window: positions along each dimension.
        sizes: int64 [batch, N] without negatives, or None where all images fill the grid.

    Returns:
        [n_1 / w_1, ..., batch, w_1 * ... * w_N * features], numbers of windows rounded up, with the positions of a
        window in raster order and 0 where an image has none; and the images' numbers of windows [batch, N], or None.
    """
    rank = len(window)
    for d, width in enumerate(window):
        if width == 1:
            continue
        count = (values.shape[d] + width - 1) // width * width
        place = torch.arange(count, device=values.device)
        if sizes is None:
            inside = (place < values.shape[d]).unsqueeze(-1)
        else:
            inside = place.unsqueeze(-1) < sizes[:, d]
        inside = inside.reshape([count if axis == d else 1 for axis in range(rank)] + [inside.shape[1], 1])
        taken = values.index_select(d, place.clamp(max=values.shape[d] - 1))
        values = torch.where(inside, taken, torch.zeros((), dtype=values.dtype, device=values.device))
    for d, width in reversed(list(enumerate(window))):
        shape = values.shape
        split = values.reshape(*shape[:d], shape[d] // width, width, *shape[d + 1 :])
        values = split.movedim(d + 1, -2).flatten(-2)
    if sizes is not None:
        sizes = torch.stack([(sizes[:, d] + width - 1) // width for d, width in enumerate(window)], 1)
    return values, sizes


class MDStack(nn.Module):
    """Layers of MDLSTM with windows before each and a tanh layer between them, ever coarser and wider.

    The hierarchy of Graves and Schmidhuber (Offline handwriting recognition with multidimensional recurrent neural
    networks, NIPS 2008): a layer's input, or the output of all directions of the layer below, is gathered in
    non-overlapping windows; between two layers these go through tanh(W x + b). Sizes of ragged images are rounded up,
    and the part of a window that an image does not fill is 0.

    Under torch.export every axis of an image must have at least two windows at every layer (torch takes a size that
    follows from another for one that it has to prove not to be 1): give its `Dim` a `min` above `coarseness`. A file
    of `cellport.export.to_onnx` takes images of any size.

    Args:
        input_size: features of the input.
        hidden_sizes: features of each MDLSTM per direction.
        features: of the tanh layer between each MDLSTM and the next, one fewer than `hidden_sizes`.
        windows: for each MDLSTM the positions along each dimension that are gathered before it.
        batch_first: whether input and output are [batch, n_1, ..., n_N, features].
        **options: of each MDLSTM.

    Raises:
        CellError: if an argument is not accepted.
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        features: Sequence[int],
        windows: Sequence[Sequence[int]],
        *,
        batch_first: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        check_flag("MDStack", "batch_first", batch_first)
        layers = len(hidden_sizes)
        if not layers or len(windows) != layers or len(features) != layers - 1:
            raise CellError(
                f"MDStack: there are {layers} hidden_sizes, {len(windows)} windows and {len(features)} features; "
                "accepted are at least 1, as many, and one fewer"
            )
        dimensions = options.get("dimensions", 2)
        for window in windows:
            if len(window) != dimensions:
                raise CellError(f"MDStack: a window is {tuple(window)!r}; accepted are {dimensions} sizes")
            for width in window:
                check_size("MDStack", "a size of a window", width)
        self.batch_first = batch_first
        self.windows = [tuple(window) for window in windows]
        self.layers = nn.ModuleList()
        self.between = nn.ModuleList()
        width = input_size
        for number, (hidden, window) in enumerate(zip(hidden_sizes, self.windows, strict=True)):
            for each in window:
                width *= each
            if number:
                check_size("MDStack", "features", features[number - 1])
                self.between.append(
                    nn.Linear(width, features[number - 1], device=options.get("device"), dtype=options.get("dtype"))
                )
                width = features[number - 1]
            layer = MDLSTM(width, hidden, **options)
            self.layers.append(layer)
            width = layer.output_size
        self.dimensions: int = dimensions
        self.output_size = width

    @property
    def coarseness(self) -> tuple[int, ...]:
        """The positions of the input along each dimension that one position of the output stands for."""
        return tuple(math.prod(column) for column in zip(*self.windows, strict=True))

    def forward(self, input: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the layers over a batch of images.

        Args:
            input: [n_1, ..., n_N, batch, input_size], or [batch, n_1, ..., n_N, input_size] with `batch_first`.
            sizes: integer [batch, N], the size of each image; a negative one means the whole axis.

        Returns:
            The output of the last layer, laid out like the input, with as many positions as there are windows, and the
            images' sizes in it, [batch, N], or None without `sizes`.

        Raises:
            CellError: if a shape, a dtype or a size is not accepted.
        """
        if input.dim() != self.dimensions + 2:
            raise CellError(f"MDStack: input has {input.dim()} axes; accepted are {self.dimensions + 2}")
        values = input.movedim(0, -2) if self.batch_first else input
        if sizes is not None:
            sizes = check_sizes(sizes, values.shape[: self.dimensions], values.shape[self.dimensions])
        for number, (layer, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            values, sizes = windows(values, window, sizes)
            if number:
                if sizes is not None and not torch.compiler.is_exporting():
                    values = mask_grid(values, valid_positions(sizes, values.shape[: self.dimensions]))
                values = torch.tanh(self.between[number - 1](values))
            values = layer(values, sizes)
        return (values.movedim(-2, 0) if self.batch_first else values), sizes
