"""A process that only serves looks less often for garbage, still finds it, and makes next to none."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellport.errors import ServingError
from cellport.protos.inference_pb2 import ModelInferRequest
from cellport.serve import Engine, EngineSettings, Model
from cellport.serve.async_engine import AsyncEngine
from cellport.serve.calls import CallContext, Lifecycle
from cellport.serve.inference import InferenceCalls

SCRIPT = """
import gc, weakref
from cellport.serve.memory import settle
settle()
assert gc.get_freeze_count() > 1000
class Knot:
    def __init__(self):
        self.itself = self
last = weakref.ref(Knot())
kept = []
while last() is not None:
    kept.append([])
    assert len(kept) < 1_000_000
print(len(kept))
"""


def test_cycles_are_still_found_though_less_often() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) > 700, "Python's own threshold"


def request(tokens: Any, **parameters: int | str) -> bytes:
    message = ModelInferRequest(model_name="lstm", raw_input_contents=[tokens.tobytes()])
    message.inputs.add(name="tokens", datatype="INT64", shape=tokens.shape)
    for name, value in parameters.items():
        if isinstance(value, str):
            message.parameters[name].string_param = value
        else:
            message.parameters[name].int64_param = value
    return message.SerializeToString()


GOOD = np.ones((1, 3), np.int64)
REQUESTS = {
    "right": request(GOOD),
    "values": request(np.full((1, 3), 50)),
    "shape": request(np.ones((1, 3, 1), np.int64)),
    "parameter": request(GOOD, timeout="soon"),
    "sequence": request(GOOD, sequence_id=9),
}


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    model = Model.load(folder / "lstm" / "2" / "model.onnx", name="lstm")
    with Engine([model], EngineSettings(workers=1, warm_seconds=0)) as running:
        yield running


async def unary(calls: InferenceCalls, data: bytes) -> None:
    with contextlib.suppress(ServingError):
        await calls.infer(data, CallContext())


async def streamed(calls: InferenceCalls, data: bytes) -> None:
    answered = asyncio.Event()
    calls.open(CallContext(), lambda _: answered.set(), lambda: None).feed(data)
    await answered.wait()


@pytest.mark.parametrize("call", [unary, streamed])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_leaves_no_garbage_that_has_to_be_looked_for(
    engine: Engine, call: Callable[..., Any], name: str
) -> None:
    async def ask(times: int) -> None:
        calls = InferenceCalls(AsyncEngine(engine), Lifecycle(), window=8, send_bytes=2**20)
        for _ in range(times):
            await call(calls, REQUESTS[name])

    asyncio.run(ask(3))
    gc.collect()
    gc.disable()
    try:
        asyncio.run(ask(3))
        few = gc.collect()
        asyncio.run(ask(103))
        assert gc.collect() < few + 100
    finally:
        gc.enable()


def test_what_a_request_held_is_let_go_of_when_it_is_answered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Any]] = []
    prepare = engine.prepare

    def watched(request: Any, *rest: Any) -> Any:
        seen.extend(weakref.ref(array) for array in request.inputs.values())
        return prepare(request, *rest)

    async def ask() -> None:
        calls = InferenceCalls(AsyncEngine(engine), Lifecycle(), window=8, send_bytes=2**20)
        for number in range(1, 20):
            for _ in range(2):
                await calls.infer(request(GOOD, unknown=number), CallContext())

    monkeypatch.setattr(engine, "prepare", watched)
    asyncio.run(ask())
    gc.collect()
    assert len(seen) == 38
    assert not [each for each in seen if each() is not None]


def test_onnxruntime_keeps_no_plan_of_memory_for_every_size_of_a_run(folder: Path) -> None:
    model = Model.load(folder / "lstm" / "2" / "model.onnx", name="lstm")
    assert not model._session.get_session_options().enable_mem_pattern
