"""Train the speller on English words, export it, prove it, serve it, and let it finish words character by character.

python -m examples.mingru.demo [--steps 400] [--prefix pre]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import wordfreq
from torch import nn

from cellport.export import to_onnx
from cellport.serve import Client, Server

from .model import Speller

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz"
END = 0


def words(count: int = 20_000) -> list[str]:
    """The most frequent English words of plain letters."""
    found = (word for word in wordfreq.top_n_list("en", 2 * count) if set(word) <= set(ALPHABET[2:]))
    return [word for word, _ in zip(found, range(count), strict=False)]


def batch(chosen: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded characters, from a space to the end mark, and the characters that each row is to be asked about."""
    rows = [[ALPHABET.index(letter) for letter in f" {word}\n"] for word in chosen]
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens, torch.tensor([len(ids) - 1 for ids in rows])


def train(model: Speller, vocabulary: list[str], steps: int) -> float:
    """Train on random batches; return the mean loss of the last tenth, in nats a character."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        tokens, lengths = batch([vocabulary[i] for i in rng.integers(len(vocabulary), size=64)])
        scores, _ = model(tokens[:, :-1], torch.zeros(64, model.hidden), lengths)
        valid = torch.arange(tokens.shape[1] - 1) < lengths.unsqueeze(1)
        loss = nn.functional.cross_entropy(scores[valid], tokens[:, 1:][valid])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-max(1, steps // 10) :]))


def export(model: Speller, path: Path) -> None:
    """Write and prove the file; its state is named and optional."""
    example = (torch.tensor([[1, 5, 2]]), torch.zeros(1, model.hidden), torch.tensor([3]))
    report = to_onnx(
        model.eval(),
        example,
        path,
        output_names=["scores", "h_out"],
        dynamic_shapes={"tokens": {0: "batch", 1: "time"}, "h": {0: "batch"}, "lengths": {0: "batch"}},
        state={"h_out": "h"},
    )
    print(report)


def finish(client: Client, prefix: str) -> str:
    """Finish a word by its most likely characters; the server keeps the state between them."""
    word = prefix
    with client.sequence("speller") as stream:
        for letter in f" {prefix}":
            scores = stream.step({"tokens": np.array([[ALPHABET.index(letter)]]), "lengths": np.array([1])})["scores"]
        while (token := int(scores.argmax())) != END and len(word) < 20:
            word += ALPHABET[token]
            scores = stream.step({"tokens": np.array([[token]]), "lengths": np.array([1])})["scores"]
    return word


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and serve a minGRU that spells.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--prefix", nargs="+", default=["under", "elect", "re", "photo"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Speller(len(ALPHABET))
    loss = train(model, words(), arguments.steps)
    print(f"loss {loss:.2f} nats a character (guessing: {np.log(len(ALPHABET)):.2f})")
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "speller.onnx")
        with Server(Path(folder) / "speller.onnx", port=0) as server, Client(f"127.0.0.1:{server.port}") as client:
            for prefix in arguments.prefix:
                print(f"{prefix}… {finish(client, prefix)}")


if __name__ == "__main__":
    main()
