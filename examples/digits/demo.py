"""Train three readers of digits, export them, prove them, serve them, and read images that they never saw.

python -m examples.digits.demo [--md 30] [--grid 35] [--rows 80] [--validate]
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cellport.export import to_onnx
from cellport.serve import Server

from .data import SIDE, Digits, cut, distort, enlarge, load, split
from .model import ByGridLSTM, ByMDLSTM, ByRows

BATCH, REQUEST, AT_ONCE = 64, 60, 16
"""Images of a step of training, and of a request; requests of one image that are sent at the same time."""
Scores = NDArray[np.float32]


class Reader(NamedTuple):
    """What the demo trains and serves.

    Attributes:
        name: of the served model.
        model: whose second input is the sizes of the images, or where `rows` holds their heights.
        epochs: times that each image is seen in training, distorted anew.
        rate: the largest learning rate.
        rows: whether it takes whole images, row by row; else they are cut to their ink.
    """

    name: str
    model: nn.Module
    epochs: int
    rate: float
    rows: bool = False

    def given(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of the model for images [images, SIDE, SIDE]."""
        return (images, torch.full((len(images),), SIDE)) if self.rows else tuple(cut(images))


class Result(NamedTuple):
    """How a reader read the images that it never saw.

    Attributes:
        in_torch: the part that PyTorch reads right.
        served: the part that the server reads right.
        changed: images that the two read differently.
        largest: the largest difference between their scores.
    """

    in_torch: float
    served: float
    changed: int
    largest: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and serve networks that read handwritten digits.")
    parser.add_argument("--md", type=int, default=30, help="epochs of the multi-dimensional LSTM (default 30)")
    parser.add_argument("--grid", type=int, default=35, help="epochs of the Grid LSTM (default 35)")
    parser.add_argument("--rows", type=int, default=80, help="epochs of the LSTM over rows (default 80)")
    parser.add_argument("--validate", action="store_true", help="leave the tested part alone and hold out another")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small: threads would wait for each other
    torch.manual_seed(0)
    training, tested = split(load())
    if arguments.validate:
        training, tested = split(training)
    print(f"{len(training.labels):,} images to train on, {len(tested.labels)} held out")
    with tempfile.TemporaryDirectory() as folder:
        run(readers(arguments.md, arguments.grid, arguments.rows), training, tested, Path(folder))


def readers(md: int, grid: int, rows: int) -> list[Reader]:
    """The three, each to be trained for so many epochs."""
    return [
        Reader("md_lstm", ByMDLSTM(), md, 2e-2),
        Reader("grid_lstm", ByGridLSTM(), grid, 2e-2),
        Reader("rows", ByRows(), rows, 1e-2, rows=True),
    ]


def run(chosen: list[Reader], training: Digits, tested: Digits, folder: Path) -> dict[str, Result]:
    """Train, export, serve and test the readers."""
    for reader in chosen:
        started, processor = time.perf_counter(), time.process_time()
        train(reader, training)
        seconds, used = time.perf_counter() - started, time.process_time() - processor
        print(f"{reader.name}: trained in {seconds:.0f} s ({used:.0f} s of one processor)", flush=True)
        export(reader, folder, training.images)
    found = {}
    with Server(folder, port=0) as server, triton.InferenceServerClient(server.address) as client:
        print(f"{len(tested.labels)} held-out images, {REQUEST} a request:")
        for reader in chosen:
            found[reader.name] = compare(reader, client, tested)
            print(f"  {reader.name}: {describe(found[reader.name])}", flush=True)
        for reader in chosen:
            if not reader.rows:
                started = time.perf_counter()
                apart = singly(reader, client, tested.images)
                seconds = time.perf_counter() - started
                print(
                    f"  {reader.name}, each image alone, at its own size, {AT_ONCE} requests at a time: "
                    f"scores at most {apart:.1e} apart, {seconds:.1f} s"
                )
                apart = larger(reader, client, tested.images[:REQUEST])
                print(f"  {reader.name}, on a canvas of 12 x 16 that else holds NaN: scores at most {apart:.1e} apart")
    return found


