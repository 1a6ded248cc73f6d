"""The whole proof of a file, case by case and step by step, as a table, as JSON and as plots."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellport.errors import ExportError
from cellport.manifest import TIME, Manifest, Verification

from .inspection import table
from .runs import Arrays, Contract, Runner
from .verification import Case, CaseFigures, feeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Examination", "StepFigures", "errors_by_step", "plot_variants"]

_STEPS = 128


@dataclass(frozen=True)
class StepFigures:
    """The largest absolute errors of one output against float64, step by step.

    Attributes:
        output: its name.
        torch: of PyTorch's own run, one number a step.
        onnx: of onnxruntime's.
    """

    output: str
    torch: tuple[float, ...]
    onnx: tuple[float, ...]


@dataclass(frozen=True)
class Examination:
    """What a verification saw.

    Attributes:
        verification: the largest errors of each output.
        cases: the figures of each case and output.
        steps: the errors along one long sequence, of each output with a time axis.
    """

    verification: Verification
    cases: tuple[CaseFigures, ...]
    steps: tuple[StepFigures, ...]

    def worst(self, count: int = 10) -> list[CaseFigures]:
        """The cases that come closest to what is allowed."""
        return sorted(self.cases, key=lambda each: -each.share)[:count]

    def table(self) -> str:
        """The errors of each output, and the cases that come closest to what is allowed."""
        rows: list[tuple[str, ...]] = [("output", "error", "PyTorch's own", "largest value")]
        for each in self.verification.outputs:
            errors = (f"{each.onnx_error:.2e}", f"{each.torch_error:.2e}", f"{each.largest_truth:.3g}")
            rows.append((each.name, *errors))
        closest: list[tuple[str, ...]] = [("output", "error", "allowed", "closest cases")]
        closest += [(each.output, f"{each.error:.2e}", f"{each.bound:.2e}", str(each.case)) for each in self.worst()]
        return f"{table(rows)}\n\n{table(closest)}"

    def to_json(self) -> str:
        """Everything as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def plot(self, folder: str | Path) -> list[Path]:
        """Draw the errors by time step, and the largest by case, as PNG files.

        Raises:
            ExportError: matplotlib (extra `plots`) is not installed.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        made = []
        if self.steps:
            made.append(_save(_plot_steps(self.steps), target / "error_by_step.png"))
        made.append(_save(_plot_cases(self.worst(24)), target / "error_by_case.png"))
        return made


def errors_by_step(
    manifest: Manifest, onnx: Runner, own: Runner, float64: Runner, examples: Arrays, steps: int = _STEPS
) -> tuple[StepFigures, ...]:
    """Run one batch of long sequences and measure the errors at each step.

    Args:
        manifest: the file's manifest.
        onnx: runs the file.
        own: runs the module in its own precision.
        float64: runs the module in float64.
        examples: accepted values by input name.
        steps: size of the time axis.
    """
    if not any(TIME in each.axes for each in manifest.inputs):
        return ()
    clean, _ = feeds(manifest, Case(4, steps, False, False, None, 0), examples)
    truth, torch_, found = float64(clean), own(clean), onnx(clean)
    figures = []
    for name, axes in Contract.of(manifest).outputs.items():
        if TIME not in axes or truth[name].dtype.kind not in "fc":
            continue
        others = tuple(position for position, axis in enumerate(axes) if axis != TIME)
        errors = [np.abs(each[name].astype(np.float64) - truth[name]).max(axis=others) for each in (torch_, found)]
        figures.append(StepFigures(name, *(tuple(float(value) for value in each) for each in errors)))
    return tuple(figures)


def plot_variants(variants: Iterable[tuple[str, float, float]], path: str | Path) -> Path:
    """Draw size and speed of the variants of one model as a PNG file.

    Args:
        variants: a name, MiB, and how many times faster than the first.
        path: the file.

    Raises:
        ExportError: matplotlib (extra `plots`) is not installed.
    """
    rows = list(variants)
    figure = _figure(7.0, 1.2 + 0.35 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [name for name, _, _ in rows]
    left.barh(names, [size for _, size, _ in rows], color="tab:blue")
    left.set_xlabel("MiB")
    right.barh(names, [speed for _, _, speed in rows], color="tab:green")
    right.set_xlabel(f"times as fast as {names[0]}")
    right.axvline(1.0, color="black", linewidth=0.8)
    left.invert_yaxis()
    return _save(figure, Path(path))


def _plot_steps(steps: Sequence[StepFigures]) -> "Figure":
    figure = _figure(7.0, 2.4 * len(steps))
    for axes, each in zip(np.atleast_1d(figure.subplots(len(steps), 1, sharex=True)), steps, strict=True):
        axes.semilogy(np.maximum(each.torch, 1e-12), label="PyTorch", color="tab:orange")
        axes.semilogy(np.maximum(each.onnx, 1e-12), label="onnxruntime", color="tab:blue")
        axes.set_ylabel(f"error of {each.output}")
        axes.legend()
    axes.set_xlabel("time step (largest absolute error against float64)")
    return figure


def _plot_cases(cases: Sequence[CaseFigures]) -> "Figure":
    figure = _figure(10.0, 1.2 + 0.3 * len(cases))
    axes = figure.subplots()
    names = [f"{each.output}: {each.case}" for each in cases]
    places = np.arange(len(cases))
    axes.barh(places - 0.2, [each.error for each in cases], 0.4, label="onnxruntime", color="tab:blue")
    axes.barh(places + 0.2, [each.torch_error for each in cases], 0.4, label="PyTorch", color="tab:orange")
    axes.plot([each.bound for each in cases], places, "k|", markersize=10, label="allowed")
    axes.set_yticks(places, names, fontsize=7)
    axes.set_xlabel("largest absolute error against float64")
    axes.invert_yaxis()
    axes.legend()
    return figure


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ExportError("plots need matplotlib; install cellport[plots]") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
