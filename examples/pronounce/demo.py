"""Train the pronouncer, export it whole and as steps, prove both, serve them, and compare all with the dictionary.

python -m examples.pronounce.demo [--epochs 4] [--word recurrent]
"""

import argparse
import queue
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tritonclient.grpc as triton
from torch import nn
from torch.nn import functional as F

from cellport.export import to_onnx
from cellport.serve import Server

from .data import END, MOST, START, Errors, batches, errors, read, said, split
from .model import Encoder, Pronouncer, Speaker, Step

ROWS = 100
"""Words of a request, or that are streamed at the same time."""
STREAMED = 1000
"""Held-out words that are also streamed phoneme by phoneme."""
BATCH, RATE = 256, 4e-3
Spoken = list[list[str]]


class Results(NamedTuple):
    """What was said of the held-out words, and how wrong it is.

    Attributes:
        in_torch: by PyTorch.
        served: by the file with the loop inside, over gRPC.
        streamed: of the first words, by the file of one step, over gRPC.
        errors: of what was served.
    """

    in_torch: Spoken
    served: Spoken
    streamed: Spoken
    errors: Errors


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and serve a network that pronounces English words.")
    parser.add_argument("--epochs", type=int, default=4, help="times that each word is seen in training (default 4)")
    parser.add_argument("--word", nargs="+", default=["recurrent", "exporter", "cellport"], help="to pronounce")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    training, held_out = split()
    print(f"{len(training):,} words of cmudict to train on, {len(held_out):,} held out")
    started, processor = time.perf_counter(), time.process_time()
    model = train(Pronouncer(), training, arguments.epochs)
    print(
        f"trained in {time.perf_counter() - started:.0f} s ({time.process_time() - processor:.0f} s of one processor)"
    )
    with tempfile.TemporaryDirectory() as folder:
        run(model, Path(folder), held_out, STREAMED, arguments.word)


def run(model: Pronouncer, folder: Path, words: list[str], streamed: int, shown: Sequence[str] = ()) -> Results:
    """Export, serve and test a trained model on held-out words."""
    export(model, folder)
    speaker, in_torch = Speaker(model).eval(), []
    with torch.inference_mode():
        for part in parts(words):
            in_torch += [said(row) for row in speaker(*read(part))[0].tolist()]
    with Server(folder, port=0) as server, triton.InferenceServerClient(server.address) as client:
        served, found = whole(client, words), streams(client, words[:streamed])
        results = Results(in_torch, served, found, errors(words, served))
        print(f"{len(words):,} held-out words, each compared with its closest pronunciation in the dictionary:")
        print(f"  in PyTorch: {errors(words, in_torch)}")
        print(f"  as served:  {results.errors}")
        print(f"the first {streamed:,} of them, phoneme by phoneme through a sequence of the server each:")
        print(f"  in PyTorch: {errors(words[:streamed], in_torch[:streamed])}")
        print(f"  streamed:   {errors(words[:streamed], found)}")
        differ = [sum(a != b for a, b in zip(each, in_torch, strict=False)) for each in (served, found)]
        print(f"words that differ from PyTorch's: {differ[0]} as served, {differ[1]} as streamed")
        for word, phonemes in zip(shown, streams(client, list(shown)) if shown else [], strict=True):
            print(f"  {word}: {' '.join(phonemes)}")
    return results


def train(model: Pronouncer, words: Sequence[str], epochs: int, batch: int = BATCH) -> Pronouncer:
    """Train on all pronunciations of the words, by Adam with one cycle of the learning rate."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    steps = epochs * sum(1 for _ in batches(words, batch, np.random.default_rng(0)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for epoch in range(epochs):
        losses = []
        for letters, phonemes, valid in batches(words, batch, rng):
            loss = F.cross_entropy(model.taught(letters, phonemes)[valid], phonemes[valid])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f} nats a phoneme", flush=True)
    return model.eval()


def export(model: Pronouncer, folder: Path) -> None:
    """Write and prove the three files of a model repository."""
    letters, lengths = read(["recurrent", "network"])
    with torch.no_grad():
        h, memory = model.read(letters[:, :7])
    text = {"letters": {0: "batch", 1: "time"}}
    phonemes = torch.tensor([[START, 5, 30], [START, 9, 60]])
    axes = {"phonemes": {0: "batch", 1: "time"}, "h": {0: "batch"}, "memory": {0: "batch", 1: "letters"}}
    for module, example, names, shapes, state in (
        (Speaker(model), (letters, lengths), ["phonemes", "count"], text | {"lengths": {0: "batch"}}, None),
        (Encoder(model), (letters[:, :7],), ["h", "memory"], text, None),
        (Step(model), (phonemes, h, memory), ["scores", "h_out", "memory_out"], axes, "h memory"),
    ):
        path = folder / type(module).__name__.lower() / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs = {f"{name}_out": name for name in state.split()} if state else None
        print(to_onnx(module.eval(), example, path, output_names=names, dynamic_shapes=shapes, state=pairs))


def whole(client: triton.InferenceServerClient, words: list[str]) -> Spoken:
    """The phonemes of words by the file with the loop inside, many words a request."""
    found: Spoken = []
    for part in parts(words):
        letters, lengths = read(part)
        given = [tensor("letters", letters.numpy()), tensor("lengths", lengths.numpy())]
        found += [said(row) for row in client.infer("speaker", given).as_numpy("phonemes").tolist()]
    return found


def streams(client: triton.InferenceServerClient, words: list[str]) -> Spoken:
    """The phonemes of words by the file of one step: each word a sequence, many at the same time over one stream."""
    answers: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    found: list[list[int]] = [[] for _ in words]

    def send(row: int, inputs: list[triton.InferInput], **marks: bool) -> None:
        outputs = [triton.InferRequestedOutput("scores")] if inputs else None
        client.async_stream_infer("step", inputs, request_id=str(row), outputs=outputs, sequence_id=row + 1, **marks)

    def receive() -> triton.InferResult:
        result, error = answers.get(timeout=30)
        if error is not None or result is None:
            raise RuntimeError(f"a step of a stream failed: {error}")
        return result

    for rows in parts(list(range(len(words)))):
        for row in rows:
            read_word = client.infer("encoder", [tensor("letters", read([words[row]])[0].numpy())])
            states = [tensor(name, read_word.as_numpy(name)) for name in ("h", "memory")]
            send(row, [tensor("phonemes", np.array([[START]])), *states], sequence_start=True)
        while rows:
            for result in [receive() for _ in rows]:
                found[int(result.get_response().id)].append(int(result.as_numpy("scores").argmax()))
            ended = [row for row in rows if found[row][-1] == END or len(found[row]) == MOST]
            rows = [row for row in rows if row not in ended]
            for row in rows:
                send(row, [tensor("phonemes", np.array([[found[row][-1]]]))])
            for row in ended:
                client.infer("step", [], sequence_id=row + 1, sequence_end=True)
    client.stop_stream()
    return [said(row) for row in found]


def tensor(name: str, values: np.ndarray) -> triton.InferInput:  # type: ignore[type-arg]
    """An input of a request."""
    datatype = "INT64" if values.dtype == np.int64 else "FP32"
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def parts(items: list) -> list[list]:  # type: ignore[type-arg]
    """Pieces of at most `ROWS`."""
    return [items[at : at + ROWS] for at in range(0, len(items), ROWS)]


if __name__ == "__main__":
    main()
