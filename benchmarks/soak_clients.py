"""A client process of `benchmarks/soak.py`: callers that send, step, cancel and leave, over grpc.aio.

    python benchmarks/soak_clients.py ADDRESS FOLDER --requests 100000 --callers 32 --seed 1

Prints what it has counted so far as a line of JSON, each second and at the end. Every answer that is not cancelled is
compared with PyTorch's, which `FOLDER/texts.npz` holds.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from cellport.protos import inference_pb2 as messages

SERVICE = "/inference.GRPCInferenceService"
MODEL, VOCABULARY = "tagger", 1000
TOLERANCE = 1e-4
SECONDS = 120.0
CHANNELS = 4

Array = np.ndarray[Any, Any]


@dataclass
class Text:
    """Token ids [time] and the scores [time, classes] that PyTorch gives them."""

    tokens: Array
    scores: Array


@dataclass
class Counts:
    """What a process has sent, and what became of it.

    Attributes:
        requests: messages that were sent.
        answered: those whose answer was compared and right.
        outcomes: activities by name, and errors by what they are.
        examples: words of the first errors.
    """

    requests: int = 0
    answered: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def error(self, kind: str, words: object) -> None:
        """Count an outcome that should not have been."""
        self.outcomes[f"error: {kind}"] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{kind}: {words}"[:500])


class Soaker:
    """The callers of one process.

    Args:
        address: of the server.
        texts: to draw from.
        seed: of the draws, and what keeps the sequence ids of processes apart.
    """

    def __init__(self, address: str, texts: list[Text], seed: int) -> None:
        self.counts = Counts()
        self._texts = texts
        self._draw = random.Random(seed)
        self._next = seed * 10**12
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
        self._calls = [each.unary_unary(f"{SERVICE}/ModelInfer") for each in self._channels]
        self._streams = [each.stream_stream(f"{SERVICE}/ModelStreamInfer") for each in self._channels]

    async def run(self, requests: int, callers: int) -> None:
        """Send so many requests, from so many callers at a time."""
        activities: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self.whole, 0.60),
            (self.cancelled, 0.08),
            (self.late, 0.02),
            (self.refused, 0.02),
            (self.sequence, 0.14),
            (self.stream, 0.05),
            (self.abandoned, 0.05),
            (self.cancelled_sequence, 0.02),
            (self.cancelled_stream, 0.02),
        ]
        kinds, weights = zip(*activities, strict=True)

        async def caller() -> None:
            while self.counts.requests < requests:
                [act] = self._draw.choices(kinds, weights)
                self.counts.outcomes[act.__name__] += 1
                try:
                    await act()
                except grpc.aio.AioRpcError as error:
                    self.counts.error(error.code().name, error.details())

        await asyncio.gather(*(caller() for _ in range(callers)))
        for each in self._channels:
            await each.close()

    async def whole(self) -> None:
        """A text in one request."""
        text = self._draw.choice(self._texts)
        self._check(await self._send(text.tokens), text.scores)

    async def cancelled(self) -> None:
        """The same, cancelled before, while or after it runs."""
        call = self._send(self._draw.choice(self._texts).tokens)
        await asyncio.sleep(self._draw.random() * 0.01)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    async def late(self) -> None:
        """One whose deadline mostly passes."""
        try:
            await self._send(self._draw.choice(self._texts).tokens, timeout=self._draw.random() * 0.01)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise

    async def refused(self) -> None:
        """One that is wrong, or a step of a sequence that never was."""
        if self._draw.random() < 0.5:
            wanted, sent = grpc.StatusCode.INVALID_ARGUMENT, self._send(np.array([VOCABULARY]))
        else:
            wanted, sent = grpc.StatusCode.NOT_FOUND, self._send(np.array([1]), self._new())
        try:
            await sent
        except grpc.aio.AioRpcError as error:
            if error.code() is not wanted:
                raise
        else:
            self.counts.error("accepted", wanted)

    async def sequence(self) -> None:
        """A text in steps, each a call; the last ends the sequence, or a message of its own does."""
        name, text = self._new(), self._draw.choice(self._texts)
        pieces = self._pieces(text)
        apart = self._draw.random() < 0.3
        for number, (start, stop) in enumerate(pieces):
            last = number == len(pieces) - 1
            sent = self._send(text.tokens[start:stop], name, start=not number, end=last and not apart)
            self._check(await sent, text.scores[start:stop])
        if apart:
            await self._send(None, name, end=True)

    async def stream(self) -> None:
        """A text in steps over a stream."""
        name, text = self._new(), self._draw.choice(self._texts)
        pieces = self._pieces(text)
        call = self._draw.choice(self._streams)(timeout=SECONDS)
        for number, (start, stop) in enumerate(pieces):
            end = number == len(pieces) - 1
            await call.write(self._message(text.tokens[start:stop], name, start=not number, end=end))
            answer = messages.ModelStreamInferResponse.FromString(await call.read())
            if answer.error_message:
                self.counts.error("in a stream", answer.error_message)
            else:
                self._check(answer.infer_response, text.scores[start:stop])
        await call.done_writing()
        if await call.read() is not grpc.aio.EOF:
            self.counts.error("in a stream", "an answer too many")

    async def abandoned(self) -> None:
        """A sequence that its client forgets after some steps; the server's idle limit ends it."""
        name, text = self._new(), self._draw.choice(self._texts)
        pieces = self._pieces(text)
        for number, (start, stop) in enumerate(pieces[: self._draw.randint(1, len(pieces))]):
            self._check(await self._send(text.tokens[start:stop], name, start=not number), text.scores[start:stop])

    async def cancelled_sequence(self) -> None:
        """A sequence with a step that is cancelled; then it is ended, if it began."""
        name, text = self._new(), self._draw.choice(self._texts)
        start = self._draw.random() < 0.5
        if not start:
            await self._send(text.tokens[:1], name, start=True)
        call = self._send(text.tokens, name, start=start)
        await asyncio.sleep(self._draw.random() * 0.005)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        try:
            await self._send(None, name, end=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    async def cancelled_stream(self) -> None:
        """A stream that is broken off with steps on the way, and with it its sequence is left."""
        name, text = self._new(), self._draw.choice(self._texts)
        call = self._draw.choice(self._streams)(timeout=SECONDS)
        for number, (start, stop) in enumerate(self._pieces(text)):
            await call.write(self._message(text.tokens[start:stop], name, start=not number))
        await asyncio.sleep(self._draw.random() * 0.005)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call.read()

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _pieces(self, text: Text) -> list[tuple[int, int]]:
        """Cut a text into 1 to 8 steps."""
        size = len(text.tokens)
        count = self._draw.randint(1, min(8, size))
        cuts = [0, *sorted(self._draw.sample(range(1, size), count - 1)), size]
        return list(itertools.pairwise(cuts))

    def _send(
        self, tokens: Array | None, name: int = 0, *, start: bool = False, end: bool = False, timeout: float = SECONDS
    ) -> Any:
        body = self._message(tokens, name, start=start, end=end)
        return self._draw.choice(self._calls)(body, timeout=timeout)

    def _message(self, tokens: Array | None, name: int, *, start: bool = False, end: bool = False) -> bytes:
        self.counts.requests += 1
        message = messages.ModelInferRequest(model_name=MODEL)
        if tokens is not None:
            message.inputs.add(name="tokens", datatype="INT64", shape=[1, len(tokens)])
            message.raw_input_contents.append(tokens.astype(np.int64).tobytes())
        if name:
            message.parameters["sequence_id"].int64_param = name
            message.parameters["sequence_start"].bool_param = start
            message.parameters["sequence_end"].bool_param = end
        body: bytes = message.SerializeToString()
        return body

    def _check(self, answer: bytes | messages.ModelInferResponse, expected: Array) -> None:
        if isinstance(answer, bytes):
            answer = messages.ModelInferResponse.FromString(answer)
        found = np.frombuffer(answer.raw_output_contents[0], np.float32)
        if found.size != expected.size or np.abs(found - expected.ravel()).max() > TOLERANCE:
            self.counts.error("wrong answer", answer.outputs[0].shape)
        else:
            self.counts.answered += 1


def read_texts(path: Path) -> list[Text]:
    """The texts and their scores, as `soak.py` wrote them."""
    with np.load(path) as file:
        tokens, scores, ends = file["tokens"], file["scores"], file["ends"]
    starts = [0, *ends[:-1].tolist()]
    return [Text(tokens[a:b], scores[a:b]) for a, b in zip(starts, ends.tolist(), strict=True)]


async def soak(arguments: argparse.Namespace) -> None:
    """Run the callers, and tell the counts each second."""
    soaker = Soaker(arguments.address, read_texts(arguments.folder / "texts.npz"), arguments.seed)

    def tell() -> None:
        counts = soaker.counts
        told = {"requests": counts.requests, "answered": counts.answered, "outcomes": counts.outcomes}
        print(json.dumps({**told, "examples": counts.examples}), flush=True)

    running = asyncio.ensure_future(soaker.run(arguments.requests, arguments.callers))
    while not (await asyncio.wait([running], timeout=1.0))[0]:
        tell()
    running.result()
    tell()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description="Load for benchmarks/soak.py.")
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    uvloop.run(soak(parser.parse_args()))


if __name__ == "__main__":
    main()
