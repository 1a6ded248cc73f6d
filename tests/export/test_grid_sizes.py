"""Networks over grids hold the rule of equivalence at every size of image, from 1 x 1 to 64 x 64, whole and ragged."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import MDLSTM, MDRNN, GridLSTM
from cellport.export import to_onnx
from cellport.export.verification import FACTOR, SLACK

I, H = 2, 3
NAMES = ("height", "width")
CORNERS = [(), (0,), (1,), (0, 1)]
# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Grid(nn.Module):
    """A Grid LSTM over one or two spatial dimensions and depth; sizes as the multi-dimensional networks have them."""

    def __init__(self, dimensions: int, **options: Any) -> None:
        super().__init__()
        self.grid = GridLSTM(I, H, 2, dimensions=dimensions, batch_first=True, **options)

    def forward(self, input: Tensor, sizes: Tensor) -> Tensor:
        """Features [batch, n_1, ..., features]."""
        output: Tensor = self.grid(input, None, sizes[:, 0] if self.grid.dimensions == 2 else sizes)[0]
        return output


MODELS: dict[str, tuple[int, Any]] = {
    "mdrnn": (2, lambda: MDRNN(I, H, batch_first=True)),
    "mdrnn-relu-summed": (2, lambda: MDRNN(I, H, nonlinearity="relu", combine="sum", batch_first=True)),
    "mdlstm": (2, lambda: MDLSTM(I, H, batch_first=True)),
    "mdlstm-leaky_lp-forward": (2, lambda: MDLSTM(I, H, cell="leaky_lp", directions="forward", batch_first=True)),
    "grid-2d-layers": (1, lambda: Grid(2, tied=True)),
    "grid-2d-wavefront": (1, lambda: Grid(2, schedule="wavefront", learned_outside=True)),
    "grid-3d": (2, lambda: Grid(3)),
    "grid-3d-tied-directions": (2, lambda: Grid(3, tied=True, directions=CORNERS, priority=[2])),
}
SAMPLE = ("mdrnn", "grid-2d-wavefront", "grid-3d-tied-directions")


def export(name: str, folder: Path) -> tuple[nn.Module, onnxruntime.InferenceSession]:
    torch.manual_seed(0)
    rank, make = MODELS[name]
    model, size = make().eval(), (3, 2)[:rank]
    args = torch.randn(2, *size, I), torch.tensor([size, (1,) * rank])
    shapes = {"input": {0: "batch", **{d + 1: NAMES[d] for d in range(rank)}}, "sizes": {0: "batch"}}
    to_onnx(model, args, folder / "model.onnx", dynamic_shapes=shapes, verify=False)
    return model, onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def holds(
    model: nn.Module, session: onnxruntime.InferenceSession, size: tuple[int, ...], batch: int, seed: int
) -> None:
    """The rule, for images that are whole (a size of -1) and that are not; NaN around them for the file alone."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((batch, *size, I)).astype(np.float32)
    for sizes in (np.full((batch, len(size)), -1), rng.integers(0, np.array(size) + 1, (batch, len(size)))):
        inside = np.ones((batch, *size), bool)
        for d, n in enumerate(size):
            limit = np.where(sizes[:, d] < 0, n, sizes[:, d]).reshape(-1, *[1] * len(size))
            inside &= np.arange(n).reshape([1, *(-1 if each == d else 1 for each in range(len(size)))]) < limit
        (found,) = session.run(None, {"input": np.where(inside[..., None], image, np.nan), "sizes": sizes})
        clean = torch.from_numpy(np.where(inside[..., None], image, 0))
        with torch.no_grad():
            own = model(clean, torch.from_numpy(sizes)).numpy()
            truth = model.double()(clean.double(), torch.from_numpy(sizes)).numpy()
            model.float()
        bound = FACTOR * np.abs(own - truth).max() + SLACK * max(1, np.abs(truth).max())
        assert found.shape == truth.shape
        assert np.abs(found - truth).max() <= bound


@pytest.mark.parametrize("name", SAMPLE)
def test_a_seeded_sample_of_sizes_holds(name: str, tmp_path: Path) -> None:
    model, session = export(name, tmp_path)
    rank = MODELS[name][0]
    drawn = np.random.default_rng(len(name)).integers(1, 17, (2, 2)).tolist()
    for seed, size in enumerate([(1, 1), *map(tuple, drawn)]):
        holds(model, session, size[:rank], 1 + seed, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_corner_of_the_range_and_thirty_sizes_between_hold(name: str, tmp_path: Path) -> None:
    model, session = export(name, tmp_path)
    rank = MODELS[name][0]
    drawn = np.random.default_rng(0).integers(1, 65, (30, 2)).tolist()
    for seed, size in enumerate([(1, 1), (1, 64), (64, 1), (64, 64), (2, 2), *map(tuple, drawn)]):
        for batch in (1, 3):
            holds(model, session, size[:rank], batch, seed)
