"""How long a layer takes: SRU from lookup tables against what it replaces.

One thread, one layer, float32, hidden size 512, a vocabulary of 30,000 tokens embedded in 512 features, sequences of
128 tokens. Every contender starts from token ids. Rounds are interleaved: in each, every contender runs the same fresh
batch of ids in turn, so that a noisy machine is noisy for all of them. Medians of all rounds are printed, and how many
times faster each contender is than onnxruntime's native LSTM.

Which rows of a 240 MB table are read decides whether they come from cache or from memory. So the ids are drawn in two
ways: by Zipf's law, as words of natural text are, and uniformly, which is the worst case.

    python benchmarks/cells.py [--rounds 15] [--batches 1 16] [--json cells.json] [--parts sru recurrent]

The second part, `recurrent`, compares the forms of LSTM, GRU and RNN (`benchmarks/recurrent.py`).

The package `sru` compiles its processor kernel with g++ when it is first imported; without g++ it is left out.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import onnx
import onnxruntime
import recurrent
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cellport.cells import LSTM, SRU
from cellport.export import to_onnx

STEPS, HIDDEN, VOCABULARY = 128, 512, 30_000
BASELINE = "LSTM, onnxruntime"

Contender = Callable[[np.ndarray[Any, Any]], Any]


class Layer(nn.Module):
    """Token ids [time, batch] through an embedding and one recurrent layer."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.cell = cell

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the outputs [time, batch, hidden]."""
        output, _ = self.cell(self.embedding(tokens))
        return output


def session(path: Path, output: str | None = "output") -> Contender:
    """An ONNX file in onnxruntime on one thread; all outputs if none is named."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids: loaded.run(None if output is None else [output], {"tokens": ids})[0]


def eager(model: nn.Module) -> Contender:
    """A module in eager PyTorch on one thread."""

    def run(ids: np.ndarray[Any, Any]) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(ids))

    return run


def export(model: nn.Module, path: Path, *, lookup: bool) -> Contender:
    """A module exported by cellport, states left at their default."""
    to_onnx(
        model,
        (torch.zeros(4, 2, dtype=torch.long),),
        path,
        dynamic_shapes={"tokens": {0: "time", 1: "batch"}},
        lengths=None,
        lookup=lookup,
        lowering="native",
        verify=False,
    )
    return session(path)


def gather(folder: Path, widths: list[int]) -> Contender:
    """The floor: nothing but the gather of the rows that the tables hold."""
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((VOCABULARY, width), np.float32) for width in widths]
    graph = helper.make_graph(
        [helper.make_node("Gather", [f"table_{k}", "tokens"], [f"rows_{k}"]) for k in range(len(tables))],
        "gather",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["time", "batch"])],
        [
            helper.make_tensor_value_info(f"rows_{k}", TensorProto.FLOAT, ["time", "batch", width])
            for k, width in enumerate(widths)
        ],
        [numpy_helper.from_array(table, f"table_{k}") for k, table in enumerate(tables)],
    )
    path = folder / "gather.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return session(path, output=None)


def sru_package(model: Layer) -> tuple[Contender | None, str]:
    """The `sru` package's own processor kernel with the weights of our layer, or why it is missing."""
    if shutil.which("g++") is None:
        return None, "left out: the sru package needs g++ to compile its kernel"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sru

        peer = sru.SRU(HIDDEN, HIDDEN, 1)
        peer.load_state_dict(model.cell.state_dict())
    peer.eval()
    embedding = model.embedding

    def run(ids: np.ndarray[Any, Any]) -> Any:
        with torch.inference_mode():
            return peer(embedding(torch.from_numpy(ids)))[0]

    return run, ""


