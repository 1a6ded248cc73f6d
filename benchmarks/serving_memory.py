"""What `benchmarks/serving.py` measures of a server's memory: idle sequences, and a long load."""

import asyncio
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
from serving_cases import Row
from serving_models import WIDTH, Load
from serving_processes import BenchmarkError, ServerProcess, run_load

from cellport.protos import inference_pb2 as messages
from cellport.serve import AsyncClient

AT_ONCE = 64
WARM = 1_000
SETTLE_SECONDS = 2.0
SOAK_SECONDS = 5.0


def step_request(number: int, x: np.ndarray, *, start: bool, end: bool) -> messages.ModelInferRequest:
    """A step of a sequence."""
    request = messages.ModelInferRequest(model_name="layers")
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.raw_input_contents.append(x.tobytes())
    request.parameters["sequence_id"].int64_param = number
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    return request


async def step_sequences(
    server: ServerProcess, first: int, count: int, *, start: bool = False, end: bool = False
) -> None:
    """Take a step of each of as many sequences, 64 at a time."""
    x = np.random.default_rng(first).standard_normal((1, WIDTH), np.float32)
    numbers = iter(range(first, first + count))
    async with AsyncClient(f"{server.host}:{server.port}", timeout=60) as client:

        async def caller() -> None:
            for number in numbers:
                await client.send(step_request(number, x, start=start, end=end))

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))


def idle_row(server: ServerProcess, front: str, count: int, size: int) -> Row:
    """Let sequences idle and measure what each adds to the server's memory.

    Before that as many others have come and gone as it takes to warm the server up.

    Args:
        server: a fresh server.
        front: its front.
        count: sequences.
        size: bytes of one sequence's state.
    """
    print(f"idle sequences, {front}", file=sys.stderr)
    asyncio.run(step_sequences(server, 1, WARM, start=True, end=True))
    time.sleep(SETTLE_SECONDS)
    before = server.resident_bytes()
    asyncio.run(step_sequences(server, 10**6, count, start=True))
    time.sleep(SETTLE_SECONDS)
    each = (server.resident_bytes() - before) / count
    # One that had been evicted would refuse this, and the memory would be that of fewer.
    asyncio.run(step_sequences(server, 10**6, count, end=True))
    allowed = 1.5 * size + 1024
    return Row(
        scenario=f"{count:,} idle sequences of two LSTM layers of 256: memory of each, against {size:,} bytes of state",
        label=f"resident memory, {front}",
        figure=f"{each:,.0f} bytes",
        ratio=each / size,
        target=f"≤ {allowed / size:.2f}",
        met=each <= allowed,
        notes="",
    )


def soak_row(program: Path, server: ServerProcess, front: str, loads: dict[str, Load], requests: int) -> Row:
    """Send many requests, verified, of random lengths and of steps in turn; measure the memory that stays.

    The first tenth of the requests warms the server up.
    """
    done, warm, samples = 0, 0, []
    for name in cycle(("random", "stream")):
        done += run_load(program, server, loads[name], seconds=SOAK_SECONDS, warmup=0)["all_requests"]
        print(f"\rsoak, {front}: {done:,} of {requests:,} requests", end="", file=sys.stderr, flush=True)
        if done >= requests / 10:
            warm = warm or done
            samples.append((done - warm, server.resident_bytes()))
        if done >= requests:
            break
    print(file=sys.stderr)
    if len(samples) < 2:
        raise BenchmarkError(f"--soak-requests is {requests}; accepted: as many as take more than ten seconds")
    growth = samples[-1][1] - samples[0][1]
    return Row(
        scenario=f"soak: {requests:,} requests, random lengths and steps in turn, every answer verified",
        label=f"growth after {warm:,} requests, {front}",
        figure=f"{growth / 2**20:,.1f} MiB",
        notes=f"{growth / samples[-1][0]:.1f} bytes a request, of {samples[0][1] / 2**20:,.0f} MiB",
    )
