"""Files that several tests look into, exported once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from cellport.export import Report, to_onnx

from .models import Tokens, TokensWithLengths, cell

AXES = {"tokens": {0: "batch", 1: "time"}}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are small: several threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Exported:
    """A model, the file it became, and what the exporter said."""

    model: nn.Module
    path: Path
    report: Report

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @property
    def graph(self) -> ir.Graph:
        return ir.load(self.path).graph

    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])


def export(folder: Path, model: nn.Module, **options: Any) -> Exported:
    args: tuple[Any, ...] = (torch.arange(6).reshape(2, 3),)
    shapes: dict[str, Any] = dict(AXES)
    if isinstance(model, TokensWithLengths):
        args = (*args, torch.tensor([3, 2]))
        shapes["lengths"] = {0: "batch"}
    # What the tests look into must not depend on which form is faster on this machine.
    options = {"dynamic_shapes": shapes, "output_names": None, "lowering": "native", **options}
    return Exported(model, folder / "model.onnx", to_onnx(model.eval(), args, folder / "model.onnx", **options))


def _shared(kind: str, **options: Any) -> Any:
    @pytest.fixture(scope="session")
    def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(kind)
        return export(folder, Tokens(cell(kind, num_layers=2, batch_first=True)), output_names=["scores"], **options)

    return made


lstm = _shared("lstm")
gru = _shared("gru")
rnn = _shared("rnn-relu")
sru = _shared("sru-v2", lookup=True)
sru_plain = _shared("sru-v2", lookup=False)