def contenders(folder: Path) -> tuple[dict[str, Contender], list[str]]:
    """Everything to be timed, by name; and what is left out."""
    torch.manual_seed(0)
    lstm = Layer(LSTM(HIDDEN, HIDDEN)).eval()
    torch_lstm = Layer(nn.LSTM(HIDDEN, HIDDEN)).eval()
    torch_lstm.load_state_dict(lstm.state_dict())
    sru = Layer(SRU(HIDDEN, HIDDEN, rescale=False)).eval()
    found: dict[str, Contender] = {
        "LSTM, torch eager": eager(torch_lstm),
        BASELINE: export(lstm, folder / "lstm.onnx", lookup=False),
    }
    peer, reason = sru_package(sru)
    if peer is not None:
        found["SRU, sru package"] = peer
    found["SRU, projections computed"] = export(sru, folder / "sru.onnx", lookup=False)
    found["SRU, lookup table"] = export(sru, folder / "sru_table.onnx", lookup=True)
    found["gather of the rows"] = gather(folder, [HIDDEN] * 4)
    check(found, [BASELINE, "LSTM, torch eager"])
    check(found, [name for name in found if name.startswith("SRU")])
    return found, [reason] if reason else []


def check(found: dict[str, Contender], names: list[str]) -> None:
    """Refuse to time contenders that do not compute the same."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (STEPS, 3))
    first = np.asarray(found[names[0]](ids))
    for name in names[1:]:
        error = float(np.abs(np.asarray(found[name](ids)) - first).max())
        if not error < 1e-4:
            raise SystemExit(f"{name} differs from {names[0]} by {error}")


def draw(rng: np.random.Generator, kind: str, batch: int) -> np.ndarray[Any, Any]:
    """Token ids [time, batch]."""
    if kind == "uniform":
        return rng.integers(0, VOCABULARY, (STEPS, batch))
    weights = 1 / np.arange(1, VOCABULARY + 1)
    return rng.choice(VOCABULARY, (STEPS, batch), p=weights / weights.sum())


def measure(found: dict[str, Contender], batch: int, kind: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of each contender.

    In a round every contender runs a short block: twice to bring its own data back into the caches that the others
    used, then timed runs, each on ids of its own.
    """
    rng = np.random.default_rng(2)
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        block = [draw(rng, kind, batch) for _ in range(5)]
        for name, run in found.items():
            for index, ids in enumerate(block):
                start = time.perf_counter()
                run(ids)
                if index >= 2:
                    times[name].append(time.perf_counter() - start)
        print(f"\rbatch {batch}, {kind}: round {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: median(values) * 1e3 for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time an SRU from lookup tables against what it replaces.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--parts", nargs="+", choices=["sru", "recurrent"], default=["sru", "recurrent"])
    parser.add_argument("--cells", nargs="+", choices=list(recurrent.CELLS), default=list(recurrent.CELLS))
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--recurrent-batches", type=int, nargs="+", default=[1, 16, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    if "sru" in arguments.parts:
        results += compare_sru(arguments)
    if "recurrent" in arguments.parts:
        results += recurrent.run(arguments.cells, arguments.hidden, arguments.recurrent_batches, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def compare_sru(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The first part: SRU from lookup tables against what it replaces."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        found, missing = contenders(Path(folder))
        print(*missing, sep="\n", end="\n" if missing else "")
        for batch in arguments.batches:
            for kind in ("zipf", "uniform"):
                figures = measure(found, batch, kind, arguments.rounds)
                base, package = figures[BASELINE], figures.get("SRU, sru package")
                print(f"\n{STEPS} steps, batch {batch}, hidden {HIDDEN}, vocabulary {VOCABULARY}, {kind} ids")
                print(f"{'':28}{'ms':>8}{'× native LSTM':>16}{'× sru package':>16}")
                for name, value in figures.items():
                    against = f"{package / value:15.1f}" if package else f"{'–':>15}"
                    print(f"{name:28}{value:8.2f}{base / value:16.1f} {against}")
                results.append({"batch": batch, "ids": kind, "milliseconds": figures})
    return results


if __name__ == "__main__":
    main()
