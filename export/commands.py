"""The commands `cellport export`, `cellport verify` and `cellport inspect`."""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cellport.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

    from .spec import ExportSpec


_TYPES = ("float32", "float16", "int8")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cellport export`."""
    _add_model(parser)
    parser.add_argument("--out", required=True, type=Path, help="the ONNX file to write")
    parser.add_argument("--opset", type=int, choices=range(18, 23), default=20, help="18 to 22 (default 20)")
    parser.add_argument("--lookup", choices=("auto", "yes", "no"), default="auto", help="lookup tables (default auto)")
    parser.add_argument("--lowering", choices=("auto", "native", "scan"), default="auto", help="form of LSTM, GRU, RNN")
    parser.add_argument("--tables", choices=_TYPES, default="float32", help="element type of tables (default float32)")
    parser.add_argument("--weight-type", choices=_TYPES, default="float32", help="element type of weights")
    parser.add_argument(
        "--counts", nargs=2, action="append", default=[], metavar=("INPUT", "FILE"), help="how often each token occurs"
    )
    parser.add_argument("--state-inputs", choices=("optional", "required"), default="optional")
    parser.add_argument("--no-verify", action="store_true", help="write the file without comparing it")
    parser.set_defaults(run=_export)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cellport verify`."""
    _add_model(parser, "?")
    parser.add_argument("path", type=Path, help="the exported file; alone, it is run in chunks and in one pass")
    parser.add_argument("--plots", type=Path, help="draw the errors by time step and by case into this folder")
    parser.set_defaults(run=_verify)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cellport inspect`."""
    parser.add_argument("path", type=Path, help="the exported file")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.add_argument(
        "--init", action="store_true", help="draft a side-car manifest of a file that cellport did not export"
    )
    parser.add_argument("--force", action="store_true", help="let --init write over an older side-car")
    parser.set_defaults(run=_inspect)


def _add_model(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "factory", nargs=nargs, type=_factory, help="module:factory, a function that returns an ExportSpec"
    )
    parser.add_argument("--weights", type=Path, help="a state_dict: a .safetensors file, or one written by torch.save")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _factory(text: str) -> tuple[str, str]:
    module, colon, function = text.partition(":")
    if not colon or not module or not function:
        raise argparse.ArgumentTypeError(f"{text!r} is no factory; accepted: module:factory")
    return module, function


def _export(arguments: argparse.Namespace) -> int:
    from .exporter import to_onnx

    spec = _load(arguments)
    report = to_onnx(
        spec.model,
        spec.args,
        arguments.out,
        input_names=spec.input_names,
        output_names=spec.output_names,
        dynamic_shapes=spec.dynamic_shapes,
        opset_version=arguments.opset,
        state=spec.state,
        state_inputs=arguments.state_inputs,
        lookup="auto" if arguments.lookup == "auto" else arguments.lookup == "yes",
        lowering=arguments.lowering,
        tables=arguments.tables,
        weights=arguments.weight_type,
        counts=dict(arguments.counts),
        verify=not arguments.no_verify,
    )
    if arguments.json:
        figures = dataclasses.asdict(report) | {"path": str(report.path)}
        print(json.dumps(figures, indent=2))
    else:
        print(report)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from .prove import examine

    if arguments.factory is None:
        return _verify_chunks(arguments)
    spec = _load(arguments)
    progress = _progress if sys.stderr.isatty() else None
    found = examine(spec.model, arguments.path, args=spec.args, progress=progress)
    plots = found.plot(arguments.plots) if arguments.plots is not None else []
    if arguments.json:
        print(found.to_json())
    else:
        print(f"{arguments.path} is equal to PyTorch in {found.verification.cases} cases")
        print(found.table())
        print(*(f"drawn: {plot}" for plot in plots), sep="\n", end="\n" if plots else "")
    return 0


def _verify_chunks(arguments: argparse.Namespace) -> int:
    """Compare a file with itself: a run in chunks with one pass."""
    from .foreign import check_chunks, side_car
    from .inspection import inspect, table

    manifest = inspect(arguments.path)
    figures = check_chunks(arguments.path, manifest)
    beside = side_car(arguments.path)
    proved = beside.exists() and not manifest.causal
    if proved:
        beside.write_text(dataclasses.replace(manifest, causal=True).to_json(indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(dataclasses.asdict(figures), indent=2))
    else:
        print(f"{arguments.path} computes the same in chunks as in one pass in {figures.cases} cases")
        rows = [("output", "largest difference")]
        print(table([*rows, *((name, f"{value:.2e}") for name, value in figures.differences.items())]))
        if proved:
            print(f"{beside} now says that the file may be run in chunks")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from .inspection import describe, inspect

    if arguments.init:
        return _init(arguments)
    manifest = inspect(arguments.path)
    print(manifest.to_json(indent=2) if arguments.json else describe(manifest))
    return 0


def _init(arguments: argparse.Namespace) -> int:
    """Draft the side-car manifest of a foreign file."""
    from .foreign import draft, side_car
    from .inspection import describe

    beside = side_car(arguments.path)
    if beside.exists() and not arguments.force:
        raise ExportError(f"there is a {str(beside)!r} already; --force writes over it")
    made = draft(arguments.path)
    beside.write_text(made.manifest.to_json(indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps({"manifest": str(beside), "reasons": made.reasons}, indent=2))
        return 0
    print(describe(made.manifest))
    print("\nThis is a guess:")
    print(*(f"- {reason}" for reason in made.reasons), sep="\n")
    print(f"\nRead {beside}, correct it, and check it with: cellport verify {arguments.path}")
    return 0


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total} cases", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _load(arguments: argparse.Namespace) -> "ExportSpec":
    """Call the factory and load the weights into its model."""
    from .spec import ExportSpec

    module_name, function = arguments.factory
    named = f"{module_name}:{function}"
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ExportError(f"cannot find the factory {named!r}: {error}") from error
    spec = factory()
    if not isinstance(spec, ExportSpec):
        raise ExportError(f"{named} returned a {type(spec).__name__}; accepted: an ExportSpec")
    if arguments.weights is not None:
        _load_weights(spec.model, arguments.weights)
    spec.model.eval()
    return spec


def _load_weights(model: "nn.Module", path: Path) -> None:
    import torch

    if not path.exists():
        raise ExportError(f"there is no weights file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(weights)
    except Exception as error:  # pickle, safetensors and torch each raise their own
        raise ExportError(f"cannot load the weights {str(path)!r}: {error}") from error
