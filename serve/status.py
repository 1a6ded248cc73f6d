"""Which error is which gRPC status: one table, for every front and for the client."""

import enum
import logging
import secrets
from urllib.parse import quote

from cellport import errors
from cellport.errors import ServingError

_log = logging.getLogger(__name__)


class Status(enum.IntEnum):
    """gRPC's status codes, by their numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# The class that stands for a status on the client's side; its subclasses have the same status.
_STATUSES: dict[type[ServingError], Status] = {
    errors.InvalidRequestError: Status.INVALID_ARGUMENT,
    errors.NotFoundError: Status.NOT_FOUND,
    errors.SequenceExistsError: Status.ALREADY_EXISTS,
    errors.PreconditionError: Status.FAILED_PRECONDITION,
    errors.UnavailableError: Status.UNAVAILABLE,
    errors.QueueFullError: Status.RESOURCE_EXHAUSTED,
    errors.DeadlineExceededError: Status.DEADLINE_EXCEEDED,
    errors.RequestCancelledError: Status.CANCELLED,
    errors.UnsupportedCallError: Status.UNIMPLEMENTED,
    errors.InternalServingError: Status.INTERNAL,
}
_LONGEST_MESSAGE = 4096

_ERRORS = {status: kind for kind, status in _STATUSES.items()}


def status_of(error: Exception) -> tuple[Status, str]:
    """Return an error's status and the message that the wire gets.

    An error that nobody foresaw may hold anything, so the wire gets an id, under which the log has all of it.
    """
    for kind, status in _STATUSES.items():
        if isinstance(error, kind):
            return status, _clip(str(error))
    found = log_id()
    _log.error("a call failed (%s)", found, exc_info=error)
    return Status.INTERNAL, f"internal error; the server's log has the reason under {found}"


def trailers_of(error: Exception) -> list[tuple[str, str]]:
    """Return what goes with an error's status: how long gRPC's own retries, and other callers, had better wait.

    See "Pushback" in gRPC's design of retries.
    """
    seconds = error.retry_after if isinstance(error, errors.QueueFullError) else None
    return [] if seconds is None else [("grpc-retry-pushback-ms", str(max(1, round(seconds * 1000))))]


def log_id() -> str:
    """Return an id that tells one failure from others in a log."""
    return secrets.token_hex(4)


def _clip(text: str) -> str:
    """Keep a message that quotes a long value within gRPC's limit on metadata, in which it travels percent-encoded."""
    if len(quote(text)) <= _LONGEST_MESSAGE:
        return text
    while len(quote(text)) > _LONGEST_MESSAGE:
        text = text[: len(text) * 3 // 4]
    return text + "…"


def error_of(status: str, message: str) -> ServingError:
    """Return the error that stands for a received status.

    Args:
        status: the status's name, such as ``"NOT_FOUND"``.
        message: its message.
    """
    code = Status[status] if status in Status.__members__ else Status.UNKNOWN
    error = _ERRORS.get(code, ServingError)(message)
    error.status = code.name
    return error
