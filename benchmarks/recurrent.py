"""LSTM, GRU and RNN behind an embedding: the native operator, a Scan behind a table, the automatic choice, PyTorch.

The second part of `benchmarks/cells.py`. One thread, one layer, float32, 128 steps, embedding as wide as the state,
token ids by Zipf's law. Rounds are interleaved, medians are printed: milliseconds of the native operator with its
embedding, and how many times faster the others are.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from cellport.export import to_onnx

STEPS, VOCABULARY = 128, 10_000
CELLS: dict[str, type[nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
NATIVE, SCAN, AUTO, EAGER = "native", "scan, table", "auto", "torch eager"


class Layer(nn.Module):
    """Token ids [time, batch] through an embedding and one layer."""

    def __init__(self, make: type[nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(VOCABULARY, hidden), make(hidden, hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the outputs [time, batch, hidden]."""
        return self.layer(self.embedding(tokens))[0]


def contenders(name: str, hidden: int, batch: int, folder: Path) -> tuple[dict[str, Callable[[Any], Any]], str]:
    """Each form as a function of ids, and what the automatic choice says of itself."""
    torch.manual_seed(0)
    model = Layer(CELLS[name], hidden).eval()
    found: dict[str, Callable[[Any], Any]] = {}
    said = ""
    for form, lowering in ((NATIVE, "native"), (SCAN, "scan"), (AUTO, "auto")):
        path = folder / f"{name}-{hidden}-{batch}-{lowering}.onnx"
        report = to_onnx(
            model,
            (torch.zeros(4, 2, dtype=torch.long),),
            path,
            dynamic_shapes={"tokens": {0: "time", 1: "batch"}},
            lengths=None,
            lowering=lowering,
            batches=(batch,),
            lookup=lowering != "native" and "auto",
            verify=False,
        )
        if lowering == "auto":
            said = next((note for note in report.notes if "a Scan is faster by" in note), "")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found[form] = lambda ids, session=session: session.run(["output"], {"tokens": ids})[0]

    def eager(ids: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(ids)).numpy()

    found[EAGER] = eager
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (STEPS, 3))
    for form, run in found.items():
        error = float(np.abs(run(ids) - eager(ids)).max())
        if not error < 1e-4:
            raise SystemExit(f"{name} {hidden}: {form} differs from PyTorch by {error}")
    return found, said


def measure(found: dict[str, Callable[[Any], Any]], batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each form."""
    rng = np.random.default_rng(2)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        block = [rng.choice(VOCABULARY, (STEPS, batch), p=weights / weights.sum()) for _ in range(2)]
        for name, run in found.items():
            for index, ids in enumerate(block):
                start = perf_counter()
                run(ids)
                if number and index:
                    times[name].append(perf_counter() - start)
    return {name: median(values) * 1e3 for name, values in times.items()}


def run(names: Sequence[str], hiddens: Sequence[int], batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Measure and print; return the figures."""
    results = []
    print(f"\n{STEPS} steps, vocabulary {VOCABULARY}, embedding as wide as the hidden size, Zipf ids, one thread")
    forms = (SCAN, AUTO, EAGER)
    print(f"{'':24}{'native ms':>11}" + "".join(f"{'× ' + form:>16}" for form in forms) + "   chosen")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for hidden in hiddens:
                for batch in batches:
                    found, said = contenders(name, hidden, batch, Path(folder))
                    figures = measure(found, batch, rounds if batch < 64 else max(3, rounds // 3))
                    base = figures[NATIVE]
                    chosen = "Scan" if ": a Scan" in said else "native"
                    line = f"{name} {hidden}, batch {batch}".ljust(24) + f"{base:11.2f}"
                    line += "".join(f"{base / figures[form]:16.2f}" for form in forms)
                    print(f"{line}   {chosen}", flush=True)
                    results.append({"cell": name, "hidden": hidden, "batch": batch, "chosen": chosen, "ms": figures})
    return results
