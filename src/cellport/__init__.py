"""Recurrent networks from PyTorch to ONNX, proved equal, and served over gRPC with onnxruntime."""

from importlib.metadata import version as _version

__version__ = _version("cellport")

__all__ = ["__version__"]
