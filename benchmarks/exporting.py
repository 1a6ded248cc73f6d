"""Time and memory of an export, beside torch.onnx.export's own.

A bidirectional LSTM of three layers with hidden size 512 behind an embedding, exported by cellport without verification
and by torch.onnx.export. Every measurement is a process of its own: after the imports and a first small export it takes
the memory in use, exports, and reports the time and how far the peak of its memory rose. Rounds are interleaved;
medians are printed.

    python benchmarks/exporting.py [--rounds 5] [--json exporting.json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

VOCABULARY, FEATURES, HIDDEN = 1_000, 256, 512


def build(hidden: int, layers: int) -> Any:
    """The model, small or as described above."""
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, FEATURES)
            self.lstm = nn.LSTM(FEATURES, hidden, layers, bidirectional=True, batch_first=True)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.lstm(self.embedding(tokens))[0]

    return Tagger().eval()


def export(kind: str, model: Any, path: Path) -> None:
    """One export."""
    import torch

    tokens = torch.zeros(2, 7, dtype=torch.long)
    if kind == "cellport":
        from cellport.export import to_onnx

        to_onnx(model, (tokens,), path, dynamic_shapes={"tokens": {0: "batch", 1: "time"}}, verify=False)
        return
    torch.onnx.export(
        model,
        (tokens,),
        path,
        dynamo=True,
        dynamic_shapes={"tokens": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}},
        verbose=False,
    )


def peak(reset: bool = False) -> int:
    """The largest resident memory of this process, in bytes, since it was last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def measure(kind: str) -> None:
    """Export once in this process and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        export(kind, build(8, 1), Path(folder) / "small.onnx")
        model = build(HIDDEN, 3)
        size = sum(parameter.nbytes for parameter in model.parameters())
        before = peak(reset=True)
        started = time.perf_counter()
        export(kind, model, Path(folder) / "model.onnx")
        seconds = time.perf_counter() - started
        grown = peak() - before
        files = sum(each.stat().st_size for each in Path(folder).glob("model.onnx*"))
    print(json.dumps({"seconds": seconds, "grown": grown, "model": size, "file": files}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of an export.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one)
        return
    found: dict[str, list[dict[str, float]]] = {"torch.onnx.export": [], "cellport": []}
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    for _ in range(arguments.rounds):
        for kind, runs in found.items():
            command = [sys.executable, __file__, "--one", kind]
            said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(said.strip().splitlines()[-1]))
    print(f"{'':20}{'seconds':>10}{'× torch':>10}{'memory MiB':>12}{'× model':>10}{'file MiB':>10}")
    base = median(run["seconds"] for run in found["torch.onnx.export"])
    figures = {}
    for kind, runs in found.items():
        middle = {key: median(run[key] for run in runs) for key in runs[0]}
        figures[kind] = middle
        print(
            f"{kind:20}{middle['seconds']:10.2f}{middle['seconds'] / base:10.2f}{middle['grown'] / 2**20:12.0f}"
            f"{middle['grown'] / middle['model']:10.2f}{middle['file'] / 2**20:10.1f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
