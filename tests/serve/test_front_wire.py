"""gRPC's framing on HTTP/2, without a network."""

import gzip
import itertools
import zlib
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellport.serve.asgi_wire import MessageReader, Metadata, WireError, frame, read_timeout, status_headers
from cellport.serve.status import Status

LIMIT = 1000


def read_all(reader: MessageReader, chunks: list[bytes]) -> list[bytes]:
    found = []
    for chunk in chunks:
        reader.feed(chunk)
        while (message := reader.next()) is not None:
            found.append(message)
    reader.finish()
    return found


@given(messages=st.lists(st.binary(max_size=40)), cuts=st.lists(st.integers(0, 400)))
def test_messages_are_the_same_wherever_the_network_cuts_them(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(frame, messages))
    places = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    chunks = [data[start:end] for start, end in itertools.pairwise(places)]
    assert read_all(MessageReader(b"identity", LIMIT), chunks) == messages


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_messages_are_read_beside_others(encoding: bytes, compress: Any) -> None:
    packed = compress(b"a" * LIMIT)
    data = b"\1" + len(packed).to_bytes(4, "big") + packed + frame(b"plain")
    assert read_all(MessageReader(encoding, LIMIT), [data]) == [b"a" * LIMIT, b"plain"]


def flagged(data: bytes) -> bytes:
    return b"\1" + frame(data)[1:]


@pytest.mark.parametrize(
    ("encoding", "data", "status", "words"),
    [
        (
            b"identity",
            frame(b"a" * (LIMIT + 1)),
            Status.RESOURCE_EXHAUSTED,
            "1001 bytes or more; accepted: at most 1000",
        ),
        # Refused before the rest of it has come.
        (b"identity", frame(b"a" * 2**20)[:5], Status.RESOURCE_EXHAUSTED, "1048576 bytes or more"),
        (b"gzip", flagged(gzip.compress(b"a" * 2**18, mtime=0)), Status.RESOURCE_EXHAUSTED, "1001 bytes or more"),
        (b"gzip", flagged(gzip.compress(b"a" * 99, mtime=0)[:-4]), Status.INTERNAL, "it ends too soon"),
        (b"gzip", flagged(b"no gzip"), Status.INTERNAL, "incorrect header"),
        (b"identity", flagged(gzip.compress(b"a", mtime=0)), Status.INTERNAL, "grpc-encoding is identity"),
        (b"identity", frame(b"abc")[:-1], Status.INTERNAL, "ended within a message, after 7 of its bytes"),
        (b"identity", b"\0\0", Status.INTERNAL, "ended within a message, after 2 of its bytes"),
    ],
)
def test_what_is_no_message_is_refused_with_its_status(
    encoding: bytes, data: bytes, status: Status, words: str
) -> None:
    with pytest.raises(WireError, match=words) as refusal:
        read_all(MessageReader(encoding, LIMIT), [data])
    assert refusal.value.status is status


def test_an_unknown_encoding_is_unimplemented_and_the_known_are_named() -> None:
    with pytest.raises(WireError, match="grpc-encoding is 'br'; accepted: identity,deflate,gzip") as refusal:
        MessageReader(b"br", LIMIT)
    assert refusal.value.status is Status.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"40m", 0.04), (b"5u", 5e-6), (b"99999999n", 0.099999999)],
)
def test_timeouts_are_read_in_every_unit(text: bytes, seconds: float) -> None:
    assert read_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"123456789S", b"1.5S", b"-1S", b"1S ", b"1d"])
def test_a_malformed_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(WireError, match=r"grpc-timeout is .*; accepted: up to 8 digits and one of H, M, S, m, u, n"):
        read_timeout(text)


@given(st.text())
def test_messages_of_statuses_travel_in_printable_ascii_and_come_back_whole(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    headers = dict(status_headers(Status.NOT_FOUND, text))
    assert headers[b"grpc-status"] == b"5"
    sent = headers.get(b"grpc-message", b"")
    assert all(0x20 <= byte < 0x7F for byte in sent)
    assert unquote(sent.decode()) == text


def test_metadata_is_the_callers_and_not_the_transports() -> None:
    headers = {
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"grpc-timeout": b"1S",
        b"user-agent": b"me",
        b"tenant": b"a b",
        b"trace-bin": b"AAH/",
        b"short-bin": b"AA",
        b"wrong-bin": b"%%",
    }
    metadata = Metadata(headers)
    assert dict(metadata) == {"user-agent": "me", "tenant": "a b", "trace-bin": b"\0\1\xff", "short-bin": b"\0"}
    assert metadata.get("nothing") is None
    assert len(metadata) == 4
