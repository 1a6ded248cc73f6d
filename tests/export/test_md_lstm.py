"""Multi-dimensional networks export with batch, height and width dynamic, and compute what they compute in PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import MDLSTM, MDRNN
from cellport.cells.md_forms import MEMORY_CELLS
from cellport.export import to_onnx, verify
from cellport.export.verification import FACTOR, SLACK, Grid

AXES = ("height", "width", "depth")
I, H = 2, 3


def layer(dimensions: int, kind: Any = MDLSTM, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(I, H, dimensions=dimensions, batch_first=True, **options).eval()


def export(model: nn.Module, folder: Path, dimensions: int, ragged: bool, **options: Any) -> Path:
    grid = (4, 3, 2)[:dimensions]
    args: tuple[Tensor, ...] = (torch.randn(2, *grid, I),)
    shapes: dict[str, Any] = {"input": {0: "batch", **{d + 1: AXES[d] for d in range(dimensions)}}}
    if ragged:
        args = (*args, torch.tensor([grid, [2, 1, 1][:dimensions]]))
        shapes["sizes"] = {0: "batch"}
    to_onnx(model, args, folder / "model.onnx", dynamic_shapes=shapes, **options)
    return folder / "model.onnx"


def holds(model: nn.Module, path: Path, sizes: Any, batch: int, ragged: bool, seed: int = 0) -> None:
    """The rule of equivalence at one size, with NaN in the padding for onnxruntime alone."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *sizes, I, generator=generator)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    args: tuple[Tensor, ...] = (x,)
    feeds = {"input": x.numpy()}
    if ragged:
        columns = [torch.randint(n + 1, (batch,), generator=generator) for n in sizes]
        args = (x, torch.stack(columns, -1))
        inside = torch.ones(x.shape, dtype=torch.bool)
        for d, column in enumerate(columns):
            place = torch.arange(sizes[d]).reshape([-1 if axis == d + 1 else 1 for axis in range(x.dim())])
            inside &= place < column.reshape([-1, *[1] * (x.dim() - 1)])
        feeds = {"input": x.where(inside, float("nan")).numpy(), "sizes": args[1].numpy()}
    (found,) = session.run(None, feeds)
    with torch.no_grad():
        own = model(*args).numpy()
        truth = model.double()(x.double(), *args[1:]).numpy()
        model.float()
    bound = FACTOR * np.abs(own - truth).max(initial=0) + SLACK * max(1, np.abs(truth).max(initial=0))
    assert found.shape == truth.shape
    assert np.abs(found - truth).max(initial=0) <= bound


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The standard cell in four directions over ragged images."""
    return export(layer(2), tmp_path_factory.mktemp("md"), 2, ragged=True)


SIZES_2D = (((1, 1), 1), ((1, 7), 3), ((6, 1), 2), ((9, 5), 4))
SIZES_3D = (((1, 1, 1), 1), ((1, 4, 3), 2), ((5, 1, 2), 1), ((3, 4, 5), 3))


@pytest.mark.parametrize(("sizes", "batch"), SIZES_2D, ids=str)
def test_ragged_images_of_other_sizes_hold(standard: Path, sizes: Any, batch: int) -> None:
    holds(layer(2), standard, sizes, batch, ragged=True)


EMPTY = ([[4, 5], [0, 5], [3, 0], [0, 0]], [[0, 5], [1, 5]], [[4, 0], [4, 1]], [[0, 0]], [[0, 3], [2, 0]])


@pytest.mark.parametrize("sizes", EMPTY, ids=str)
def test_images_without_positions_share_a_batch_with_others(standard: Path, sizes: Any) -> None:
    x, of = torch.randn(len(sizes), 4, 5, I, generator=torch.Generator().manual_seed(0)), torch.tensor(sizes)
    dirty = x.clone()
    for image, (height, width) in zip(dirty, sizes, strict=True):
        image[height:] = image[:, width:] = float("nan")
    (found,) = quiet(standard).run(None, {"input": dirty.numpy(), "sizes": of.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, layer(2)(x, of).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [[4, 6], [5, 5], [2**40, 1]], ids=str)
def test_sizes_beyond_the_image_are_an_error_of_the_runtime(standard: Path, sizes: Any) -> None:
    """Forwards they would count as the whole axis in silence, backwards they would read another row."""
    feeds = {"input": np.zeros((2, 4, 5, I), np.float32), "sizes": np.array([[4, 5], sizes])}
    with pytest.raises(Exception, match="out of data bounds"):
        quiet(standard).run(None, feeds)


def quiet(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "shape", [(2, 0, 5), (2, 4, 0), (0, 4, 5), (2, 0, 1), (2, 1, 0), (1, 0, 0), (0, 0, 0)], ids=str
)
def test_images_without_rows_or_columns_and_no_images_give_an_empty_output(standard: Path, shape: Any) -> None:
    feeds = {"input": np.zeros((*shape, I), np.float32), "sizes": np.zeros((shape[0], 2), np.int64)}
    assert quiet(standard).run(None, feeds)[0].shape == (*shape, 4 * H)


def test_the_written_file_verifies_again_with_drawn_sizes(standard: Path) -> None:
    figures = verify(layer(2), standard, grid=Grid(batches=(1, 4)))
    assert figures.cases == 2


def test_all_directions_are_one_scan_of_few_nodes(standard: Path) -> None:
    """Every node of the body costs its overhead once an anti-diagonal: 23 compute four directions."""
    scans = [node for node in ir.load(standard).graph if node.op_type == "Scan"]
    assert len(scans) == 1
    body = scans[0].attributes["body"].as_graph()
    assert len(body) == 23
    assert sum(node.op_type == "Slice" and node.inputs[1] in body.inputs for node in body) == 5


def test_sizes_that_the_example_never_had_do_not_reach_the_module(tmp_path: Path) -> None:
    """Proofs draw sizes that fit the axes they draw, whatever the example's are."""
    torch.manual_seed(0)
    model = MDRNN(I, H, directions="forward", batch_first=True).eval()
    args = torch.randn(2, 30, 25, I), torch.tensor([[30, 25], [29, 1]])
    shapes = {"input": {0: "batch", 1: "height", 2: "width"}, "sizes": {0: "batch"}}
    to_onnx(model, args, tmp_path / "model.onnx", dynamic_shapes=shapes)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("cell", "dimensions", "ragged", "verified"),
    [
        pytest.param("leaky_lp", 3, True, False, id="leaky_lp-3-ragged"),
        *(
            pytest.param(cell, dimensions, ragged, True, marks=SLOW, id=f"{cell}-{dimensions}-{ragged}-verified")
            for cell in MEMORY_CELLS
            for dimensions in (2, 3)
            for ragged in (False, True)
        ),
    ],
)
def test_every_cell_exports_and_holds(tmp_path: Path, cell: str, dimensions: int, ragged: bool, verified: bool) -> None:
    model = layer(dimensions, cell=cell, directions="all" if verified else "forward")
    path = export(model, tmp_path, dimensions, ragged, verify=verified)
    for seed, (sizes, batch) in enumerate(SIZES_2D if dimensions == 2 else SIZES_3D):
        holds(model, path, sizes, batch, ragged, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimensions", "options"),
    [
        (1, {}),
        (2, {"directions": "forward"}),
        (2, {"directions": "forward", "cell": "halved", "peepholes": True}),
        (2, {"peepholes": True}),
        (2, {"combine": "sum", "bias": False}),
        (2, {"cell": "leaky", "output": "identity"}),
        (2, {"kind": MDRNN}),
    ],
    ids=str,
)
def test_options_export_and_hold(tmp_path: Path, dimensions: int, options: dict[str, Any]) -> None:
    model = layer(dimensions, **options)
    path = export(model, tmp_path, dimensions, ragged=True)
    for seed, sizes in enumerate(((1, 1), (3, 8), (7, 2))):
        holds(model, path, sizes[:dimensions], 3, ragged=True, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("cell", MEMORY_CELLS)
def test_images_of_up_to_64_by_64_hold(tmp_path: Path, cell: str) -> None:
    model = layer(2, cell=cell)
    path = export(model, tmp_path, 2, ragged=True, verify=False)
    for seed, sizes in enumerate(((1, 64), (64, 1), (17, 40), (64, 64))):
        for batch in (1, 3):
            holds(model, path, sizes, batch, ragged=True, seed=seed)