def describe(result: Result) -> str:
    """A line about a result."""
    return (
        f"{result.in_torch:.2%} right in PyTorch, {result.served:.2%} as served; {result.changed} read differently, "
        f"scores at most {result.largest:.1e} apart"
    )


def train(reader: Reader, digits: Digits) -> None:
    """Train by AdamW, with one cycle of the learning rate, on images that are distorted anew each time."""
    generator = torch.Generator().manual_seed(0)
    model, count = reader.model.train(), len(digits.labels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=reader.rate, weight_decay=0.1)
    steps = reader.epochs * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, reader.rate, total_steps=steps)
    for epoch in range(reader.epochs):
        losses = []
        for rows in torch.randperm(count, generator=generator).split(BATCH):
            scores = model(*reader.given(distort(digits.images[rows], generator)))
            loss = F.cross_entropy(scores, digits.labels[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 10 == 9 or epoch == reader.epochs - 1:
            print(f"  {reader.name}, epoch {epoch + 1} of {reader.epochs}: loss {np.mean(losses):.3f}", flush=True)
    model.eval()


def export(reader: Reader, folder: Path, images: Tensor) -> None:
    """Write and prove a file of a model repository, for images of any height and, but for rows, of any width."""
    path = folder / reader.name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    axes: dict[str, Any] = {"image": {0: "batch", 1: "height", 2: "width"}, "sizes": {0: "batch"}}
    if reader.rows:
        axes = {"image": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}
    print(to_onnx(reader.model, reader.given(images[:2]), path, output_names=["scores"], dynamic_shapes=axes))


def compare(reader: Reader, client: triton.InferenceServerClient, tested: Digits) -> Result:
    """Read the tested images in PyTorch and by requests."""
    in_torch = scores_of(reader, tested.images)
    served = np.concatenate([ask(reader, client, *reader.given(part)) for part in parts(tested.images)])
    labels, read = tested.labels.numpy(), [each.argmax(1) for each in (in_torch, served)]
    right = [float((each == labels).mean()) for each in read]
    return Result(*right, int((read[0] != read[1]).sum()), float(np.abs(in_torch - served).max()))


def singly(reader: Reader, client: triton.InferenceServerClient, images: Tensor) -> float:
    """How far scores are from PyTorch's where each image is a request of its own, of no more than its own size."""
    ragged = cut(images)

    def own(number: int) -> Scores:
        height, width = ragged.sizes[number].tolist()
        image = ragged.images[number : number + 1, :height, :width].contiguous()
        return ask(reader, client, image, ragged.sizes[number : number + 1])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = np.concatenate(list(pool.map(own, range(len(images)))))
    return float(np.abs(found - scores_of(reader, images)).max())


def larger(reader: Reader, client: triton.InferenceServerClient, images: Tensor) -> float:
    """How far scores are from PyTorch's where the images lie on a canvas of 12 by 16 pixels whose rest holds NaN."""
    found = ask(reader, client, *enlarge(cut(images), 12, 16, float("nan")))
    return float(np.abs(found - scores_of(reader, images)).max())


def scores_of(reader: Reader, images: Tensor) -> Scores:
    """PyTorch's scores of images [images, SIDE, SIDE]."""
    with torch.inference_mode():
        return np.concatenate([reader.model(*reader.given(part)).numpy() for part in parts(images)])


def ask(reader: Reader, client: triton.InferenceServerClient, images: Tensor, sizes: Tensor) -> Scores:
    """The server's scores of images and their sizes, or their heights, by one request."""
    image = triton.InferInput("image", list(images.shape), "FP32").set_data_from_numpy(images.numpy())
    name = "lengths" if reader.rows else "sizes"
    size = triton.InferInput(name, list(sizes.shape), "INT64").set_data_from_numpy(sizes.numpy())
    scores: Scores = client.infer(reader.name, [image, size]).as_numpy("scores")
    return scores


def parts(images: Tensor) -> Iterator[Tensor]:
    """Images of one request after the other."""
    return iter(images.split(REQUEST))


if __name__ == "__main__":
    main()
