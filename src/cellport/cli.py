"""The command `cellport`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .errors import CellportError

_COMMANDS = {
    "export": "cellport.export.commands",
    "verify": "cellport.export.commands",
    "inspect": "cellport.export.commands",
    "serve": "cellport.serve.commands",
    "infer": "cellport.serve.commands",
}
_SUMMARY = {
    "export": "export a PyTorch model to a self-describing ONNX file",
    "verify": "prove an exported file equal to its PyTorch model",
    "inspect": "show what an exported file takes, returns and remembers",
    "serve": "serve exported files over gRPC",
    "infer": "call a served model",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 for success, 1 for a failure, 2 for bad usage.

    A command lives in the package that does its work and is imported only when it is called, so that calling a server
    needs neither torch nor onnxruntime.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="cellport", description=__doc__)
    parser.add_argument("--version", action="version", version=f"cellport {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    named = next((word for word in words if not word.startswith("-")), None)
    for name, summary in _SUMMARY.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == named:
            module = importlib.import_module(_COMMANDS[name])
            getattr(module, f"add_{name}")(command)
    parsed = parser.parse_args(words)
    try:
        return int(parsed.run(parsed))
    except CellportError as error:
        print(f"cellport {parsed.command}: {error}", file=sys.stderr)
        return 1
