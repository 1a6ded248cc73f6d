"""What the exporter decides by proof, and what it says of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cellport.cells import LSTM, SRU
from cellport.errors import ExportError
from cellport.export import to_onnx

from .conftest import export
from .models import FEATURES, VOCABULARY, Mean, Tokens, TokensWithLengths, cell


def notes(folder: Path, model: nn.Module, **options: Any) -> str:
    return "\n".join(export(folder, model, **options).report.notes)


def test_a_mean_over_time_keeps_its_states_inside(tmp_path: Path) -> None:
    exported = export(tmp_path, Mean(cell("gru", batch_first=True)))
    manifest, said = exported.report.manifest, "\n".join(exported.report.notes)
    assert manifest.states == ()
    assert not manifest.causal
    assert "states left inside: output 'output' of 7 steps in chunks of 3 differs" in said
    assert "no lengths input" in said
    assert manifest.lengths is None


def test_both_directions_keep_their_states_inside(tmp_path: Path) -> None:
    exported = export(tmp_path, Tokens(cell("lstm", bidirectional=True, batch_first=True)))
    assert exported.report.manifest.states == ()
    assert "cell runs in both directions" in "\n".join(exported.report.notes)
    assert exported.report.manifest.lengths is not None


class Twice(nn.Module):
    """One cell, called on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(VOCABULARY, FEATURES), LSTM(FEATURES, FEATURES, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        first, _ = self.cell(self.embedding(tokens))
        return self.cell(first)[0]


def test_a_cell_that_is_called_twice_keeps_its_state(tmp_path: Path) -> None:
    exported = export(tmp_path, Twice())
    assert exported.report.manifest.states == ()
    assert "cell is called 2 times" in "\n".join(exported.report.notes)


class ReadsPadding(TokensWithLengths):
    """Takes lengths, and averages over the padding all the same."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        scores, answer = super().forward(tokens, lengths)
        return scores, answer + self.embedding(tokens).mean((1, 2)).unsqueeze(1)


def test_lengths_that_do_not_hide_padding_are_no_lengths(tmp_path: Path) -> None:
    """A server would pad such a model's rows and give wrong answers."""
    exported = export(tmp_path, ReadsPadding(cell("lstm", batch_first=True)))
    assert exported.report.manifest.lengths is None
    assert "does not hide padding" in "\n".join(exported.report.notes)


def test_nothing_is_lifted_where_that_is_not_wanted(tmp_path: Path) -> None:
    exported = export(tmp_path, Tokens(cell("gru", batch_first=True)), state=None, lengths=None)
    assert [value.name for value in exported.graph.inputs] == ["tokens"]


def test_required_states_are_ordinary_inputs(tmp_path: Path) -> None:
    exported = export(tmp_path, Tokens(cell("gru", batch_first=True)), state_inputs="required")
    assert "cell.h" not in exported.graph.initializers
    assert [each.required for each in exported.report.manifest.states] == [True]


@pytest.mark.parametrize(("lookup", "tables"), [("auto", 4), (True, 4), (False, 0)])
def test_lookup_says_whether_tables_are_made(lookup: bool | str, tables: int, tmp_path: Path) -> None:
    exported = export(tmp_path, Tokens(cell("sru-v2", batch_first=True)), lookup=lookup)
    assert len(exported.report.manifest.tables) == tables
    assert ("folded into 4 tables" in "\n".join(exported.report.notes)) == bool(tables)


class Softened(Tokens):
    def forward(self, tokens: Tensor) -> Tensor:
        return torch.softmax(self.embedding(tokens), 1)


class Unread(Tokens):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Tokens, ": embedding 'embedding' feeds module 'cell' (LSTM), whose operator LSTM projects the rows itself; "),
        (Softened, ": embedding 'embedding' feeds forward of Softened, whose operator Softmax reads the rows as they "),
        (Unread, " in advance; accepted are lookup='auto' and False"),
    ],
)
def test_insisting_on_tables_where_there_are_none_is_refused(kind: type[Tokens], why: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="lookup=True, but no embedding feeds a projection") as caught:
        export(tmp_path, kind(cell("lstm", batch_first=True)), lookup=True, lowering="native")
    assert why in str(caught.value)


