"""Runs of an exported file in onnxruntime."""

from pathlib import Path

import numpy as np
import onnxruntime

from cellport.errors import ExportError
from cellport.manifest import Manifest

from .runs import Arrays


class OnnxRunner:
    """An ONNX file in onnxruntime as a function of named arrays.

    Attributes:
        session: the session.
        outputs: names of the outputs.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        self._path = str(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # PyTorch runs in between, and waiting threads that spin would keep it from its cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a class of its own for each status, with no common base
            raise ExportError(f"onnxruntime cannot load {self._path!r}: {error}") from error
        self.outputs = [each.name for each in self.session.get_outputs()]

    def __call__(self, feeds: Arrays) -> Arrays:
        """Run the file; optional inputs may be left out.

        Raises:
            ExportError: onnxruntime fails on these inputs.
        """
        contiguous = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        try:
            results = self.session.run(None, contiguous)
        except Exception as error:  # see above
            sizes = {name: list(value.shape) for name, value in feeds.items()}
            raise ExportError(f"onnxruntime cannot run {self._path!r} on inputs of shapes {sizes}: {error}") from error
        return dict(zip(self.outputs, results, strict=True))

    def manifest(self) -> Manifest:
        """The manifest in the file's metadata.

        Raises:
            ManifestError: there is none, or it is not valid.
        """
        return Manifest.from_metadata(self.session.get_modelmeta().custom_metadata_map)
