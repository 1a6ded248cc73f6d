"""The example of a user's own cell: it trains, exports with a proof, and spells the same when served."""

from pathlib import Path

import numpy as np
import torch

from cellport.serve import Client, Server
from examples.mingru import demo
from examples.mingru.model import Speller


def spelled_by_pytorch(model: Speller, prefix: str) -> str:
    word, tokens = prefix, [demo.ALPHABET.index(letter) for letter in f" {prefix}"]
    while True:
        with torch.no_grad():
            scores, _ = model(torch.tensor([tokens]), torch.zeros(1, model.hidden))
        token = int(scores[0, -1].argmax())
        if token == demo.END or len(word) == 20:
            return word
        word += demo.ALPHABET[token]
        tokens.append(token)


def test_the_speller_learns_and_spells_the_same_when_served(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Speller(len(demo.ALPHABET), hidden=48)
    loss = demo.train(model, demo.words(2_000), 60)
    assert loss < 0.85 * np.log(len(demo.ALPHABET))
    demo.export(model, tmp_path / "speller.onnx")
    with Server(tmp_path / "speller.onnx", port=0) as server, Client(f"127.0.0.1:{server.port}") as client:
        for prefix in ("under", "re", "a"):
            assert demo.finish(client, prefix) == spelled_by_pytorch(model, prefix)
