"""A request that the loop runs itself, beside other callers of the same engine."""

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from cellport.serve import Engine, EngineSettings, Model
from cellport.serve.async_engine import AsyncEngine
from cellport.serve.requests import Reply, Request

from .wire import tokens_of

WAIT = 30


class Held(Model):
    """A model whose first run lasts until it is let go."""

    begun: threading.Event
    released: threading.Event

    def run(self, feeds: Any, fetches: Any) -> Any:
        self.begun.set()
        assert self.released.wait(WAIT)
        return super().run(feeds, fetches)


def test_who_comes_while_the_loop_runs_a_request_itself_is_not_forgotten(folder: Path) -> None:
    model = Held.load(folder / "lstm" / "2" / "model.onnx", name="lstm")
    model.begun, model.released = threading.Event(), threading.Event()
    request = {"tokens": tokens_of(3, seed=0)}
    other: Future[Any] = Future()

    def come() -> None:
        assert model.begun.wait(WAIT)
        engine.submit(Request(model="lstm", inputs=request), other.set_result)
        model.released.set()

    with Engine([model], EngineSettings(workers=1, warm_seconds=0)) as engine:
        thread = threading.Thread(target=come)
        thread.start()
        alone = asyncio.run(AsyncEngine(engine).infer("lstm", request))
        thread.join(WAIT)
        reply = other.result(WAIT)
    assert isinstance(reply, Reply)
    np.testing.assert_array_equal(reply.outputs["tags"], alone["tags"])


def test_a_caller_who_is_known_to_be_alone_is_answered_within_the_call(folder: Path) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx", name="lstm")

    async def ask(caller: AsyncEngine) -> list[bool]:
        at_once: list[bool] = []
        while len(at_once) < 100_000 and not all(at_once[-5:] or [False]):
            future, pending = caller.start(Request(model="lstm", inputs={"tokens": tokens_of(3, seed=0)}))
            at_once.append(future.done())
            await caller.wait(future, pending)
        return at_once

    with Engine([model], EngineSettings(warm_seconds=0, inline_seconds=10.0)) as engine:
        at_once = asyncio.run(ask(AsyncEngine(engine)))
    assert not any(at_once[:32]), "nothing is known yet"
    assert all(at_once[-5:])


def test_a_step_and_a_lone_request_are_answered_as_by_an_engine_that_queues_both(folder: Path) -> None:
    tokens = tokens_of(5, seed=1)

    async def ask(engine: Engine) -> list[Any]:
        caller = AsyncEngine(engine)
        found = [await caller.infer("lstm", {"tokens": tokens})]
        sequence = await caller.open_sequence("lstm")
        for step in range(5):
            found.append(await sequence.step({"tokens": tokens[:, step : step + 1]}))
            found.append(await caller.infer("lstm", {"tokens": tokens[:, : step + 1]}))
        return found

    answers = []
    for inline in (10.0, 0.0):
        model = Model.load(folder / "lstm" / "2" / "model.onnx", name="lstm")
        with Engine([model], EngineSettings(warm_seconds=0, inline_seconds=inline)) as engine:
            answers.append(asyncio.run(ask(engine)))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one["tags"], other["tags"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(answers[0][-2]["tags"][:, -1], answers[0][0]["tags"][:, -1], rtol=0, atol=1e-6)
