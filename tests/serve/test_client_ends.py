"""A client that goes away early leaves no sequence behind on the server, which would hold it until its idle limit."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellport.errors import DeadlineExceededError, NotFoundError, SequenceExistsError
from cellport.serve import AsyncClient, Client, Engine, EngineSettings, SequenceSettings, Server, ServerSettings

LONG = {"tokens": np.ones((1, 3_000_000), np.int64)}  # a step of a second or more


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder / "lstm", EngineSettings(sequences=SequenceSettings(on_restart="refuse"))) as running:
        yield running


@pytest.fixture
def address(engine: Engine) -> Iterator[str]:
    with Server(engine, ServerSettings(stream_window=4), port=0) as server:
        yield server.address


def held(engine: Engine, name: str) -> bool:
    return engine.holds(engine.repository.get("lstm"), name)


def forever() -> Iterator[dict[str, Any]]:
    while True:
        yield {"tokens": [[1]]}


def test_a_stream_that_is_left_early_ends_its_sequence(engine: Engine, address: str) -> None:
    with Client(address, timeout=60) as client:
        for answer in client.stream("lstm", forever(), sequence="left"):
            assert answer.error is None
            assert held(engine, "left")
            break
        assert not held(engine, "left")


async def test_an_async_stream_that_is_left_early_ends_its_sequence(engine: Engine, address: str) -> None:
    async def steps() -> AsyncIterator[dict[str, Any]]:
        for each in forever():
            yield each
            await asyncio.sleep(0)

    async with AsyncClient(address, timeout=60) as client:
        answers = client.stream("lstm", steps(), sequence="left")
        async with contextlib.aclosing(answers):  # type: ignore[type-var]
            async for answer in answers:
                assert answer.error is None
                assert held(engine, "left")
                break
        assert not held(engine, "left")


def test_a_stream_whose_time_is_up_ends_its_sequence(engine: Engine, address: str) -> None:
    def steps() -> Iterator[dict[str, Any]]:
        yield {"tokens": [[1]]}
        threading.Event().wait(2)

    with Client(address) as client:
        with pytest.raises(DeadlineExceededError):
            list(client.stream("lstm", steps(), sequence="late", timeout=1))
        assert not held(engine, "late")


def test_a_stream_without_requests_ends_no_sequence_of_another(engine: Engine, address: str) -> None:
    with Client(address, timeout=60) as client, client.sequence("lstm", "other") as other:
        other.step({"tokens": [[1]]})
        assert list(client.stream("lstm", [], sequence="other")) == []
        assert held(engine, "other")


def test_a_first_step_whose_time_is_up_while_it_runs_is_ended(engine: Engine, address: str) -> None:
    with Client(address) as client:
        with client.sequence("lstm", "slow") as sequence, pytest.raises(DeadlineExceededError):
            sequence.step(LONG, ["last"], timeout=0.5)
        assert not held(engine, "slow")


async def test_an_async_first_step_that_is_cancelled_while_it_runs_is_ended(engine: Engine, address: str) -> None:
    async with AsyncClient(address) as client:
        async with client.sequence("lstm", "slow") as sequence:
            step = asyncio.ensure_future(sequence.step(LONG, ["last"]))
            while not engine.runs:
                await asyncio.sleep(0.001)
            step.cancel()
            await asyncio.wait([step])
            assert held(engine, "slow")
        assert not held(engine, "slow")


def test_a_start_that_was_refused_ends_no_sequence_of_another(engine: Engine, address: str) -> None:
    with Client(address, timeout=60) as client, client.sequence("lstm", "mine") as mine:
        mine.step({"tokens": [[1]]})
        with client.sequence("lstm", "mine") as other, pytest.raises(SequenceExistsError):
            other.step({"tokens": [[1]]})
        assert held(engine, "mine")
        with client.sequence("nobody") as nowhere, pytest.raises(NotFoundError):
            nowhere.step({"tokens": [[1]]})
