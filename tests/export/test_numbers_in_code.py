"""A branch that waits for one token or one length is found by the number that the code is written with."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.errors import ExportError
from cellport.export import to_onnx
from cellport.export.constants import numbers_of
from cellport.export.drawing import draw

AXES = [{0: "batch", 1: "time"}]
LIMIT = 77
X = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))


def helper(x: Tensor) -> Tensor:
    return x[:, :LIMIT] * 1.25


class Freezes(nn.Module):
    """Answers nothing after the token 102, which no example holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.lstm = nn.Embedding(5000, 6), nn.LSTM(6, 5, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        output, _ = self.lstm(self.embedding(ids))
        return output.masked_fill(((ids == 102).cumsum(1) > 0)[..., None], 0.0)


class Cuts(nn.Module):
    """A layer of torch over as many steps as its limit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.longest = nn.LSTM(4, 5, batch_first=True), 256

    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) > self.longest:
            x = x[:, : self.longest]
        return self.lstm(x)[0].mean(1)


class Loops(nn.Module):
    """A Python loop, of which the steps after the two hundredth do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, total = x.new_zeros(x.size(0), 5), x.new_zeros(x.size(0), 5)
        for step in range(x.size(1)):
            h = self.cell(x[:, step], h)
            if step < 200:
                total = total + h
        return total


class Shifts(nn.Module):
    """Each step sees the input of the step before, as a decoder that is taught."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1))[0]


class Feeds(nn.Module):
    """The likeliest token of a step is the input of the next: a state that holds indices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.cell, self.head = nn.Embedding(4, 3), nn.GRUCell(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, token = x.new_zeros(x.size(0), 5), torch.zeros(x.size(0), dtype=torch.long)
        scores = []
        for step in range(x.size(1)):
            h = self.cell(torch.cat([x[:, step], self.embedding(token)], 1), h)
            scores.append(self.head(h))
            token = scores[-1].argmax(1)
        return torch.stack(scores, 1)


def run(path: Path, x: Tensor) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_numbers_are_those_of_the_users_code_alone() -> None:
    class Own(Cuts):
        table = (31, 0.75)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(helper(x)) + len([each for each in (41,) if each])

    found = numbers_of(Own())
    assert {256, 31, 0.75, LIMIT, 1.25, 41} <= found
    assert 1e-5 not in numbers_of(nn.Sequential(nn.LayerNorm(4)))


def test_special_numbers_are_drawn_within_what_is_accepted() -> None:
    rng = np.random.default_rng(0)
    ids = draw(rng, (40, 50), "int64", (0, 999), None, (500, 5000, 0.5, -3))
    assert ((ids >= 0) & (ids <= 999)).all()
    assert 20 < (ids == 500).sum() < 200
    floats = draw(rng, (40, 50), "float32", None, None, (20.0, -1e9))
    assert (floats > 15).sum() > 20
    assert np.abs(floats).max() < 50


def test_a_model_that_waits_for_a_token_is_not_taken_for_causal(tmp_path: Path) -> None:
    ids = torch.arange(200, 218).reshape(3, 6)
    report = to_onnx(Freezes().eval(), (ids,), tmp_path / "m.onnx", dynamic_shapes=AXES)
    assert not report.manifest.causal
    assert not report.manifest.states


@pytest.mark.parametrize("model", [Cuts(), Loops()], ids=["layer", "loop"])
def test_a_length_at_which_the_model_changes_is_a_reason_to_refuse(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(ExportError, match="could not be made a recurrence"):
        to_onnx(model.eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=AXES)


@pytest.mark.parametrize("model", [Shifts(), Feeds()], ids=["shift", "feedback"])
def test_common_forms_are_right_at_every_length(tmp_path: Path, model: nn.Module) -> None:
    model.eval()
    to_onnx(model, (X,), tmp_path / "m.onnx", dynamic_shapes=AXES)
    for steps in (1, 2, 5, 40):
        x = torch.randn(2, steps, 4, generator=torch.Generator().manual_seed(steps))
        with torch.no_grad():
            expected = model(x).numpy()
            truth = type(model)().double().eval()
            truth.load_state_dict(model.state_dict())
            exact = truth(x.double()).numpy()
        bound = 4 * np.abs(expected - exact).max() + 1e-6 * max(1.0, np.abs(exact).max())
        assert np.abs(run(tmp_path / "m.onnx", x) - exact).max() <= bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": [3]}, r"cases is \[3\]; accepted: a list of mappings"),
        ({"draw": 5}, "draw is 5; accepted: a function"),
        ({"table_block": 0}, "table_block is 0; accepted: a number of columns, at least 1"),
    ],
)
def test_wrong_options_are_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        to_onnx(Shifts().eval(), (X,), tmp_path / "m.onnx", dynamic_shapes=AXES, **options)
