"""How long recurrent networks over images and graphs take: exported, as wavefronts in PyTorch, and cell by cell.

One thread, float32, time of the processor. Three networks, each in three forms: the exported file in onnxruntime, the
wavefront (over anti-diagonals, or levels) in eager PyTorch, and the plain loop over cells in eager PyTorch.

    MD-LSTM     4 directions, 3 channels, hidden size 16
    Grid LSTM   height, width and 2 layers, 3 channels, hidden size 16, one direction
    Graph LSTM  2 layers, 8 features of a superpixel, hidden size 32

Images and superpixels (SLIC) are those of scikit-image's photographs; graphs are timed one at a time. The three forms
have to agree at every size before they are timed. Rounds are interleaved: in each, every form runs every size in turn.
Medians of all rounds are printed, and how many times faster the exported file is than the others. The image shows the
times against the side or the number of nodes, beside lines that grow with the number of diagonals or levels and with
that of cells.

    python benchmarks/grids.py [--rounds 7] [--networks md grid graph] [--sides 8 16 28 40 64] [--batches 1 16]
                               [--segments 50 100 200 500 1000] [--json grids.json] [--image docs/images/grids.png]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import grids_models as models
import grids_plot
import numpy as np
import onnxruntime
import torch

from cellport.export import to_onnx

EXPORTED, WAVEFRONT, PLAIN = "onnxruntime", "wavefront", "plain loop"
NETWORKS = {"md": "MD-LSTM", "grid": "Grid LSTM", "graph": "Graph LSTM"}
IMAGE_AXES = {"input": {0: "batch", 1: "height", 2: "width"}}
GRAPH_AXES = {
    "features": {0: "nodes"},
    "neighbours": {0: "nodes", 1: "degree"},
    "levels": {0: "levels", 1: "width"},
}

Forms = dict[str, Callable[[], Any]]


def session(path: Path) -> onnxruntime.InferenceSession:
    """An ONNX file in onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Network:
    """One network, exported once for all sizes."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        make = {"md": models.md_lstm, "grid": models.grid_lstm, "graph": models.graph_lstm}[name]
        self.model: Any = make()
        args: tuple[torch.Tensor, ...] = (torch.randn(2, 5, 4, models.CHANNELS),)
        axes: Any = IMAGE_AXES
        if name == "graph":
            args, axes = tuple(map(torch.from_numpy, models.Superpixels(50, 1).feeds.values())), GRAPH_AXES
        draw = models.any_graph if name == "graph" else None
        path = folder / f"{name}.onnx"
        to_onnx(self.model, args, path, dynamic_shapes=axes, draw=draw, verify=False)
        self.session = session(path)

    def forms(self, size: int, batch: int) -> tuple[Forms, dict[str, int]]:
        """Each form as a function without arguments, and how many steps and cells there are.

        Args:
            size: of a side, or about how many superpixels a piece has.
            batch: images, or pieces of photographs.
        """
        if self.name == "graph":
            graph = models.Superpixels(size, batch)
            feeds, lists, order = graph.feeds, graph.lists, graph.order.tolist()
            tensors = [torch.from_numpy(each) for each in feeds.values()]
            nodes = len(graph.features)
            counts = {"size": nodes, "steps": len(graph.levels), "cells": nodes}
            plain = lambda: models.plain_graph_lstm(self.model, tensors[0], lists, order)  # noqa: E731
        else:
            feeds = {"input": models.pictures(size, batch)}
            tensors = [torch.from_numpy(feeds["input"])]
            loop: models.Plain = models.plain_md_lstm if self.name == "md" else models.plain_grid_lstm
            layers = models.LAYERS if self.name == "grid" else 1
            steps = 2 * size - 1 if self.name == "md" else 2 * size + layers - 2
            counts = {"size": size, "steps": steps, "cells": size * size * layers}
            plain = lambda: loop(self.model, tensors[0])  # noqa: E731
        forms: Forms = {
            EXPORTED: lambda: self.session.run(None, feeds)[0],
            WAVEFRONT: lambda: self.model(*tensors),
            PLAIN: plain,
        }
        return forms, counts


def check(name: str, forms: Forms) -> None:
    """Refuse to time forms that do not compute the same."""
    first = np.asarray(forms[PLAIN]())
    for form, run in forms.items():
        error = float(np.abs(np.asarray(run()) - first).max())
        if not error < 1e-5:
            raise SystemExit(f"{name}: {form} differs from the plain loop by {error}")


def measure(cases: list[Forms], rounds: int) -> list[dict[str, float]]:
    """Median milliseconds of each form of each case, in rounds over all of them.

    It is the processor's time, which on one thread is what an idle machine takes. But for the plain loop, the second
    run in a row is timed.
    """
    times: list[dict[str, list[float]]] = [{form: [] for form in forms} for forms in cases]
    for number in range(rounds):
        for forms, found in zip(cases, times, strict=True):
            for form, run in forms.items():
                if form != PLAIN:
                    run()
                start = time.process_time()
                run()
                found[form].append(time.process_time() - start)
        print(f"\rround {number + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [{form: median(values) * 1e3 for form, values in found.items()} for found in times]


def compare(network: Network, sizes: list[int], batch: int, rounds: int) -> list[dict[str, Any]]:
    """Measure and print; return the figures."""
    cases, results = [], []
    for size in sizes:
        forms, counts = network.forms(size, batch)
        check(f"{NETWORKS[network.name]} of {size}, batch {batch}", forms)
        cases.append(forms)
        results.append({"network": network.name, "batch": batch, **counts})
    for result, figures in zip(results, measure(cases, rounds), strict=True):
        size, exported = result["size"], figures[EXPORTED]
        line = f"{NETWORKS[network.name]}, {size}" + ("" if network.name == "graph" else f"x{size}, batch {batch}")
        line = f"{line:32}{result['steps']:7}{result['cells']:8}"
        line += "".join(f"{figures[form]:12.2f}" for form in figures)
        line += "".join(f"{figures[form] / exported:13.2f}" for form in (WAVEFRONT, PLAIN))
        print(f"{line}{exported / result['steps'] * 1e3:12.0f}", flush=True)
        result["milliseconds"] = figures
    return results


def main() -> None:
    """Measure, print, and draw what is asked for."""
    parser = argparse.ArgumentParser(description="Time recurrent networks over images and graphs in three forms.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 28, 40, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--segments", type=int, nargs="+", default=[50, 100, 200, 500, 1000])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--image", type=Path, help="also draw them here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    print(
        f"{'milliseconds':32}{'steps':>7}{'cells':>8}" + "".join(f"{form:>12}" for form in (EXPORTED, WAVEFRONT, PLAIN))
    )
    print(f"{'':83}{'× wavefront':>13}{'× plain':>13}{'µs a step':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for network in [Network(name, Path(folder)) for name in arguments.networks]:
            graphs = network.name == "graph"
            sizes, batches = (arguments.segments, [1]) if graphs else (arguments.sides, arguments.batches)
            with torch.inference_mode():
                for batch in batches:
                    results += compare(network, sizes, batch, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.image:
        arguments.image.parent.mkdir(parents=True, exist_ok=True)
        grids_plot.draw(results, NETWORKS, arguments.image)
        print(f"drawn in {arguments.image}", file=sys.stderr)


if __name__ == "__main__":
    main()
