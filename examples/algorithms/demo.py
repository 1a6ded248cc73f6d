"""Train a Grid LSTM on parity and on sums, export it, prove it, serve it, and ask it over the network.

python -m examples.algorithms.demo [--parity-steps 8000] [--sum-steps 12000]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from torch import Tensor, nn

from cellport.export import to_onnx
from cellport.serve import Server

from .models import Adder, Parity, parameters, stacked_like
from .tasks import draw_parity, draw_sums
from .train import answers, exact_sums, right_parities, train_adder, train_parity

TESTED = 10_000
ROWS = 100
"""Rows of a request."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export, serve and call Grid LSTMs that learned an algorithm.")
    parser.add_argument("--parity-steps", type=int, default=8000, help="at most, of 64 strings (default 8000)")
    parser.add_argument("--sum-steps", type=int, default=12_000, help="of 64 sums (default 12000)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are small: threads would wait for each other
    with tempfile.TemporaryDirectory() as folder:
        parity(Path(folder), arguments.parity_steps)
        sums(Path(folder), arguments.sum_steps)


def parity(folder: Path, steps: int, tested: int = TESTED, layers: int = 20) -> tuple[float, float]:
    """Parity of 20 bits by a tied Grid LSTM in one dimension: what is right in PyTorch, and as served."""
    torch.manual_seed(0)
    model, started = Parity(layers=layers), time.perf_counter()
    print(f"Parity of 20 bits: Grid LSTM, one dimension, {layers} tied layers, {parameters(model):,} parameters")
    seen = train_parity(model, steps)
    print(f"  trained on {seen:,} strings in {time.perf_counter() - started:.0f} s")
    bits, wanted = draw_parity(tested, torch.Generator().manual_seed(3), training=False)
    in_torch = right_parities(model, bits, wanted)
    path = folder / "parity.onnx"
    print(to_onnx(model.eval(), (bits[:2],), path, output_names=["scores"], dynamic_shapes={"bits": {0: "batch"}}))
    served = ask(path, "bits", "FP32", bits)
    right = float((served.argmax(-1) == wanted.numpy()).mean())
    print(f"  right of {tested:,} strings kept out of training: {in_torch:.2%} in PyTorch, {right:.2%} as served")
    return in_torch, right


def sums(folder: Path, steps: int, tested: int = TESTED) -> dict[str, tuple[float, float]]:
    """Sums of 5 digits by a tied Grid LSTM and by a stacked LSTM: what is exact in PyTorch, and as served."""
    torch.manual_seed(0)
    grid = Adder("grid")
    found = {}
    kinds = (("Grid LSTM, 4 tied layers", grid, "grid"), ("stacked LSTM, 2 layers", stacked_like(grid), "stacked"))
    for name, model, short in kinds:
        started = time.perf_counter()
        print(f"Sums of numbers of 5 digits: {name}, {parameters(model):,} parameters")
        seen = train_adder(model, steps)
        print(f"  trained on {seen:,} sums in {time.perf_counter() - started:.0f} s")
        found[short] = tested_sums(model, folder / f"{short}.onnx", tested)
    return found


def tested_sums(model: nn.Module, path: Path, tested: int) -> tuple[float, float]:
    """Export a model that adds; what is exact of fresh sums in PyTorch and as served."""
    read, wanted = draw_sums(tested, torch.Generator().manual_seed(4))
    in_torch = exact_sums(model, read, wanted)
    axes = {"digits": {0: "batch", 1: "time"}}
    print(to_onnx(model.eval(), (read[:2],), path, output_names=["scores"], dynamic_shapes=axes))
    served = ask(path, "digits", "INT64", read)
    exact = float(answers(torch.from_numpy(served), wanted).double().mean())
    print(f"  exact of {tested:,} fresh sums: {in_torch:.2%} in PyTorch, {exact:.2%} as served")
    return in_torch, exact


def ask(path: Path, name: str, datatype: str, values: Tensor) -> NDArray[np.float32]:
    """The scores that a server of the file gives for all rows, a request for some of them at a time."""
    with Server(path, port=0) as server, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        parts = []
        for rows in values.split(ROWS):
            given = triton.InferInput(name, list(rows.shape), datatype).set_data_from_numpy(rows.numpy())
            parts.append(client.infer(path.stem, [given]).as_numpy("scores"))
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
