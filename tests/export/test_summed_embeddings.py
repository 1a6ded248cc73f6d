"""Embeddings that are added before a layer become a table each: tokens with positions, segments, or both."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GRU, LSTM, RNN, SRU
from cellport.export import to_onnx

AXES = {0: "batch", 1: "time"}


class Summed(nn.Module):
    """Tokens, segments of the caller's and positions, added in one of several ways."""

    def __init__(self, layer: nn.Module, how: str) -> None:
        super().__init__()
        self.tokens, self.segments, self.positions = nn.Embedding(50, 8), nn.Embedding(3, 8), nn.Embedding(60, 8)
        self.norm = nn.LayerNorm(8)
        self.layer = layer
        self.how = how

    def forward(self, ids: Tensor, segments: Tensor) -> Tensor:
        tokens, position = self.tokens(ids), self.positions(torch.arange(ids.shape[1]))
        match self.how:
            case "position":
                x = tokens + position
            case "segment":
                x = self.segments(segments) + tokens
            case "both":
                x = tokens * 8**0.5 + position + self.segments(segments)
            case _:
                x = self.norm(tokens + position)
        return self.layer(x)[0]


LAYERS = {
    "rnn": lambda: RNN(8, 5, batch_first=True),
    "lstm": lambda: LSTM(8, 5, batch_first=True, bidirectional=True),
    "gru": lambda: nn.GRU(8, 5, batch_first=True, num_layers=2),
    "gru-time-first": lambda: GRU(8, 5),
    "sru": lambda: SRU(8, 5, batch_first=True),
}


def products_of_embeddings(path: Path) -> int:
    """How many matrix products outside of loops read eight features."""
    graph = ir.load(path).graph
    return sum(node.op_type == "MatMul" and node.inputs[0].shape[-1] == 8 for node in graph)


@pytest.mark.parametrize("how", ["position", "segment", "both"])
@pytest.mark.parametrize("kind", LAYERS)
def test_each_embedding_of_a_sum_gets_tables_of_its_own(kind: str, how: str, tmp_path: Path) -> None:
    """No product is left, positions stay apart from tokens, and the answers are the module's."""
    torch.manual_seed(0)
    model = Summed(LAYERS[kind](), how).eval()
    ids, segments = torch.randint(0, 50, (3, 6)), torch.arange(18).reshape(3, 6) % 3
    path = tmp_path / "m.onnx"
    report = to_onnx(model, (ids, segments), path, dynamic_shapes=[AXES, AXES], lowering="scan", lookup=True)
    assert products_of_embeddings(path) == 0
    sources = {table.name.split(".")[0] for table in report.manifest.tables}
    assert sources == {"position": {"tokens", "positions"}, "segment": {"tokens", "segments"}}.get(
        how, {"tokens", "segments", "positions"}
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, steps in ((1, 1), (3, 5), (2, 40)):
        ids, segments = torch.randint(0, 50, (batch, steps)), torch.randint(0, 3, (batch, steps))
        feeds = {"ids": ids.numpy(), "segments": segments.numpy()}
        names = [each.name for each in session.get_inputs()]
        found = session.run(None, {name: value for name, value in feeds.items() if name in names})[0]
        with torch.no_grad():
            own = model(ids, segments).numpy()
            truth = model.double()(ids, segments).numpy()
        model.float()
        allowed = 4 * np.abs(own - truth).max() + 1e-6 * max(1.0, np.abs(truth).max())
        assert np.abs(found - truth).max() <= allowed


def test_a_normalised_sum_is_no_sum_of_tables(tmp_path: Path) -> None:
    """A layer normalisation mixes both embeddings before the product."""
    model = Summed(GRU(8, 5, batch_first=True), "normalised").eval()
    ids = torch.randint(0, 50, (3, 6))
    report = to_onnx(
        model, (ids, ids % 3), tmp_path / "m.onnx", dynamic_shapes=[AXES, AXES], lowering="scan", lookup="auto"
    )
    assert report.manifest.tables == ()
