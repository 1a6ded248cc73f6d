"""Draws what `benchmarks/grids.py` measures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"onnxruntime": "tab:blue", "wavefront": "tab:orange", "plain loop": "tab:red"}


def draw(results: list[dict[str, Any]], names: Mapping[str, str], path: Path) -> None:
    """One panel for each network and batch: the time of each form, beside lines for the counts of steps and cells.

    Those lines start where the time of the exported file does.

    Args:
        results: of `grids.compare`.
        names: what each network is called.
        path: of the image.
    """
    batches = sorted({each["batch"] for each in results})
    networks = [name for name in names if any(each["network"] == name for each in results)]
    figure = Figure(figsize=(4.2 * len(networks), 3.6 * len(batches)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(batches), len(networks), squeeze=False)
    for row, batch in zip(panels, batches, strict=True):
        for axes, network in zip(row, networks, strict=True):
            found = [each for each in results if each["network"] == network and each["batch"] == batch]
            if not found:
                axes.set_axis_off()
                continue
            found.sort(key=lambda each: each["size"])
            sizes = [each["size"] for each in found]
            for form, colour in COLOURS.items():
                axes.plot(sizes, [each["milliseconds"][form] for each in found], "o-", color=colour, label=form)
            steps = "levels" if network == "graph" else "diagonals"
            start = found[0]["milliseconds"]["onnxruntime"]
            for count, label, style in (("steps", f"as {steps}", "--"), ("cells", "as cells", ":")):
                line = [start * each[count] / found[0][count] for each in found]
                axes.plot(sizes, line, style, color="grey", label=label)
            axes.set(xscale="log", yscale="log", title=f"{names[network]}, batch {batch}", ylabel="milliseconds")
            axes.set_xlabel("superpixels" if network == "graph" else "side")
            axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            axes.minorticks_off()
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
