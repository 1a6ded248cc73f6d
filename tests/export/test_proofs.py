"""Proofs on models that hide what they do: from examples that show nothing, in one row only, far from the start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GRU, LSTM
from cellport.export import to_onnx

from .conftest import export
from .models import FEATURES, HIDDEN, VOCABULARY, Tokens, cell

SHAPES = {"tokens": {0: "batch", 1: "time"}}


class Acausal(Tokens):
    """Looks at tokens in a way that a cut in time, or padding, changes."""

    def __init__(self, how: str) -> None:
        super().__init__(cell("gru", batch_first=True))
        self.how = how

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        match self.how:
            case "mean of the input":
                x = x + x.mean(1, keepdim=True)
            case "next step":
                x = x + x.roll(-1, 1)
            case "previous step":
                x = x + x.roll(1, 1)
            case "softmax over time":
                x = x * torch.softmax(x, 1)
            case "position":
                x = x + torch.arange(x.shape[1]).reshape(1, -1, 1)
            case "other rows":
                x = x + x.mean(0, keepdim=True)
        return self.head(self.cell(x)[0])


@pytest.mark.parametrize("how", ["mean of the input", "next step", "previous step", "softmax over time", "position"])
def test_an_example_of_equal_tokens_proves_no_more_than_another(how: str, tmp_path: Path) -> None:
    """Where all tokens are equal, the mean of one chunk is the mean of all: the proof draws tokens of its own."""
    model = Acausal(how).eval()
    example = torch.zeros(1, 1, dtype=torch.long)
    report = to_onnx(model, (example,), tmp_path / "m.onnx", dynamic_shapes=SHAPES, verify=False)
    assert report.manifest.states == ()
    assert not report.manifest.causal
    assert any(note.startswith("states left inside: output 'output'") for note in report.notes)


@pytest.mark.parametrize(
    ("how", "hides"),
    [("none", True), ("position", True), ("mean of the input", False), ("next step", False), ("other rows", False)],
)
def test_lengths_are_added_only_where_they_hide_the_padding(how: str, hides: bool, tmp_path: Path) -> None:
    """A model in which rows see each other reads its neighbours' padding."""
    model = Acausal(how).eval()
    example = torch.zeros(1, 1, dtype=torch.long)
    report = to_onnx(model, (example,), tmp_path / "m.onnx", dynamic_shapes=SHAPES, verify=False)
    assert (report.manifest.lengths is not None) == hides
    assert any(note.startswith("no lengths input") for note in report.notes) != hides


class Words(nn.Module):
    """A cell over the characters of each word, whose batch is not the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(VOCABULARY, FEATURES), GRU(FEATURES, HIDDEN, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, words, characters = tokens.shape
        _, final = self.cell(self.embedding(tokens).reshape(batch * words, characters, FEATURES))
        return final[-1].reshape(batch, words, HIDDEN)


def test_a_cell_over_another_batch_than_the_models_is_left_as_it_is(tmp_path: Path) -> None:
    tokens = torch.randint(VOCABULARY, (2, 3, 4))
    report = to_onnx(Words().eval(), (tokens,), tmp_path / "m.onnx", dynamic_shapes=SHAPES)
    assert (report.manifest.states, report.manifest.lengths) == ((), None)
    assert any("cell does not run over the axes 'batch' and 'time'" in note for note in report.notes)


class Learned(Tokens):
    """Starts from a state that is a parameter."""

    def __init__(self) -> None:
        super().__init__(cell("gru", batch_first=True))
        self.first = nn.Parameter(torch.randn(1, 1, HIDDEN))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.cell(self.embedding(tokens), self.first.expand(-1, tokens.shape[0], -1).contiguous())[0]


def test_a_learned_initial_state_is_the_default_of_the_lifted_one(tmp_path: Path) -> None:
    model = Learned()
    exported = export(tmp_path, model)
    (state,) = exported.report.manifest.states
    np.testing.assert_array_equal(state.initial_value(), model.first.detach().numpy())
    tokens = torch.arange(6).reshape(2, 3)
    (found,) = exported.session().run(["output"], {"tokens": tokens.numpy()})
    np.testing.assert_allclose(found, model(tokens).detach().numpy(), atol=1e-6)
    assert exported.report.manifest.lengths is not None


class Conditioned(Tokens):
    """Starts from a state that depends on the tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        first = self.embedding(tokens[:, 0])[:, :HIDDEN].unsqueeze(0).contiguous()
        return self.cell(self.embedding(tokens), first)[0]


def test_a_state_that_depends_on_the_inputs_is_not_lifted(tmp_path: Path) -> None:
    report = export(tmp_path, Conditioned(cell("gru", batch_first=True))).report
    assert report.manifest.states == ()
    assert any("the initial state of cell depends on the inputs" in note for note in report.notes)


class Derived(nn.Module):
    """Takes the lengths of its rows from the tokens themselves: token 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(VOCABULARY, FEATURES), LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.cell(self.embedding(tokens), lengths=(tokens > 0).sum(1))[0]


def test_lengths_that_the_model_finds_itself_are_its_own(tmp_path: Path) -> None:
    """Cut anywhere, other tokens would count as padding, so it is not causal."""
    report = export(tmp_path, Derived()).report
    assert (report.manifest.lengths, report.manifest.states, report.manifest.causal) == (None, (), False)


class Stateful(Tokens):
    """Takes and returns its state, and the time axis is last."""

    def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, h = self.cell(self.embedding(tokens), h)
        return self.head(output).transpose(1, 2), h


@pytest.mark.parametrize("adds", [0.0, 1.0])
def test_a_users_own_state_is_proved_causal_or_said_not_to_be(adds: float, tmp_path: Path) -> None:
    class Shifted(Stateful):
        def forward(self, tokens: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            output, h = super().forward(tokens, h)
            return output, h + adds

    options: dict[str, Any] = {
        "output_names": ["scores", "h_out"],
        "dynamic_shapes": {**SHAPES, "h": {1: "batch"}},
        "state": {"h_out": "h"},
    }
    args = (torch.zeros(2, 3, dtype=torch.long), torch.zeros(1, 2, HIDDEN))
    report = to_onnx(Shifted(cell("gru", batch_first=True)).eval(), args, tmp_path / "m.onnx", **options)
    assert report.manifest.causal == (adds == 0)
    assert report.manifest.outputs[0].axes == ("batch", 4, "time")
    said = "causal: a run in chunks proved equal to one pass" if adds == 0 else "not causal: output 'scores'"
    assert any(note.startswith(said) for note in report.notes)
