"""From PyTorch to ONNX: export recurrent models, prove them equal, look into the files."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .examination import Examination
    from .exporter import to_onnx
    from .inspection import inspect
    from .prove import examine, verify
    from .report import Report
    from .spec import ExportSpec

__all__ = ["Examination", "ExportSpec", "Report", "examine", "inspect", "to_onnx", "verify"]

_HOMES = {
    "Examination": ".examination",
    "ExportSpec": ".spec",
    "Report": ".report",
    "examine": ".prove",
    "inspect": ".inspection",
    "to_onnx": ".exporter",
    "verify": ".prove",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
