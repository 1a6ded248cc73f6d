"""The pipeline itself: many documents at a time with their results in order, and a stream that is followed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from cellport.serve import AsyncEngine, Engine
from examples.language_id.data import Ids

Array = np.ndarray[Any, Any]
T = TypeVar("T")
R = TypeVar("R")

BULK = 3
"""Priority of documents; steps of a stream have 2, the engine's default, and so run before those that wait."""


async def in_order(items: Iterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> AsyncIterator[R]:
    """Do the work on many items at a time; yield its results in the items' order.

    No more than `limit` items are taken from `items` before the first result of them is yielded, so neither requests
    nor answers pile up, however slow the consumer is. What has begun is cancelled if one fails, or if the iteration is
    left.
    """
    begun: deque[asyncio.Future[R]] = deque()
    try:
        for item in items:
            begun.append(asyncio.ensure_future(work(item)))
            if len(begun) == limit:
                yield await begun[0]
                begun.popleft()
        while begun:
            yield await begun[0]
            begun.popleft()
    finally:
        for each in begun:
            each.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


def answers(engine: AsyncEngine, model: str, texts: Iterable[Ids], limit: int) -> AsyncIterator[Array]:
    """Yield the scores [languages] of each text, of as many as `limit` at a time."""

    async def answer(ids: Ids) -> Array:
        outputs = await engine.infer(model, {"tokens": ids[None]}, outputs=["answer"], priority=BULK)
        return outputs["answer"][0]

    return in_order(texts, answer, limit)


def follow(engine: Engine, model: str, pieces: Iterable[Ids]) -> Iterator[Array]:
    """Yield the scores [languages] after each piece of a text, as soon as the piece has come.

    The engine keeps the state between two pieces; it is let go of when the iteration ends or is left.
    """
    with engine.open_sequence(model) as sequence:
        for ids in pieces:
            yield sequence.step({"tokens": ids[None]}, outputs=["guesses"])["guesses"][0, -1]
