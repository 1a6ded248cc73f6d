"""A stack with windows exports with batch, height and width dynamic, down to an image of one position."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import MDLSTM, MDStack
from cellport.export import Report, to_onnx, verify
from cellport.export.image_sizes import coarseness
from cellport.export.verification import FACTOR, SLACK, Grid

I = 2
AXES = {"input": {0: "batch", 1: "height", 2: "width"}, "sizes": {0: "batch"}}
# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Reader(nn.Module):
    """Scores of each position that is left of an image, and how many there are."""

    def __init__(self, windows: list[tuple[int, int]], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        hidden = [3, 4, 2][: len(windows)]
        options = {"cell": "leaky_lp", "directions": "forward", **options}
        self.stack = MDStack(I, hidden, [5, 4][: len(windows) - 1], windows, batch_first=True, **options)
        self.head = nn.Linear(self.stack.output_size, 3)
        with torch.no_grad():
            for parameter in self.stack.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape))

    def forward(self, input: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [batch, height, width, 3] and sizes [batch, 2]."""
        output, left = self.stack(input, sizes)
        return self.head(output), left


def export(model: nn.Module, path: Path, **options: Any) -> Report:
    args = torch.randn(2, 7, 6, I), torch.tensor([[7, 6], [2, 1]])
    return to_onnx(model.eval(), args, path, output_names=["scores", "left"], dynamic_shapes=AXES, **options)


def holds(model: nn.Module, path: Path, size: tuple[int, int], batch: int, seed: int = 0) -> None:
    """The rule of equivalence for ragged images, the first one whole, with NaN around the others for the file alone."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, np.array(size) + 1, (batch, 2))
    sizes[0] = size
    inside = (np.arange(size[0])[:, None] < sizes[:, :1, None]) & (np.arange(size[1]) < sizes[:, 1:, None])
    image = rng.standard_normal((batch, *size, I)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, left = session.run(None, {"input": np.where(inside[..., None], image, np.nan), "sizes": sizes})
    args = torch.from_numpy(np.where(inside[..., None], image, 0)), torch.from_numpy(sizes)
    with torch.no_grad():
        own = model(*args)[0].numpy()
        truth, wanted = (each.numpy() for each in model.double()(args[0].double(), args[1]))
        model.float()
    bound = FACTOR * np.abs(own - truth).max() + SLACK * max(1, np.abs(truth).max())
    assert found.shape == truth.shape
    assert np.abs(found - truth).max() <= bound
    np.testing.assert_array_equal(left, wanted)


WINDOWS = [(2, 3), (2, 1)]
SIZES = (((1, 1), 1), ((1, 9), 3), ((4, 3), 2), ((5, 4), 1), ((11, 7), 4), ((64, 64), 2))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, Report]:
    path = tmp_path_factory.mktemp("stack") / "model.onnx"
    model = Reader(WINDOWS)
    return model, path, export(model, path)


@pytest.mark.parametrize(("size", "batch"), SIZES, ids=str)
def test_ragged_images_of_any_size_hold(reader: Any, size: Any, batch: int) -> None:
    """Fewer positions than a window has, no whole number of windows, and many."""
    holds(reader[0], reader[1], size, batch)


def test_the_axes_of_what_is_left_are_dynamic(reader: Any) -> None:
    scores, left = reader[2].manifest.outputs
    assert scores.axes == ("batch", "scores_axis_1", "scores_axis_2", 3)
    assert left.axes == ("batch", 2)


def test_the_file_was_proved_with_one_window_and_with_several(reader: Any) -> None:
    assert reader[2].manifest.verification.cases == 4
    assert Grid((1, 3)).with_windows(4).others == (1, 2, 5, 9)
    assert verify(reader[0], reader[1], grid=Grid((2, 1), others=(13, 6, 1))).cases == 2


def test_each_layer_is_one_scan(reader: Any) -> None:
    assert [node.op_type for node in ir.load(reader[1]).graph].count("Scan") == 2


def test_coarseness_is_the_product_of_the_largest_sides_of_all_stacks() -> None:
    stack = Reader([(2, 3), (2, 1), (1, 4)])
    assert stack.stack.coarseness == (4, 12)
    assert coarseness(nn.ModuleList([stack, MDStack(1, [1], [], [(2, 2)])])) == 24
    assert coarseness(MDLSTM(1, 1)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("windows", "options"),
    [
        ([(2, 2)], {"directions": "all", "cell": "standard"}),
        ([(4, 3), (2, 4), (3, 2)], {"combine": "sum", "directions": "all"}),
        ([(1, 2), (3, 1)], {"directions": 2, "cell": "stable"}),
        ([(3, 3), (2, 2)], {"cell": "halved", "peepholes": True}),
    ],
    ids=str,
)
def test_other_windows_and_cells_export_and_hold(tmp_path: Path, windows: Any, options: dict[str, Any]) -> None:
    model = Reader(windows, **options)
    export(model, tmp_path / "model.onnx")
    drawn = np.random.default_rng(0).integers(1, 65, (12, 2)).tolist()
    for seed, size in enumerate([(1, 1), (1, 64), (64, 1), (63, 61), (64, 64), *map(tuple, drawn)]):
        for batch in (1, 3):
            holds(model, tmp_path / "model.onnx", size, batch, seed)
