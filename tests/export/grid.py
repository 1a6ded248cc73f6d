"""The seeded grid of combinations on which files are compared with the modules that they were made from.

A combination is a model (a kind of cell with layers, directions, sizes and options), a way of exporting it (opset,
lookup tables, how states are given), and a case (batch, ragged lengths, chunking, initial state).
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cellport.cells import GRU, LSTM, RNN, SRU, LayerNormLSTM
from cellport.export.verification import Case, Grid
from cellport.manifest import Manifest

VOCABULARY, CLASSES = 23, 4

OURS: dict[str, Callable[..., nn.Module]] = {
    "rnn-tanh": RNN,
    "rnn-relu": lambda *sizes, **o: RNN(*sizes, nonlinearity="relu", **o),
    "lstm": LSTM,
    "lstm-no-bias": lambda *sizes, **o: LSTM(*sizes, bias=False, **o),
    "lstm-projected": lambda *sizes, **o: LSTM(*sizes, proj_size=2, **o),
    "lstm-peephole": lambda *sizes, **o: LSTM(*sizes, peephole=True, **o),
    "lstm-coupled": lambda *sizes, **o: LSTM(*sizes, coupled=True, **o),
    "lstm-layer-norm": LayerNormLSTM,
    "gru": GRU,
    "gru-reset-before": lambda *sizes, **o: GRU(*sizes, reset_after=False, **o),
    "sru-v2": SRU,
    "sru-v2-tanh": lambda *sizes, **o: SRU(*sizes, activation="tanh", highway_bias=-1.0, **o),
    "sru-v2-no-skip": lambda *sizes, **o: SRU(*sizes, skip=False, bias=False, **o),
    "sru-v1-relu": lambda *sizes, **o: SRU(*sizes, version=1, activation="relu", rescale=False, **o),
    "sru-factorised": lambda *sizes, **o: SRU(*sizes, n_proj=3, layer_norm="pre", **o),
    "sru-post-norm": lambda *sizes, **o: SRU(*sizes, layer_norm="post", **o),
}
TORCHS: dict[str, Callable[..., nn.Module]] = {
    "torch-rnn": nn.RNN,
    "torch-lstm": nn.LSTM,
    "torch-lstm-projected": lambda *sizes, **o: nn.LSTM(*sizes, proj_size=2, **o),
    "torch-gru": nn.GRU,
}
KINDS = OURS | TORCHS


class Tokens(nn.Module):
    """Token ids through an embedding, a normalisation or not, a layer and a linear layer."""

    def __init__(self, layer: nn.Module, features: int, norm: bool) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(VOCABULARY, features), layer
        self.norm = nn.LayerNorm(features) if norm else nn.Identity()
        with torch.no_grad():
            width = layer(torch.zeros(1, 1, features))[0].shape[-1]
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of every token."""
        return self.head(self.layer(self.norm(self.embedding(tokens)))[0])


class Lengths(Tokens):
    """The same with lengths: given to one of cellport's cells, packed for one of torch's."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Scores of every token."""
        x = self.norm(self.embedding(tokens))
        if not isinstance(self.layer, nn.RNNBase):
            return self.head(self.layer(x, lengths=lengths)[0])
        first = self.layer.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.layer(packed)[0], batch_first=first)[0])


class Features(nn.Module):
    """Features through a layer, whose state the caller gives and gets."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The output and the final state."""
        output, final = self.layer(features, state if len(state) > 1 else state[0])
        return (output, *(final if isinstance(final, tuple) else (final,)))


@dataclass(frozen=True)
class Combination:
    """A model and a way of exporting it."""

    kind: str
    model: str
    layers: int
    bidirectional: bool
    batch_first: bool
    features: int
    hidden: int
    norm: bool
    opset: int
    lookup: bool | str
    lowering: str
    state_inputs: str
    seed: int

    def __str__(self) -> str:
        return "-".join(str(getattr(self, each.name)).lower() for each in fields(self))

    def build(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The model, example arguments, and the keyword arguments of `to_onnx`."""
        torch.manual_seed(self.seed)
        options = {"num_layers": self.layers, "bidirectional": self.bidirectional, "batch_first": self.batch_first}
        layer = KINDS[self.kind](self.features, self.hidden, **options).eval()
        batch, time = (0, 1) if self.batch_first else (1, 0)
        axes = {batch: "batch", time: "time"}
        said: dict[str, Any] = {
            "opset_version": self.opset,
            "lookup": self.lookup,
            "lowering": self.lowering,
            "state_inputs": self.state_inputs,
        }
        ids = torch.arange(6).reshape(2, 3)
        if self.model == "tokens":
            model: nn.Module = Tokens(layer, self.features, self.norm)
            return model.eval(), (ids,), said | {"dynamic_shapes": {"tokens": axes}}
        if self.model == "lengths":
            model = Lengths(layer, self.features, self.norm)
            shapes = {"tokens": axes, "lengths": {0: "batch"}}
            return (
                model.eval(),
                (ids, torch.ones(ids.shape[batch], dtype=torch.long)),
                said | {"dynamic_shapes": shapes},
            )
        x = torch.randn((2, 3, self.features) if self.batch_first else (3, 2, self.features))
        with torch.no_grad():
            final = layer(x)[1]
        states = final if isinstance(final, tuple) else (final,)
        names = ["h", "c"][: len(states)]
        said |= {
            "input_names": ["features", *names],
            "output_names": ["output", *(f"{name}_out" for name in names)],
            "dynamic_shapes": ({**axes}, *({1: "batch"} for _ in names)),
            "state": {f"{name}_out": name for name in names},
            "lookup": "auto",
        }
        return Features(layer).eval(), (x, *(torch.zeros_like(each) for each in states)), said


def combinations(count: int, seed: int = 0) -> list[Combination]:
    """Draw combinations; every kind comes up equally often."""
    rng = random.Random(seed)
    kinds = list(KINDS)
    drawn = []
    for number in range(count):
        model = rng.choice(["tokens", "tokens", "lengths", "features"])
        kind = kinds[number % len(kinds)]
        small = [] if kind == "sru-factorised" else [(1, 3)]
        features, hidden = rng.choice([(6, 5), (5, 5), (10, 5), (7, 16), *small])
        drawn.append(
            Combination(
                kind=kind,
                model=model,
                layers=rng.choice([1, 1, 2, 3]),
                bidirectional=rng.random() < 0.35,
                batch_first=rng.random() < 0.5,
                features=features,
                hidden=hidden,
                norm=rng.random() < 0.3,
                opset=rng.choice([18, 19, 20, 21, 22]),
                lookup=rng.choice(["auto", True, False]) if "sru" in kind and model != "features" else "auto",
                lowering=rng.choice(["auto", "native", "scan"]),
                state_inputs=rng.choice(["optional", "required"]),
                seed=number,
            )
        )
    return drawn


@dataclass(frozen=True)
class Drawn(Grid):
    """A few cases drawn from the full grid."""

    count: int = 8

    def cases(self, manifest: Manifest) -> Iterator[Case]:
        """Draw among all cases that make sense for a model."""
        every = list(super().cases(manifest))
        yield from random.Random(self.seed).sample(every, min(self.count, len(every)))
