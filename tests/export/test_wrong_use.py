"""Wrong arguments and modules that cannot be exported as they are: refused by name, with the way out."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from cellport.errors import CellportError, ExportError
from cellport.export import to_onnx

AXES = [{0: "batch", 1: "time"}]
X = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """A GRU, and what is made of its output."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.how = how

    def forward(self, x: Tensor, n: Tensor | None = None) -> Any:
        match self.how:
            case "random":
                return self.gru(x)[0] + torch.rand(4)
            case "dropout":
                return self.gru(functional.dropout(x, 0.5))[0]
            case "complex":
                y = self.gru(x)[0]
                return torch.complex(y, y)
            case "count":
                assert n is not None
                return self.gru(x)[0], n * 0.5
        return self.gru(x)[0]


def export(path: Path, model: Any = None, args: Any = (X,), **options: Any) -> None:
    given = {"dynamic_shapes": AXES, "lowering": "native", **options}
    to_onnx(Small().eval() if model is None else model, args, path / "m.onnx", **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_names": 5}, "output_names is 5; accepted: a list of names"),
        ({"input_names": 5}, "input_names is 5; accepted: a list of names"),
        ({"batches": 5}, "batches is 5; accepted: a list of batch sizes"),
        ({"calibration": 5, "weights": "int8"}, "calibration is 5; accepted: a list of mappings"),
        ({"table_block": "x"}, "table_block is 'x'; accepted: a number of columns"),
        ({"opset_version": 20.0}, "opset_version is 20.0; accepted: an integer from 18 to 22"),
        ({"opset_version": "20"}, "opset_version is '20'; accepted: an integer from 18 to 22"),
        ({"verify": "no"}, "verify is 'no'; accepted: True, False"),
        ({"evaluate": 3}, "evaluate is 3; accepted: a function"),
        ({"args": (), "dynamic_shapes": None}, "args is empty; accepted: a tuple of example arguments"),
        ({"args": [X]}, "args is a list; accepted: a tuple"),
        ({"args": (X[:0],)}, r"the example of 'x' has shape \[0, 6, 3\]; accepted: at least 1"),
        ({"args": (X[:, :0],)}, r"the example of 'x' has shape \[3, 0, 3\]; accepted: at least 1"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """No Python error of its own reaches the caller."""
    with pytest.raises(ExportError, match=message):
        export(tmp_path, **options)


def test_a_missing_path_is_named() -> None:
    """The path is checked like any other argument."""
    with pytest.raises(ExportError, match="f is None; accepted: the path"):
        to_onnx(Small().eval(), (X,), None, dynamic_shapes=AXES)  # type: ignore[arg-type]


def pruned() -> nn.Module:
    model = Small()
    prune.l1_unstructured(model.gru, "weight_hh_l0", 0.5)
    return model


def normalised() -> nn.Module:
    model = Small()
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model.gru, "weight_hh_l0")
    return model


def spectral() -> nn.Module:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)))
    return model


def inferred() -> nn.Module:
    with torch.inference_mode():
        return Small()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pruned, r"'gru' computes a weight anew.*prune.remove\(module, name\)"),
        (normalised, r"'gru' computes a weight anew.*remove_weight_norm.*parametrizations.weight_norm"),
        (spectral, "'0' computes a weight anew.*remove_spectral_norm"),
        (inferred, "'gru.weight_ih_l0' was made in inference mode"),
        (
            lambda: torch.compile(Small(), backend="eager"),
            "the model was made by torch.compile; pass the module itself",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' has no shape yet; run the model once"),
        (lambda: Small("random"), "result 0 of the model differs between two runs"),
        (lambda: Small("dropout"), "result 0 of the model differs between two runs"),
        (lambda: Small("complex"), "result 'output' has dtype torch.complex64; .*return torch.view_as_real"),
        (lambda: 5, "model is a int; accepted: a torch.nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning", "ignore:Lazy modules:UserWarning")
def test_a_module_that_cannot_be_exported_as_it_is_is_told_what_to_do(make: Any, message: str, tmp_path: Path) -> None:
    """The message names the module or tensor, and the way out."""
    model = make()
    with pytest.raises(ExportError, match=message):
        export(tmp_path, model.eval() if isinstance(model, nn.Module) else model)
    assert not (tmp_path / "m.onnx").exists()


def test_a_scripted_module_is_refused(tmp_path: Path) -> None:
    """It has no forward that could be traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Small().eval(), (X,))
    with pytest.raises(ExportError, match=r"the model is a torch\.jit\.ScriptModule; pass the nn\.Module"):
        export(tmp_path, traced)


def test_a_parametrized_weight_is_exported(tmp_path: Path) -> None:
    """It is what the messages above advise."""
    model = Small()
    parametrizations.weight_norm(model.gru, "weight_hh_l0")
    export(tmp_path, model.eval())


def test_a_state_keeps_its_element_type(tmp_path: Path) -> None:
    """An integer that comes back as a float could not be fed again."""
    axes = [{0: "batch", 1: "time"}, {0: "batch"}]
    with pytest.raises(ExportError, match=r"'n' has dtype torch\.int64 and its output 'm' torch\.float32; both"):
        export(
            tmp_path,
            Small("count").eval(),
            (X, torch.zeros(3, dtype=torch.long)),
            dynamic_shapes=axes,
            output_names=["y", "m"],
            state={"m": "n"},
        )


def fails(run: Any) -> float:
    raise KeyError("labels")


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [(fails, "evaluate fails: KeyError: 'labels'"), (lambda run: "good", "evaluate fails: ValueError")],
)
def test_a_metric_that_fails_leaves_the_older_file(evaluate: Any, message: str, tmp_path: Path) -> None:
    """The user's function has failed, and the message says so."""
    export(tmp_path)
    before = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(ExportError, match=message):
        export(tmp_path, evaluate=evaluate)
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_tokens_that_never_occur_are_not_all(tmp_path: Path) -> None:
    """A table without any row is none."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru = nn.Embedding(10, 3), nn.GRU(3, 4, batch_first=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.gru(self.embedding(ids))[0]

    with pytest.raises(ExportError, match="the counts of input 'ids' are all 0"):
        export(
            tmp_path,
            Tokens().eval(),
            (torch.arange(6).reshape(2, 3),),
            counts={"ids": np.zeros(10, int)},
            lowering="scan",
            lookup=True,
        )


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_float64_layers_become_scans(kind: Any, tmp_path: Path) -> None:
    """The runtime's native operators compute in float32 only."""
    model = nn.Sequential(kind(3, 4, batch_first=True)).double().eval()
    with pytest.raises(ExportError, match="in float64, which onnxruntime's native operators do not compute"):
        export(tmp_path, model, (X.double(),))
    export(tmp_path, model, (X.double(),), lowering="auto")


def test_every_refusal_is_an_error_of_cellport(tmp_path: Path) -> None:
    """So that one except clause is enough."""
    assert issubclass(ExportError, CellportError)
