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


class ModelLoadError(CellportError):
    """A file or folder cannot be served; the message names it and why."""


class AddressError(CellportError):
    """A server cannot listen on the address that it was given."""


class ServingError(CellportError):
    """A request was not answered. One subclass for each gRPC status that the server sends on purpose.

    Attributes:
        status: name of the gRPC status that a client received, such as ``"NOT_FOUND"``; None where the error was raised
            in this process and has not travelled.
    """

    status: str | None = None


class InvalidRequestError(ServingError, ValueError):
    """The request itself is wrong: a name, element type, shape, byte count, value or parameter."""


class NotFoundError(ServingError, LookupError):
    """What the request names does not exist."""


class ModelNotFoundError(NotFoundError):
    """There is no model of that name and version."""


class SequenceNotFoundError(NotFoundError):
    """There is no running sequence of that id; the message says whether it never started or was evicted."""


class SequenceExistsError(ServingError):
    """A sequence was started while one of the same id is running, where that is refused."""


class PreconditionError(ServingError):
    """The request would be right at another point of its sequence."""


class SequenceEndedError(PreconditionError):
    """A step came for a sequence after the step that ended it."""


class StepNumberError(PreconditionError):
    """The number of a step is neither the next of its sequence nor that of the last step."""


class UnavailableError(ServingError):
    """The server or the model does not take requests at present, such as while it shuts down."""


class QueueFullError(ServingError):
    """The server has as much waiting work as it accepts; try again later.

    Attributes:
        retry_after: seconds after which trying again makes sense; None if that is not known, or never.
    """

    retry_after: float | None = None


class DeadlineExceededError(ServingError, TimeoutError):
    """The answer was not ready when the request's time was up."""


class RequestCancelledError(ServingError):
    """The request was cancelled before it ran."""


class UnsupportedCallError(ServingError):
    """The server does not have that call."""


class InternalServingError(ServingError):
    """The server failed for a reason that is not the request's; its log has it in full."""
