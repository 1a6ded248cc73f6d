"""A Grid LSTM exports with all sizes of its grid dynamic, in one Scan or, layer by layer, in native LSTMs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GridLSTM, GridState
from cellport.errors import ExportError
from cellport.export import to_onnx, verify
from cellport.export.runtime import OnnxRunner
from cellport.export.verification import Grid

LAYERS, D = 3, 5
# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Tokens(nn.Module):
    """Time and depth, with a state that the caller gives and gets."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 4)
        self.grid = GridLSTM(4, D, LAYERS, batch_first=True, **options)
        self.head = nn.Linear(self.grid.output_size, 3)

    def forward(self, tokens: Tensor, h: Tensor, m: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, state = self.grid(self.embedding(tokens), GridState(h, m), lengths)
        assert state is not None
        assert state.m is not None
        return self.head(output), state.h, state.m


class Images(nn.Module):
    """Two spatial dimensions and depth, with images of different sizes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grid = GridLSTM(2, 3, 2, dimensions=3, batch_first=True, **options)

    def forward(self, image: Tensor, sizes: Tensor) -> Tensor:
        output: Tensor = self.grid(image, None, sizes)[0]
        return output


class Pairs(nn.Module):
    """Source, target and depth: every position reads a word of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source, self.target = nn.Embedding(7, 3), nn.Embedding(9, 3)
        self.grid = GridLSTM(3, 4, 2, dimensions=3, tied=True, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        output: Tensor = self.grid(self.source(source).unsqueeze(2) + self.target(target).unsqueeze(1))[0]
        return output[:, -1]


def export_tokens(model: Tokens, path: Path) -> Any:
    states = torch.zeros(2, LAYERS, 2, D)
    example = (torch.tensor([[1, 5, 2], [2, 3, 4]]), states[0], states[1], torch.tensor([3, 2]))
    return to_onnx(
        model.eval(),
        example,
        path,
        output_names=["scores", "h_out", "m_out"],
        dynamic_shapes={
            "tokens": {0: "batch", 1: "time"},
            "h": {1: "batch"},
            "m": {1: "batch"},
            "lengths": {0: "batch"},
        },
        state={"h_out": "h", "m_out": "m"},
        lowering="native",
    )


def nodes(path: Path) -> list[str]:
    return [node.op_type for node in ir.load(path).graph]


def body(path: Path) -> list[str]:
    (scan,) = (node for node in ir.load(path).graph if node.op_type == "Scan")
    return [node.op_type for node in scan.attributes["body"].as_graph()]


def test_a_grid_over_time_and_depth_is_a_native_lstm_for_each_layer(tmp_path: Path) -> None:
    model = Tokens(priority=[1], tied=True)
    report = export_tokens(model, tmp_path / "grid.onnx")
    assert report.manifest.causal
    assert nodes(tmp_path / "grid.onnx").count("LSTM") == LAYERS
    assert "Scan" not in nodes(tmp_path / "grid.onnx")
    # In one pass, in chunks and step by step, with random states and ragged lengths.
    figures = verify(model, tmp_path / "grid.onnx", grid=Grid(batches=(2,), steps=(1, 13), chunks=(None, 5, 1)))
    assert figures.cases > 8


def test_a_wavefront_whose_time_has_priority_is_one_scan_that_can_be_cut(tmp_path: Path) -> None:
    model = Tokens(priority=[0])
    report = export_tokens(model, tmp_path / "grid.onnx")
    assert report.manifest.causal
    assert {each.output for each in report.manifest.states} == {"h_out", "m_out"}
    assert "LSTM" not in nodes(tmp_path / "grid.onnx")
    assert len(body(tmp_path / "grid.onnx")) <= 34


@pytest.mark.slow
def test_all_transforms_of_a_position_are_one_product_in_few_nodes(tmp_path: Path) -> None:
    export_tokens(Tokens(tied=True, schedule="wavefront"), tmp_path / "grid.onnx")
    found = body(tmp_path / "grid.onnx")
    assert found.count("Gemm") == 1
    assert "MatMul" not in found
    assert len(found) <= 18


def assert_equal_over_sizes(model: Images, path: Path) -> None:
    generator = np.random.default_rng(0)
    for batch, height, width in ((1, 1, 1), (3, 7, 2), (2, 2, 9), (1, 1, 6), (4, 8, 1), (16, 3, 3)):
        image = generator.normal(size=(batch, height, width, 2)).astype(np.float32)
        sizes = generator.integers(0, [height + 1, width + 1], (batch, 2))
        sizes[-1] *= batch < 3  # one without positions among others
        found = OnnxRunner(path)({"image": image, "sizes": sizes})["features"]
        with torch.no_grad():
            wanted = model(torch.tensor(image), torch.tensor(sizes)).numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_images_of_any_size_in_four_directions_are_one_scan(tmp_path: Path) -> None:
    model = Images(tied=True, directions=[(), (0,), (1,), (0, 1)]).eval()
    path = tmp_path / "images.onnx"
    to_onnx(
        model,
        (torch.randn(2, 3, 4, 2), torch.tensor([[3, 4], [2, 1]])),
        path,
        output_names=["features"],
        dynamic_shapes={"image": {0: "batch", 1: "height", 2: "width"}, "sizes": {0: "batch"}},
    )
    assert len(body(path)) <= 31
    assert_equal_over_sizes(model, path)


@pytest.mark.parametrize(
    "options",
    [{}, {"priority": [2]}, {"plain": [1], "readout": "hm"}, {"plain": [0, 2], "activation": "relu"}],
    ids=str,
)
def test_layers_with_weights_of_their_own_compute_the_window_of_each_diagonal(tmp_path: Path, options: Any) -> None:
    model, path = Images(**options).eval(), tmp_path / "images.onnx"
    example = torch.randn(2, 3, 4, 2), torch.tensor([[3, 4], [2, 1]])
    shapes = {"image": {0: "batch", 1: "height", 2: "width"}, "sizes": {0: "batch"}}
    to_onnx(model, example, path, output_names=["features"], dynamic_shapes=shapes, verify=False)
    (scan,) = (node for node in ir.load(path).graph if node.op_type == "Scan")
    steps = scan.attributes["body"].as_graph()
    assert {str(node.outputs[0].shape[-2]) for node in steps if node.op_type == "MatMul"} == {"window"}
    assert_equal_over_sizes(model, path)
    for shape in ((2, 0, 3), (2, 3, 0), (1, 0, 0), (0, 2, 2)):
        nothing = {"image": np.zeros((*shape, 2), np.float32), "sizes": np.zeros((shape[0], 2), np.int64)}
        assert OnnxRunner(path)(nothing)["features"].shape[:3] == shape


def test_what_cannot_be_traced_is_named_where_a_state_is_given(tmp_path: Path) -> None:
    class Branching(Tokens):
        def forward(self, tokens: Tensor, h: Tensor, m: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if int(tokens.sum()) > 0:
                tokens = tokens + 0
            return super().forward(tokens, h, m, lengths)

    with pytest.raises(ExportError, match="branches or sizes a tensor on the values of its inputs"):
        export_tokens(Branching(), tmp_path / "grid.onnx")


@pytest.mark.slow
def test_pairs_of_sequences_of_different_lengths_are_one_scan(tmp_path: Path) -> None:
    example = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 2], [7, 8]])
    report = to_onnx(
        Pairs().eval(),
        example,
        tmp_path / "pairs.onnx",
        dynamic_shapes={"source": {0: "batch", 1: "source"}, "target": {0: "batch", 1: "target"}},
    )
    assert nodes(tmp_path / "pairs.onnx").count("Scan") == 1
    assert report.manifest.verification is not None


def test_one_dimension_exports_with_a_dynamic_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = GridLSTM(4, D, 6, dimensions=1, tied=True)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.grid(x)[0]
            return output

    report = to_onnx(Vectors().eval(), (torch.randn(2, 4),), tmp_path / "v.onnx", dynamic_shapes={"x": {0: "batch"}})
    assert report.manifest.verification is not None
    assert report.manifest.verification.cases
