"""Small models of every kind that the exporter is tested on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cellport.cells import GRU, LSTM, RNN, SRU, SequenceCell, recurrence

VOCABULARY, FEATURES, HIDDEN, CLASSES = 23, 6, 5, 4

KINDS: dict[str, tuple[Callable[..., SequenceCell], dict[str, Any]]] = {
    "rnn-tanh": (RNN, {}),
    "rnn-relu": (RNN, {"nonlinearity": "relu"}),
    "lstm": (LSTM, {}),
    "lstm-no-bias": (LSTM, {"bias": False}),
    "lstm-projected": (LSTM, {"proj_size": 3}),
    "gru": (GRU, {}),
    "gru-reset-before": (GRU, {"reset_after": False}),
    "sru-v2": (SRU, {}),
    "sru-v2-tanh": (SRU, {"activation": "tanh", "highway_bias": -1.0}),
    "sru-v2-no-skip": (SRU, {"skip": False, "bias": False}),
    "sru-v1": (SRU, {"version": 1, "rescale": False}),
    "sru-v1-relu": (SRU, {"version": 1, "activation": "relu"}),
}


def cell(kind: str, features: int = FEATURES, hidden: int = HIDDEN, **options: Any) -> SequenceCell:
    """A cell of one of `KINDS`."""
    make, own = KINDS[kind]
    return make(features, hidden, **own, **options)


class Tokens(nn.Module):
    """Token ids through an embedding, a cell and a linear layer."""

    def __init__(self, cell: SequenceCell, features: int = FEATURES) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, features)
        self.cell = cell
        self.head = nn.Linear(cell.output_size, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.cell(self.embedding(tokens))
        return self.head(output)


class TokensWithLengths(Tokens):
    """The same with lengths of its own, and an answer after the last valid step."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, _ = self.cell(self.embedding(tokens), lengths=lengths)
        scores = self.head(output)
        if not self.cell.batch_first:
            scores = scores.transpose(0, 1)
        last = (lengths - 1).clamp(min=0).reshape(-1, 1, 1).expand(-1, 1, CLASSES)
        return scores, scores.gather(1, last).squeeze(1)


class Features(nn.Module):
    """Features through a cell, whose state the caller gives and gets."""

    def __init__(self, cell: SequenceCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        output, final = self.cell(features, state if len(state) > 1 else state[0])
        return (output, *(final if isinstance(final, tuple) else (final,)))


class Pooled(nn.Module):
    """A larger classifier: normalised embeddings, a stacked SRU, dropout, the mean over valid steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.encoder = SRU(FEATURES, HIDDEN, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(2 * HIDDEN, 8), nn.GELU(), nn.Linear(8, CLASSES))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        output, _ = self.encoder(self.norm(self.embedding(tokens)), lengths=lengths)
        return self.head(self.drop(output.sum(1) / lengths.clamp(min=1).unsqueeze(1)))


class Two(nn.Module):
    """Two cells, one after the other, inside a module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"a": GRU(FEATURES, HIDDEN), "b": LSTM(HIDDEN, 3)})
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.encoder["a"](self.embedding(tokens))
        return self.encoder["b"](output)[0]


class Mean(Tokens):
    """The mean over the whole time axis, which reads padding and cannot be cut into chunks."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).mean(1)


class MinState(NamedTuple):
    """The state of a minGRU."""

    h: Tensor


class MinGRU(nn.Module):
    """A user's own cell (minGRU, Feng et al. 2024, arXiv 2410.01201) written with one step function."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.gate, self.candidate = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)

    def forward(self, tokens: Tensor, state: MinState, lengths: Tensor) -> tuple[Tensor, MinState]:
        def step(state: MinState, gates: tuple[Tensor, Tensor]) -> tuple[MinState, Tensor]:
            z, n = gates
            h = (1 - z) * state.h + z * n
            return MinState(h), h

        x = self.embedding(tokens).transpose(0, 1)
        output, state = recurrence(step, state, (torch.sigmoid(self.gate(x)), self.candidate(x)), lengths=lengths)
        return output.transpose(0, 1), state
