"""The models that `benchmarks/serving.py` serves, the requests that it sends, and the answers it expects.

The expected answers come from PyTorch, never from the exported file, so that a wrong export or a mixed-up state shows
as a mismatch of the load generator.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grpcload import make_bodies
from torch import Tensor, nn

from cellport.cells import greedy
from cellport.export import to_onnx
from cellport.export.lowering import Lowering

VOCABULARY, EMBEDDING, HIDDEN, CLASSES = 20_000, 128, 256, 5
WIDTH = 128
STEPS = 50
ROWS = 64
WORDS, TOKENS = 2_000, 50

Array = np.ndarray[Any, Any]


class Classifier(nn.Module):
    """Token ids [batch, time] to the scores of five classes [batch, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores after the last token."""
        _, (h, _) = self.lstm(self.embedding(tokens))
        scores: Tensor = self.head(h[0])
        return scores


class Layers(nn.Module):
    """LSTM layers over [batch, time, width]; every step's output [batch, time, hidden]."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, HIDDEN, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer's outputs."""
        y: Tensor = self.lstm(x)[0]
        return y


class Generator(nn.Module):
    """A decoder that writes `TOKENS` tokens after a prompt [batch, time]; it never chooses to end."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, EMBEDDING)
        self.encoder = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)
        self.decoder = nn.GRUCell(EMBEDDING, HIDDEN)
        self.head = nn.Linear(HIDDEN, WORDS)
        with torch.no_grad():
            self.head.bias[0] = -1e4

    def step(self, h: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the scores of the next token."""
        h = self.decoder(self.embedding(token), h)
        return h, self.head(h)

    def forward(self, prompt: Tensor) -> Tensor:
        """Return the tokens [batch, steps] as numbers that the load generator can compare."""
        _, h = self.encoder(self.embedding(prompt))
        tokens, _, _ = greedy(self.step, h[0], 1, end=0, max_steps=TOKENS)
        return tokens.to(torch.float32)


@dataclass(frozen=True)
class Load:
    """What the load generator sends.

    Attributes:
        bodies: file of requests.
        expect: file of expected answers; None where any answer will do.
        options: further options of grpcload.
        steps: what one request counts for.
    """

    bodies: Path
    expect: Path | None
    options: tuple[str, ...]
    steps: int = 1


def model_path(folder: Path, name: str) -> Path:
    """Where a model's file is."""
    return folder / "models" / name / "1" / "model.onnx"


def export(
    folder: Path, name: str, model: nn.Module, argument: Tensor, output: str, lowering: Lowering = "native"
) -> None:
    """Export to a file of the model repository. Its proof is the comparison of every served answer.

    No measurement at the time of the export decides what is served, so that runs of the benchmark can be compared.
    """
    path = model_path(folder, name)
    path.parent.mkdir(parents=True)
    to_onnx(
        model,
        (argument,),
        path,
        output_names=[output],
        dynamic_shapes=({0: "batch", 1: "time"},),
        lowering=lowering,
        verify=False,
    )


def unary(streams: int) -> tuple[str, ...]:
    """Options of a closed loop of unary calls, 16 connections at most."""
    connections = min(streams, 16)
    return ("--connections", str(connections), "--streams", str(streams // connections), "--order", "random")


def token_loads(
    folder: Path, name: str, model: nn.Module, vocabulary: int, output: str, lengths: Array
) -> tuple[Path, Path]:
    """Write requests with token ids, and PyTorch's answers to them."""
    rng = np.random.default_rng(len(lengths))
    kind = f"{name}-{len(set(lengths.tolist()))}-{len(lengths)}"
    key = "prompt" if name == "generator" else "tokens"
    bodies, inputs = make_bodies.token_requests(name, key, [output], lengths, vocabulary, rng)
    with torch.inference_mode():
        answers = [make_bodies.joined([model(torch.from_numpy(each[key])).numpy()]) for each in inputs]
    return write(folder / kind, bodies, answers)


def write(stem: Path, bodies: Iterable[bytes], answers: Iterable[bytes]) -> tuple[Path, Path]:
    """Write both files of a load."""
    paths = stem.with_suffix(".bodies"), stem.with_suffix(".expect")
    make_bodies.write_frames(paths[0], bodies)
    make_bodies.write_frames(paths[1], answers)
    return paths


def classifier_loads(folder: Path) -> dict[str, Load]:
    """Export the classifier; requests of 32 tokens, of random lengths, and one at a time."""
    torch.manual_seed(0)
    model = Classifier().eval()
    # Its tokens' projections in a table: what lowering="auto" chooses with batches=(16, 64).
    export(folder, "classifier", model, torch.zeros(2, 3, dtype=torch.long), "logits", "scan")
    rng = np.random.default_rng(0)
    fixed = token_loads(folder, "classifier", model, VOCABULARY, "logits", np.full(256, 32))
    drawn = make_bodies.lengths(rng, 512, "lognormal", 4, 128, 32, 0.7)
    random = token_loads(folder, "classifier", model, VOCABULARY, "logits", drawn)
    return {
        "noop": Load(fixed[0], None, unary(64)),
        "fixed": Load(*fixed, unary(64)),
        "random": Load(*random, unary(64)),
        "single": Load(*fixed, unary(1)),
    }


def step_loads(folder: Path) -> dict[str, Load]:
    """Export the LSTM that is fed step by step; a step a message, and a step of 64 sequences a message."""
    torch.manual_seed(1)
    model = Layers(1).eval()
    export(folder, "steps", model, torch.zeros(2, 3, WIDTH), "y")
    rng = np.random.default_rng(1)
    loads = {}
    for name, rows, variants, streams in (("stream", 0, 16, 64), ("many", ROWS, 2, 2)):
        bodies, inputs = make_bodies.sequence_requests("steps", "x", ["y"], WIDTH, variants, rng, rows=rows)
        answers = []
        for each in inputs:
            with torch.inference_mode():
                y = model(torch.from_numpy(each["x"])[:, None].expand(-1, STEPS, -1)).numpy()
            answers += [make_bodies.joined([y[:, step]]) for step in range(STEPS)]
        paths = write(folder / name, bodies, answers)
        options = (*unary(streams), "--stream", "--messages", "0", "--sequence", str(STEPS))
        loads[name] = Load(*paths, options, max(rows, 1))
    return loads


def generation_loads(folder: Path) -> dict[str, Load]:
    """Export the generator; 64 generations at a time, and one."""
    torch.manual_seed(2)
    model = Generator().eval()
    export(folder, "generator", model, torch.ones(2, 3, dtype=torch.long), "text")
    paths = token_loads(folder, "generator", model, WORDS, "text", np.full(128, 8))
    return {"together": Load(*paths, unary(64)), "alone": Load(*paths, unary(1))}


def export_layers(folder: Path) -> int:
    """Export the two layers whose states idle; return the bytes of one sequence's state."""
    torch.manual_seed(3)
    export(folder, "layers", Layers(2).eval(), torch.zeros(2, 3, WIDTH), "y")
    return 2 * 2 * HIDDEN * 4
