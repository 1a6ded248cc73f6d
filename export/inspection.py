"""`inspect`: what a file takes, returns and remembers."""

import os
from pathlib import Path

from cellport.errors import ManifestError
from cellport.manifest import Axes, Manifest

from .runtime import OnnxRunner


def inspect(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a file, or the side-car ``<stem>.manifest.json`` or ``manifest.json`` of a foreign one.

    Raises:
        ExportError: onnxruntime cannot load the file.
        ManifestError: there is no manifest, or a malformed one.
    """
    file = Path(path)
    try:
        return OnnxRunner(file).manifest()
    except ManifestError:
        for beside in (file.with_name(f"{file.stem}.manifest.json"), file.with_name("manifest.json")):
            if beside.exists():
                return Manifest.from_file(beside)
        raise


def describe(manifest: Manifest) -> str:
    """Write a manifest as tables for a person."""
    parts = []
    if manifest.source is not None:
        versions = " ".join(f"{name} {number}" for name, number in manifest.source.versions.items())
        parts.append(f"{manifest.source.model}, opset {manifest.source.opset} ({versions})")
    rows: list[tuple[str, ...]] = [("input", "dtype", "axes", "role", "values")]
    for each in manifest.inputs:
        values = "any" if each.range is None else f"{each.range.minimum} to {each.range.maximum}"
        role = f"{each.role}, optional" if each.optional else each.role
        rows.append((each.name, each.dtype, _axes(each.axes), role, values))
    parts.append(table(rows))
    rows = [("output", "dtype", "axes", "of consecutive chunks")]
    rows += [(each.name, each.dtype, _axes(each.axes), each.chunking) for each in manifest.outputs]
    parts.append(table(rows))
    if manifest.states:
        rows = [("state", "comes back as", "dtype", "axes", "initial value")]
        for state in manifest.states:
            initial = "required" if state.required else "zeros" if state.initial is None else "in the file"
            rows.append((state.input, state.output, state.dtype, _axes(state.axes), initial))
        parts.append(table(rows))
    parts.append("causal: may be run in chunks" if manifest.causal else "not causal: must be run in one pass")
    if manifest.tables:
        rows = [("table", "rows", "width", "dtype", "MiB")]
        for made in manifest.tables:
            rows.append((made.name, str(made.vocabulary), str(made.width), made.dtype, f"{made.bytes / 2**20:.1f}"))
        parts.append(table(rows))
    if manifest.verification is None:
        parts.append("not verified")
    else:
        parts.append(
            f"equal to PyTorch in {manifest.verification.cases} cases (largest absolute errors against float64)"
        )
        rows = [("output", "error", "PyTorch's own", "largest value")]
        for figures in manifest.verification.outputs:
            errors = (f"{figures.onnx_error:.2e}", f"{figures.torch_error:.2e}", f"{figures.largest_truth:.3g}")
            rows.append((figures.name, *errors))
        parts.append(table(rows))
    return "\n\n".join(parts)


def table(rows: list[tuple[str, ...]]) -> str:
    """Align columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _axes(axes: Axes) -> str:
    return "[" + ", ".join(map(str, axes)) + "]"
