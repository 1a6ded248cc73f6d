"""From a torch.export program to an ONNX graph, as torch writes it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch

from cellport.errors import ExportError

from .operators import translations

OPSETS = range(18, 23)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's progress lines and notes on what plays no part here from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def translate(program: torch.export.ExportedProgram, opset_version: int) -> ir.Model:
    """Translate a program to ONNX without optimising it.

    Raises:
        ExportError: the opset is not supported, or an operator has no ONNX form.
    """
    if opset_version not in OPSETS:
        raise ExportError(f"opset_version is {opset_version}; accepted: {OPSETS.start} to {OPSETS.stop - 1}")
    try:
        # With gradients, torch decomposes a scan into its two passes, and fails where one hands the other a size.
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset_version,
                custom_translation_table=translations(),
                optimize=False,
                verify=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the model holds an operation that has no ONNX form: {_innermost(error)}") from error
    assert exported is not None
    return exported.model


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
