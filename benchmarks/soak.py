"""Whether a server's memory stays where it is: many requests of all kinds, and its resident memory all along.

`cellport serve`, in a process of its own, is sent texts of random lengths whole, in steps of sequences by calls and by
streams, requests that are cancelled, late or wrong, and sequences that are ended, cancelled and abandoned. Every answer
is compared with PyTorch's. The first tenth of the requests warms the server up; after that its memory may grow by less
than 2 %.

    python benchmarks/soak.py [--requests 500000] [--front auto] [--clients 2] [--callers 32] [--json FILE]

Needs Linux. Ends with status 1 if there was an error, or if memory grew by more.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from serving_processes import BenchmarkError, ServerProcess
from soak_clients import MODEL, VOCABULARY
from torch import Tensor, nn

from cellport.export import to_onnx

CLIENTS = Path(__file__).with_name("soak_clients.py")
TEXTS, LONGEST, MEAN = 512, 64, 12
HIDDEN, CLASSES = 32, 5
IDLE_SECONDS = 10.0
WARM, TAIL = 0.1, 0.02
ALLOWED = 0.02
SAMPLE_SECONDS = 0.5


class Tagger(nn.Module):
    """Token ids [batch, time] to the scores of five tags for each [batch, time, tags]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores."""
        scores: Tensor = self.head(self.lstm(self.embedding(tokens))[0])
        return scores


def export(folder: Path) -> None:
    """Write the model, and texts with PyTorch's scores of them."""
    torch.manual_seed(0)
    model = Tagger().eval()
    path = folder / "models" / MODEL / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    axes = ({0: "batch", 1: "time"},)
    example = (torch.zeros(2, 3, dtype=torch.long),)
    to_onnx(model, example, path, output_names=["scores"], dynamic_shapes=axes, lowering="native", verify=False)
    drawn = np.random.default_rng(0)
    lengths = np.clip(drawn.lognormal(np.log(MEAN), 0.7, TEXTS).astype(int), 1, LONGEST)
    texts = [drawn.integers(0, VOCABULARY, length) for length in lengths]
    with torch.inference_mode():
        scores = [model(torch.from_numpy(text)[None])[0].numpy() for text in texts]
    np.savez(folder / "texts.npz", tokens=np.concatenate(texts), scores=np.concatenate(scores), ends=np.cumsum(lengths))


class Clients:
    """The client processes, and what they have told so far."""

    def __init__(self, address: str, folder: Path, requests: int, count: int, callers: int) -> None:
        shares = [requests // count + (number < requests % count) for number in range(count)]
        self._told: list[dict[str, Any]] = [{} for _ in shares]
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, str(CLIENTS), address, str(folder)),
                    *("--requests", str(share), "--callers", str(callers), "--seed", str(number + 1)),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number, share in enumerate(shares)
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(number,), daemon=True) for number in range(len(shares))
        ]
        for each in self._readers:
            each.start()

    def _read(self, number: int) -> None:
        output = self._processes[number].stdout
        assert output is not None
        for line in output:
            self._told[number] = json.loads(line)

    def total(self, name: str) -> int:
        """A count over all processes."""
        return sum(each.get(name, 0) for each in self._told)

    def outcomes(self) -> Counter[str]:
        """The outcomes over all processes."""
        return sum((Counter(each.get("outcomes", {})) for each in self._told), Counter())

    def examples(self) -> list[str]:
        """Words of the first errors of each."""
        return [words for each in self._told for words in each.get("examples", ())]

    def running(self) -> bool:
        """Whether any still sends.

        Raises:
            BenchmarkError: one has failed.
        """
        states = [each.poll() for each in self._processes]
        if any(states):
            raise BenchmarkError(f"a client ended with status {next(filter(None, states))}")
        if all(state == 0 for state in states):
            for reader in self._readers:
                reader.join()
            return False
        return True

    def stop(self) -> None:
        """End what still runs."""
        for each in self._processes:
            if each.poll() is None:
                each.kill()
            each.wait()