def test_a_scan_is_the_way_out_where_the_operator_projects_the_rows(tmp_path: Path) -> None:
    exported = export(tmp_path, Tokens(cell("lstm", batch_first=True)), lookup=True, lowering="scan")
    assert exported.report.manifest.tables


def test_an_embedding_that_others_read_stays_beside_its_tables(tmp_path: Path) -> None:
    class Residual(Tokens):
        def forward(self, tokens: Tensor) -> Tensor:
            embedded = self.embedding(tokens)
            return self.cell(embedded)[0] + torch.softmax(embedded, 1)

    exported = export(tmp_path, Residual(SRU(FEATURES, FEATURES, batch_first=True)), lookup=True)
    assert "embedding.weight" in exported.graph.initializers
    assert len(exported.report.manifest.tables) == 4


class Broken(nn.Module):
    """A module that cannot be exported, by what its forward does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embedding, self.how = nn.Embedding(VOCABULARY, FEATURES), how

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.how == "branch" and tokens.sum() > 3:
            return x + 1
        if self.how == "fixed":
            return x.reshape(2, 3, FEATURES) if tokens.shape[0] == 2 else x
        if self.how == "operator":
            return torch.special.bessel_j0(x)
        return x


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("branch", "branches or sizes a tensor on the values of its inputs"),
        ("operator", "bessel_j0"),
    ],
)
def test_what_cannot_be_exported_is_named(how: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export(tmp_path, Broken(how))
    assert not (tmp_path / "model.onnx").exists()


GOOD: dict[str, Any] = {"dynamic_shapes": {"tokens": {0: "batch", 1: "time"}}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset_version": 17}, "opset_version is 17; accepted: an integer from 18 to 22"),
        ({"opset_version": 23}, "opset_version is 23; accepted: an integer from 18 to 22"),
        ({"input_names": ["a", "b"]}, r"input_names has 2 names \['a', 'b'\]; the arguments hold 1"),
        ({"output_names": ["a", "b"]}, "output_names has 2 names"),
        ({"dynamic_shapes": None}, "dynamic_shapes is None; name the axes"),
        ({"dynamic_shapes": {"ids": {0: "batch"}}}, r"dynamic_shapes names \['ids'\]; accepted: \['tokens'\]"),
        ({"dynamic_shapes": {"tokens": {5: "batch"}}}, "names axis 5 of 'tokens', which has shape"),
        ({"dynamic_shapes": {"tokens": {0: 3}}}, "gives axis 0 of 'tokens' as 3"),
        ({"state": {"output": "h"}}, "state names the input 'h'; the inputs are"),
        ({"state": {"h_out": "tokens"}}, "state names the output 'h_out'; the outputs are"),
        ({"state": {"output": "tokens"}}, "state input 'tokens' has axes .* and its output 'output'"),
        ({"state": "all"}, "state is 'all'; accepted: 'auto', None"),
        ({"state_inputs": "never"}, "state_inputs is 'never'; accepted: 'optional', 'required'"),
        ({"lengths": "none"}, "lengths is 'none'"),
        ({"lookup": "yes"}, "lookup is 'yes'"),
        ({"weights": "int4"}, "weights is 'int4'; accepted: 'float32'"),
    ],
)
def test_wrong_use_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = Tokens(cell("gru", batch_first=True)).eval()
    with pytest.raises(ExportError, match=message):
        to_onnx(model, (torch.zeros(2, 3, dtype=torch.long),), tmp_path / "m.onnx", **{**GOOD, **options})


def test_a_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = Tokens(cell("gru", batch_first=True)).train()
    with pytest.raises(ExportError, match=r"in training mode; call model\.eval"):
        to_onnx(model, (torch.zeros(2, 3, dtype=torch.long),), tmp_path / "m.onnx", **GOOD)


def test_arguments_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    model = Tokens(cell("gru", batch_first=True)).eval()
    with pytest.raises(ExportError, match=r"does not run on its example arguments: .*Error"):
        to_onnx(model, (torch.zeros(2, 3),), tmp_path / "m.onnx", **GOOD)
