"""Train the labeller, export it, prove it, serve it, and stream series that it never saw through it, step by step.

python -m examples.activity.demo [--steps 400]
"""

import argparse
import queue
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from cellport.export import to_onnx
from cellport.serve import Server

from .data import ACTIVITIES, CHANNELS, RATE, Recordings, Series, draw, join, load
from .model import Labeller

NAME = "activity"
PIECES = 5
"""Recordings that a tested series is made of."""


class Scores(NamedTuple):
    """Part of the held-out steps that is labelled right."""

    logistic: float
    in_torch: float
    served: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and serve an LSTM that labels activities step by step.")
    parser.add_argument("--steps", type=int, default=400, help="of training, on 32 series of 20 seconds (default 400)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is small: threads would wait for each other
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.steps)


def run(folder: Path, steps: int, hidden: int = 64) -> Scores:
    """Train, export, serve and test; print what is right."""
    torch.manual_seed(0)
    trained, held_out = load("TRAIN"), load("TEST")
    tested = join(held_out, PIECES, np.random.default_rng(1))
    started = time.perf_counter()
    model = train(trained, steps, hidden)
    print(f"trained on {len(trained.y)} recordings in {time.perf_counter() - started:.0f} s")
    path = export(model, folder, tested)
    with torch.inference_mode():
        in_torch = model(torch.from_numpy(tested.x)).argmax(2).numpy()
    with Server(path, port=0) as server:
        started = time.perf_counter()
        served = stream(server.address, tested.x)
        seconds = time.perf_counter() - started
    print(f"streamed {tested.y.size:,} steps of {len(tested.y)} series in {seconds:.1f} s, a message each")
    found = Scores(logistic(trained, tested), right(in_torch, tested), right(served, tested))
    print(f"right of {tested.y.size:,} held-out steps: {found.in_torch:.2%} in PyTorch, {found.served:.2%} as served")
    print(f"steps that are labelled differently: {int((in_torch != served).sum())}")
    print(f"logistic regression on the same step alone: {found.logistic:.2%}")
    show(served, tested)
    return found


def train(recordings: Recordings, steps: int, hidden: int) -> Labeller:
    """Train on series that are composed anew for every batch, turned a little and of varied strength."""
    values = torch.from_numpy(recordings.x).flatten(0, 1)
    model, rng = Labeller(values.mean(0), values.std(0), hidden), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        x, y = (torch.from_numpy(each) for each in draw(recordings, 32, 200, rng))
        x = x * (1 + 0.15 * torch.randn(32, 1, CHANNELS)) + 0.1 * model.deviation * torch.randn_like(x)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def export(model: Labeller, folder: Path, tested: Series) -> Path:
    """Write and prove the file; the LSTM's states become inputs and outputs of it by themselves."""
    path, example = folder / f"{NAME}.onnx", torch.from_numpy(tested.x[:2, :50])
    axes = {"motion": {0: "batch", 1: "time"}}
    print(to_onnx(model, (example,), path, output_names=["scores"], dynamic_shapes=axes))
    return path


def logistic(recordings: Recordings, tested: Series) -> float:
    """What a logistic regression gets right that sees the channels of the step itself."""
    x, steps = recordings.x.reshape(-1, CHANNELS), recordings.x.shape[1]
    mean, deviation = x.mean(0), x.std(0)
    baseline = LogisticRegression(max_iter=1000).fit((x - mean) / deviation, recordings.y.repeat(steps))
    return float((baseline.predict((tested.x.reshape(-1, CHANNELS) - mean) / deviation) == tested.y.ravel()).mean())


def stream(url: str, motion: NDArray[np.float32]) -> NDArray[np.int64]:
    """Label series [series, steps, CHANNELS], all at once over one stream: each is a sequence, each message a step."""
    answers: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    series, steps = motion.shape[:2]
    labels = np.zeros((series, steps), np.int64)
    with triton.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for step in range(steps):
            for row in range(series):
                given = triton.InferInput("motion", [1, 1, CHANNELS], "FP32")
                given.set_data_from_numpy(motion[row : row + 1, step : step + 1])
                client.async_stream_infer(
                    NAME,
                    [given],
                    request_id=f"{row} {step}",
                    outputs=[triton.InferRequestedOutput("scores")],
                    sequence_id=row + 1,
                    sequence_start=step == 0,
                    sequence_end=step == steps - 1,
                )
            for _ in range(series):  # as from watches: nobody sends a step before it was measured
                result, error = answers.get(timeout=30)
                if error is not None or result is None:
                    raise RuntimeError(f"step {step} of a stream failed: {error}")
                row, answered = map(int, result.get_response().id.split())
                labels[row, answered] = result.as_numpy("scores").argmax()
        client.stop_stream()
    return labels


def right(labels: NDArray[np.int64], tested: Series) -> float:
    """The part of all steps that is labelled right."""
    return float((labels == tested.y).mean())


def show(labels: NDArray[np.int64], tested: Series) -> None:
    """Print how right labels are by the time since the activity changed, and the first series, a letter a second."""
    steps = tested.y.shape[1] // PIECES
    correct = (labels == tested.y).reshape(-1, steps)
    for first, last in ((0, RATE), (RATE, 3 * RATE), (3 * RATE, steps)):
        part = correct[:, first:last].mean()
        print(f"  {first / RATE:g} to {last / RATE:g} s after the activity changed: {part:.1%}")
    for name, row in (("true", tested.y[0]), ("label", labels[0])):
        print(f"  {name:5} {''.join(ACTIVITIES[label][0] for label in row[RATE - 1 :: RATE])}")


if __name__ == "__main__":
    main()
