"""The commands `cellport serve` and `cellport infer`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellport.errors import CellportError, InvalidRequestError

if TYPE_CHECKING:
    from cellport.manifest import Axes

    from .exchange import ModelInfo
    from .server import Server


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cellport serve`."""
    parser.add_argument("path", type=Path, help="an ONNX file, or a folder <name>/<version>/model.onnx")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8001, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument(
        "--front",
        choices=("auto", "grpcio", "envoy"),
        default="auto",
        help="what carries the calls; auto is envoy where the extra 'fast' is installed, else grpcio (%(default)s)",
    )
    parser.add_argument("--batch", type=int, default=64, help="rows of one run (%(default)s)")
    parser.add_argument(
        "--padding", type=float, default=1.25, help="how many times larger padding may make a run (%(default)s)"
    )
    parser.add_argument("--queue", type=int, default=4096, help="requests that may wait (%(default)s)")
    parser.add_argument("--workers", type=int, help="batches that run at the same time (what is measured to be best)")
    parser.add_argument(
        "--threads", type=int, help="threads of one run, 0 for one a core (what is measured to be best)"
    )
    parser.add_argument("--sequences", type=int, default=10_000, help="running sequences (%(default)s)")
    parser.add_argument(
        "--idle", type=float, default=600.0, help="seconds until an unused sequence is evicted (%(default)s)"
    )
    parser.add_argument(
        "--restart",
        choices=("restart", "refuse"),
        default="restart",
        help="what sequence_start does to a running id (%(default)s)",
    )
    parser.add_argument(
        "--versions", default="all", metavar="POLICY", help="all, latest:<count>, or numbers such as 1,3 (%(default)s)"
    )
    parser.add_argument(
        "--model-control",
        choices=("none", "explicit", "poll"),
        default="none",
        help="models come and go: never, when a call says so, or with the folder's files (%(default)s)",
    )
    parser.add_argument(
        "--load-model",
        action="append",
        default=[],
        metavar="NAME",
        help="a model that --model-control explicit loads at the start, * for all; once for each",
    )
    parser.add_argument("--poll-seconds", type=float, default=15.0, help="seconds between polls (%(default)s)")
    parser.add_argument(
        "--exit-on-error",
        choices=("true", "false"),
        help="end if a model cannot be loaded at the start (true with --model-control none, else false)",
    )
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that a shutdown may take (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print what is served as one line of JSON")
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from .memory import settle
    from .server import Server, ServerSettings
    from .settings import BatchSettings, EngineSettings, SequenceSettings, SessionSettings
    from .versions import RepositorySettings, VersionPolicy

    try:
        settings = ServerSettings(
            host=arguments.host,
            port=arguments.port,
            front=arguments.front,
            grace_seconds=arguments.grace,
            engine=EngineSettings(
                batch=BatchSettings(rows=arguments.batch, padding=arguments.padding, queue=arguments.queue),
                sequences=SequenceSettings(
                    maximum=arguments.sequences, idle_seconds=arguments.idle, on_restart=arguments.restart
                ),
                session=SessionSettings(threads=arguments.threads),
                repository=RepositorySettings(
                    versions=VersionPolicy.parse(arguments.versions),
                    control=arguments.model_control,
                    load=tuple(arguments.load_model),
                    poll_seconds=arguments.poll_seconds,
                    exit_on_error=None if arguments.exit_on_error is None else arguments.exit_on_error == "true",
                ),
                workers=arguments.workers or 0,
            ),
        )
        server = Server(arguments.path, settings)
    except CellportError:
        raise
    except ValueError as error:
        print(f"cellport serve: {error}", file=sys.stderr)
        return 2

    def ready() -> None:
        settle()
        print(_as_json(server) if arguments.json else _as_text(server), flush=True)

    server.serve_forever(ready)
    return 0


def _as_json(server: "Server") -> str:
    models = [
        {"name": model.name, "version": model.version, "manifest": json.loads(model.manifest.to_json())}
        for model in server.models
    ]
    return json.dumps({"address": server.address, "front": server.front, "models": models})


def _as_text(server: "Server") -> str:
    lines = []
    for model in server.models:
        manifest = model.manifest
        kind = "runs sequences" if model.recurrent else "no sequences"
        lines.append(f"{model.name}, version {model.version} ({kind})")
        rows = [
            *(("input", each.name, each.dtype, _axes(each.axes), _notes(each)) for each in manifest.inputs),
            *(("output", each.name, each.dtype, _axes(each.axes), "") for each in manifest.outputs),
            *(
                ("state", each.input, each.dtype, _axes(each.axes), f"returned as {each.output}")
                for each in manifest.states
            ),
        ]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append(f"  {'  '.join([*cells, row[4]])}".rstrip())
    lines.append(f"serving on {server.address}")
    return "\n".join(lines)


def _axes(axes: "Axes") -> str:
    from .layouts import batch_first

    return f"[{', '.join(map(str, batch_first(axes)))}]"


def _notes(spec: Any) -> str:
    notes = []
    if spec.range is not None:
        notes.append(f"{spec.range.minimum} to {spec.range.maximum}")
    if getattr(spec, "index_of", None) is not None:
        notes.append(f"positions of {spec.index_of}, -1 for none")
    if spec.optional or spec.role in ("lengths", "sizes"):
        notes.append("optional")
    return ", ".join(notes)


def add_infer(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cellport infer`."""
    parser.add_argument("model", help="the model's name")
    parser.add_argument("--url", default="127.0.0.1:8001", help="host and port of the server (%(default)s)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="an input as nested JSON lists, batch first; NAME=@FILE reads them from a file; once for each input",
    )
    parser.add_argument("--output", action="append", default=[], metavar="NAME", help="an output wanted (all)")
    parser.add_argument("--model-version", default="", help="the model's version (newest)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that the call may take (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the outputs as JSON")
    parser.set_defaults(run=_infer)


def _infer(arguments: argparse.Namespace) -> int:
    from .client import Client

    texts = {}
    for text in arguments.input:
        name, equals, value = text.partition("=")
        if not equals or not name:
            print(f"cellport infer: --input is {text!r}; accepted: NAME=JSON or NAME=@FILE", file=sys.stderr)
            return 2
        texts[name] = value
    with Client(arguments.url, timeout=arguments.timeout) as client:
        info = client.metadata(arguments.model, version=arguments.model_version, states=True)
        inputs = {name: _array(name, value, info) for name, value in texts.items()}
        outputs = client.infer(arguments.model, inputs, arguments.output or None, version=arguments.model_version)
    if arguments.json:
        print(json.dumps({name: _plain(array) for name, array in outputs.items()}))
    else:
        for name, array in outputs.items():
            print(f"{name} {list(array.shape)}\n{array}")
    return 0


def _array(name: str, text: str, info: "ModelInfo") -> Any:
    """Return an input's array, with the element type that the model wants."""
    import numpy as np

    from .codec import BFLOAT16, numpy_dtype

    tensor = next((each for each in info.inputs if each.name == name), None)
    if tensor is None:
        accepted = ", ".join(repr(each.name) for each in info.inputs)
        raise InvalidRequestError(f"input {name!r} is not one of the model's; accepted: {accepted}")
    try:
        value = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"input {name!r} cannot be read as JSON: {error}") from None
    dtype = numpy_dtype(tensor.datatype)
    if dtype == BFLOAT16:
        raise InvalidRequestError(f"input {name!r} is BF16, which JSON cannot give; use a client in code")
    try:
        array = np.asarray(value, dtype)
        # A fraction must not be cut to an integer in silence.
        if dtype.kind in "iub" and not np.array_equal(array, np.asarray(value)):
            raise ValueError(f"{text} is not made of values of {tensor.datatype}")
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequestError(f"input {name!r} is not an array of {tensor.datatype}: {error}") from None
    return array


def _plain(array: Any) -> Any:
    import numpy as np

    if array.dtype.kind == "O":
        text = [each.decode(errors="replace") for each in array.ravel()]
        return np.array(text, object).reshape(array.shape).tolist()
    if array.dtype.kind == "V":
        return array.view("u2").tolist()
    return array.tolist()
