"""gRPC's own layer on top of HTTP/2: frames of messages, compression, timeouts, metadata and status headers.

After the specification in grpc/grpc, doc/PROTOCOL-HTTP2.md and doc/compression.md. Nothing here waits or sends.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from .status import Status

# zlib's window sizes that stand for the two formats.
_ENCODINGS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
ACCEPTED_ENCODINGS = b"identity,deflate,gzip"
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# What belongs to the transport and is no metadata of the call.
_RESERVED = frozenset({"te", "content-type", "host", "x-forwarded-proto"})
_PREFIX = 5


class WireError(Exception):
    """A call breaks gRPC's rules, or a limit.

    Args:
        status: what it is answered.
        text: why.
    """

    def __init__(self, status: Status, text: str) -> None:
        super().__init__(text)
        self.status = status


class MessageReader:
    """Cuts what was received into messages.

    Args:
        encoding: the call's `grpc-encoding`.
        limit: largest message in bytes, compressed or not.

    Raises:
        WireError: the encoding is not one that is known (UNIMPLEMENTED).
    """

    def __init__(self, encoding: bytes, limit: int) -> None:
        if encoding != b"identity" and encoding not in _ENCODINGS:
            raise WireError(
                Status.UNIMPLEMENTED,
                f"grpc-encoding is {encoding.decode('latin-1')!r}; accepted: {ACCEPTED_ENCODINGS.decode()}",
            )
        self._window = _ENCODINGS.get(encoding)
        self._limit = limit
        self._data = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted = _PREFIX

    @property
    def waiting(self) -> int:
        """Bytes that have been received and not been returned."""
        return self._size

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._size += len(data)
        # Parts are joined only once a whole message is there: a large one comes in many.
        if self._data or self._parts:
            self._parts.append(data)
        else:
            self._data = data

    def whole(self, data: bytes) -> bytes | None:
        """Return the message that some bytes are, if they are just one and not compressed; else leave them alone."""
        size = len(data) - _PREFIX
        if 0 <= size <= self._limit and not data[0] and int.from_bytes(data[1:_PREFIX], "big") == size:
            return data[_PREFIX:]
        return None

    def next(self) -> bytes | None:
        """Return the next message, or None if more has to be received first.

        Raises:
            WireError: it is larger than the limit (RESOURCE_EXHAUSTED), or not compressed as the call says (INTERNAL).
        """
        if self._size < self._wanted:
            return None
        if self._parts:
            self._data = b"".join((self._data, *self._parts))
            self._parts.clear()
        data = self._data
        length = int.from_bytes(data[1:_PREFIX], "big")
        if length > self._limit:
            raise _too_large(length, self._limit)
        end = _PREFIX + length
        if self._size < end:
            self._wanted = end
            return None
        message = data[_PREFIX:end]
        self._data = data[end:]
        self._size -= end
        self._wanted = _PREFIX
        if data[0]:
            return self._decompress(message)
        return message

    def finish(self) -> None:
        """Hold that nothing is left once the request has ended.

        Raises:
            WireError: it ended within a message (INTERNAL).
        """
        if self._size:
            raise WireError(Status.INTERNAL, f"the request ended within a message, after {self._size} of its bytes")

    def _decompress(self, message: bytes) -> bytes:
        if self._window is None:
            raise WireError(Status.INTERNAL, "a message is flagged as compressed; the call's grpc-encoding is identity")
        inflator = zlib.decompressobj(self._window)
        try:
            # A few bytes may stand for many: never more of them than the limit, and one that tells that it is passed.
            data = inflator.decompress(message, self._limit + 1)
        except zlib.error as error:
            raise WireError(Status.INTERNAL, f"a message cannot be decompressed: {error}") from None
        if len(data) > self._limit:
            raise _too_large(len(data), self._limit)
        if not inflator.eof:
            raise WireError(Status.INTERNAL, "a message cannot be decompressed: it ends too soon")
        return data


def _too_large(size: int, limit: int) -> WireError:
    return WireError(Status.RESOURCE_EXHAUSTED, f"a message has {size} bytes or more; accepted: at most {limit}")


def frame(message: bytes) -> bytes:
    """Return a message as it is sent, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def read_timeout(value: bytes) -> float:
    """Return the seconds of a `grpc-timeout`.

    Raises:
        WireError: it is none (INTERNAL).
    """
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise WireError(
            Status.INTERNAL,
            f"grpc-timeout is {value.decode('latin-1')!r}; accepted: up to 8 digits and one of H, M, S, m, u, n",
        )
    return int(found[1]) * _UNITS[found[2]]


def status_headers(status: Status, text: str) -> list[tuple[bytes, bytes]]:
    """Return the trailers that say how a call ended."""
    headers = [(b"grpc-status", b"%d" % status)]
    if text:
        headers.append((b"grpc-message", quote(text, safe=_PRINTABLE).encode()))
    return headers


class Metadata(Mapping[str, str | bytes]):
    """A call's metadata, which few handlers read: it is decoded when one does.

    Args:
        headers: the call's headers, with keys in lower case.
    """

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self._headers = headers
        self._decoded: dict[str, str | bytes] | None = None

    def __getitem__(self, key: str) -> str | bytes:
        return self._pairs()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs())

    def __len__(self) -> int:
        return len(self._pairs())

    def __repr__(self) -> str:
        return f"Metadata({self._pairs()!r})"

    def _pairs(self) -> dict[str, str | bytes]:
        if self._decoded is None:
            self._decoded = dict(_decode(self._headers))
        return self._decoded


def _decode(headers: Mapping[bytes, bytes]) -> Iterator[tuple[str, str | bytes]]:
    for name, value in headers.items():
        key = name.decode("latin-1")
        if key in _RESERVED or key.startswith((":", "grpc-")):
            continue
        if not key.endswith("-bin"):
            yield key, value.decode("latin-1")
            continue
        # A value that is no base64 is dropped, as grpc's own server does.
        try:
            yield key, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
        except binascii.Error:
            continue
