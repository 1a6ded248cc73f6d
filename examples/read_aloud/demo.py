"""Train the reader, export it with its loop, prove it, serve it, and have it read numbers of hands it never saw.

python -m examples.read_aloud.demo [--steps 2000]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cellport.export import to_onnx
from cellport.serve import Server

from .data import Digits, Rows, draw, load, varied
from .model import BLANK, Reader
from .numbers import MOST, WORDS, ids

NAME = "read_aloud"
ROWS = 100
"""Rows of a request."""
TESTED = 3000
LESSONS = ((0.1, (1,)), (0.2, (1, 2, 3)), (1.0, (2, 3, 4)))
"""Up to which part of training rows have how many digits: it learns to tell single digits first."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and serve a network that reads numbers aloud.")
    parser.add_argument("--steps", type=int, default=2000, help="of training, on 64 rows of digits (default 2000)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the images are small: threads would wait for each other
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), Reader, arguments.steps, TESTED)


def run(folder: Path, make: Callable[[], Reader], steps: int, tested: int) -> tuple[float, float, int]:
    """Train, export, serve and test.

    Returns:
        The part of the rows that is read right in PyTorch and as served, and how many rows are read differently.
    """
    torch.manual_seed(0)
    training, held_out = load()
    rows = draw(held_out, tested, np.random.default_rng(1))
    started, processor = time.perf_counter(), time.process_time()
    model = train(make(), training, steps)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    print(f"trained on rows of {len(training.values):,} digits in {seconds:.0f} s ({processor:.0f} s of one processor)")
    path = export(model, folder, rows)
    with torch.inference_mode():
        in_torch = np.concatenate([model(part)[0].numpy() for part in torch.from_numpy(rows.images).split(ROWS)])
    with Server(path, port=0) as server:
        served = ask(server.address, rows.images)
    exact = right(in_torch, rows), right(served, rows)
    print(f"held out: {tested:,} rows of 2 to 4 of {len(held_out.values)} digits that training never saw")
    print(f"every word right: {exact[0]:.2%} in PyTorch, {exact[1]:.2%} as served")
    different = int((in_torch != served).any(1).sum())
    print(f"rows that are read differently: {different}")
    for size in (2, 3, 4):
        chosen = (rows.numbers >= 10 ** (size - 1)) & (rows.numbers < 10**size)
        print(f"  {size} digits: {right(served[chosen], Rows(rows.images[chosen], rows.numbers[chosen])):.2%}")
    show(rows, served)
    return *exact, different


def train(model: Reader, digits: Digits, steps: int) -> Reader:
    """Train on rows that are composed anew, of digits that are varied anew, for every batch."""
    rng, rate = np.random.default_rng(0), 3e-3
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        sizes = next(sizes for part, sizes in LESSONS if step < part * steps)
        images, numbers = draw(varied(digits), 64, rng, sizes)
        image, words = torch.from_numpy(images), torch.tensor([ids(number) for number in numbers.tolist()])
        scores, seen = model.taught(image + 0.1 * torch.randn_like(image), words)
        # Every word counts, and the first end; what follows it is never read.
        meant = torch.arange(MOST) <= (words != 0).sum(1, keepdim=True)
        loss = F.cross_entropy(scores[meant], words[meant]) + noticed(seen, numbers)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"  {(step + 1) * 64:,} rows, loss {loss.item():.3f}", flush=True)
    return model.eval()


def noticed(seen: Tensor, numbers: NDArray[np.int64]) -> Tensor:
    """How far the columns' scores [rows, columns, BLANK + 1] are from the digits: the CTC loss of a digit.

    The digits of a number in their order are all that it is told, not where they stand.
    """
    written = [str(number) for number in numbers]
    digits = torch.tensor([int(digit) for number in written for digit in number])
    lengths = torch.tensor([len(number) for number in written])
    columns = torch.full_like(lengths, seen.shape[1])
    return F.ctc_loss(seen.log_softmax(2).transpose(0, 1), digits, columns, lengths, BLANK)


def export(model: Reader, folder: Path, rows: Rows) -> Path:
    """Write and prove the file: image, loop and all."""
    path, example = folder / f"{NAME}.onnx", torch.from_numpy(rows.images[:2])
    axes = {"image": {0: "batch"}}
    print(to_onnx(model, (example,), path, output_names=["words", "count"], dynamic_shapes=axes))
    return path


def ask(url: str, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """The words [rows, MOST] that the server reads, some rows a request."""
    answers = []
    with triton.InferenceServerClient(url) as client:
        for part in np.split(images, range(ROWS, len(images), ROWS)):
            given = triton.InferInput("image", list(part.shape), "FP32").set_data_from_numpy(part)
            answers.append(client.infer(NAME, [given]).as_numpy("words"))
    return np.concatenate(answers)


def right(words: NDArray[np.int64], rows: Rows) -> float:
    """The part of the rows of which every word is right, and the end."""
    return float((words == [ids(number) for number in rows.numbers.tolist()]).all(1).mean())


def show(rows: Rows, words: NDArray[np.int64], count: int = 2) -> None:
    """Print some rows as they look, and what was read."""
    for image, number, said in zip(rows.images[:count], rows.numbers, words, strict=False):
        for line in image:
            print("  " + "".join(" .:-=+*#%@"[int(pixel * 9.99)] for pixel in line))
        print(f"  {number}: {' '.join(WORDS[word] for word in said if word)}")


if __name__ == "__main__":
    main()
