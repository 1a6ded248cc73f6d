"""The exceptions of every part of cellport.

An exception owns its wording: it names the thing, its value and what would be accepted. Everything that cellport
raises on purpose is a `CellportError`, so one `except` clause catches it all.
"""


class CellportError(Exception):
    """Base class of every error that cellport raises on purpose."""


class ManifestError(CellportError, ValueError):
    """A manifest is missing, malformed, or of an unknown major version."""


class ExportError(CellportError):
    """A model cannot be exported; the message names the module or tensor and the way out."""


class EquivalenceError(CellportError):
    """An exported file does not compute what the PyTorch module computes; the message names the worst case."""