@dataclass(frozen=True)
class Result:
    """What a soak has shown; memory in bytes."""

    front: str
    requests: int
    answered: int
    errors: int
    seconds: float
    warm_bytes: int
    end_bytes: int
    most_bytes: int
    settled_bytes: int
    outcomes: dict[str, int]
    samples: list[tuple[int, int]]

    @property
    def growth(self) -> float:
        """Growth from the end of the warm-up to the end, as a part of the former."""
        return self.end_bytes / self.warm_bytes - 1


def soak(folder: Path, arguments: argparse.Namespace) -> Result:
    """Run the server and its clients."""
    program = Path(sys.executable).with_name("cellport")
    command = [str(program), "serve", str(folder / "models"), "--port", "0", "--json"]
    command += ["--front", arguments.front, "--idle", str(IDLE_SECONDS)]
    with ServerProcess("soak", command, folder) as server, contextlib.ExitStack() as stack:
        clients = Clients(server.told["address"], folder, arguments.requests, arguments.clients, arguments.callers)
        stack.callback(clients.stop)
        samples: list[tuple[int, int]] = []
        begun = time.monotonic()
        while clients.running():
            server.check()
            done = clients.total("requests")
            samples.append((done, server.resident_bytes()))
            print(
                f"\r{done:,} of {arguments.requests:,} requests, {samples[-1][1] / 2**20:.1f} MiB",
                end="",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - begun
        print(file=sys.stderr)
        time.sleep(IDLE_SECONDS + 2)
        settled = server.resident_bytes()
        outcomes = clients.outcomes()
        for words in clients.examples():
            print(words, file=sys.stderr)

    def around(first: float, last: float) -> int:
        """The median of the memory between two parts of the requests, or the next sample after the first."""
        found = [held for done, held in samples if first <= done / arguments.requests <= last]
        later = [held for done, held in samples if done >= first * arguments.requests]
        return int(median(found or later[:1] or [samples[-1][1]]))

    return Result(
        front=server.told["front"],
        requests=clients.total("requests"),
        answered=clients.total("answered"),
        errors=sum(count for name, count in outcomes.items() if name.startswith("error")),
        seconds=seconds,
        warm_bytes=around(WARM, WARM + TAIL),
        end_bytes=around(1 - TAIL, 1.1),
        most_bytes=max((held for done, held in samples if done >= WARM * arguments.requests), default=0),
        settled_bytes=settled,
        outcomes=dict(outcomes),
        samples=samples,
    )


def print_result(result: Result) -> None:
    """Print the table."""
    rows = [
        ("front", result.front),
        ("requests", f"{result.requests:,} in {result.seconds:,.0f} s"),
        ("answers compared with PyTorch's", f"{result.answered:,}"),
        ("errors", f"{result.errors:,}"),
        *((name.replace("_", " "), f"{count:,}") for name, count in sorted(result.outcomes.items())),
        (f"resident memory after {WARM:.0%} of them", f"{result.warm_bytes / 2**20:.1f} MiB"),
        ("resident memory at the end", f"{result.end_bytes / 2**20:.1f} MiB"),
        ("most of it after the warm-up", f"{result.most_bytes / 2**20:.1f} MiB"),
        ("when all sequences had gone", f"{result.settled_bytes / 2**20:.1f} MiB"),
        ("growth", f"{result.growth:+.2%} (allowed: {ALLOWED:.0%})"),
    ]
    print("| | |\n| --- | ---: |")
    for name, value in rows:
        print(f"| {name} | {value} |")


def main() -> int:
    """Run the soak; return the exit status."""
    parser = argparse.ArgumentParser(description="Send a server many requests and watch its memory.")
    parser.add_argument("--requests", type=int, default=500_000, help="how many (%(default)s)")
    parser.add_argument("--front", choices=("auto", "grpcio", "envoy"), default="auto", help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=2, help="client processes (%(default)s)")
    parser.add_argument("--callers", type=int, default=32, help="callers of each at a time (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures and all samples here")
    arguments = parser.parse_args()
    for name in ("requests", "clients", "callers"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; accepted: at least 1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cellport-soak-") as folder:
        try:
            export(Path(folder))
            result = soak(Path(folder), arguments)
        except BenchmarkError as error:
            print(f"soak: {error}", file=sys.stderr)
            return 1
    print_result(result)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**asdict(result), "growth": result.growth}, indent=1))
    return 1 if result.errors or result.growth >= ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
