"""Processes of `benchmarks/serving.py`: servers, with their memory and processor time, and the load generator."""

import contextlib
import ctypes.util
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import serving_models
import torch
from serving_models import Load

from cellport.errors import ServingError
from cellport.serve import Client

GRPCLOAD = Path(__file__).parent / "grpcload"
START_SECONDS = 120.0
STOP_SECONDS = 40.0
DRAIN_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """A measurement that cannot be made, or that is not valid; the message says why."""


def build_grpcload() -> Path:
    """Compile the load generator if it is not up to date; return its path.

    Raises:
        BenchmarkError: a package of the system is missing.
    """
    missing = [name for name in ("gcc", "make") if shutil.which(name) is None]
    if missing:
        raise BenchmarkError(
            f"the load generator needs {' and '.join(missing)}; install the Debian packages of that name"
        )
    built = subprocess.run(["make", "-C", str(GRPCLOAD)], capture_output=True, text=True, timeout=120, check=False)
    if built.returncode:
        hint = "; install the Debian package libnghttp2-dev" if "nghttp2" in built.stderr else ""
        raise BenchmarkError(f"the load generator does not compile{hint}:\n{built.stderr[-2000:]}")
    if ctypes.util.find_library("nghttp2") is None:
        raise BenchmarkError("the load generator needs libnghttp2; install the Debian package libnghttp2-dev")
    return GRPCLOAD / "grpcload"


class ServerProcess:
    """A server as a process of its own, that prints a line of JSON with its address when it listens.

    As a context manager it is started, awaited until it answers that it is ready, and stopped.

    Args:
        name: names the log file.
        command: what to run.
        logs: folder of the log files.

    Attributes:
        host: where it listens.
        port: where it listens.
        told: what it printed when it listened.
    """

    def __init__(self, name: str, command: Sequence[str], logs: Path) -> None:
        self.name = name
        self.host, self.port = "", 0
        self.told: dict[str, Any] = {}
        self._command = list(command)
        self._out, self._log = logs / f"{name}.out", logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._out.open("wb") as out, self._log.open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            # A session of its own: Ctrl-C in the terminal is the benchmark's to pass on.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment, start_new_session=True
            )
        try:
            self._await_ready(time.monotonic() + START_SECONDS)
        except BaseException:
            self._stop()
            raise
        return self

    def _await_ready(self, end: float) -> None:
        while not self.told:
            if (line := self._out.read_bytes().partition(b"\n"))[1]:
                self.told = json.loads(line[0])
            else:
                self._wait(end, "does not listen")
        self.host, _, port = self.told["address"].rpartition(":")
        self.port = int(port)
        with Client(self.told["address"], timeout=5) as client:
            while True:
                try:
                    if client.ready():
                        return
                except ServingError:
                    pass
                self._wait(end, "is not ready")

    def _wait(self, end: float, trouble: str) -> None:
        self.check()
        if time.monotonic() > end:
            raise BenchmarkError(f"server {self.name!r} {trouble} after {START_SECONDS:.0f} s; see {self._log}")
        time.sleep(0.05)

    def check(self) -> None:
        """Raise if the process has ended.

        Raises:
            BenchmarkError: it has.
        """
        if self._process is not None and self._process.poll() is not None:
            text = self._log.read_text(errors="replace")[-2000:]
            raise BenchmarkError(f"server {self.name!r} ended with status {self._process.returncode}:\n{text}")

    def processes(self) -> list[int]:
        """The process and all that came from it: the front envoy has a child."""
        if self._process is None:
            return []
        parents: dict[int, list[int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # The name, in parentheses, may hold anything; the parent is the second field after it.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
        found = [self._process.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def resident_bytes(self) -> int:
        """Resident memory of the process and its children."""
        total = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total

    def cpu_seconds(self) -> float:
        """Processor time that the process and its children have used."""
        total = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()


def run_load(
    program: Path, server: ServerProcess, load: Load, *, seconds: float, warmup: float, verify: bool = True
) -> dict[str, Any]:
    """Run the load generator against a server and return its report.

    The report gets `server_us`, the microseconds of processor that the server spent on a request, warm-up included.

    Raises:
        BenchmarkError: an answer was wrong or missing, or the load did not end in time.
    """
    server.check()
    command = [str(program), "--host", server.host, "--port", str(server.port), "--bodies", str(load.bodies)]
    if load.expect is not None and verify:
        command += ["--expect", str(load.expect)]
    command += ["--seconds", str(seconds), "--warmup", str(warmup), "--drain", str(DRAIN_SECONDS), *load.options]
    before = server.cpu_seconds()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + warmup + DRAIN_SECONDS + 15, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"the load on {server.name!r} did not end in time: {' '.join(command)}") from None
    server.check()
    if done.returncode:
        raise BenchmarkError(
            f"the load on {server.name!r} failed with status {done.returncode}: {' '.join(command)}\n"
            f"{done.stdout[-1500:]}{done.stderr[-1500:]}"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    report["server_us"] = (server.cpu_seconds() - before) / max(report["all_requests"], 1) * 1e6
    return report


LOADS = ("fixed", "random", "stream", "many", "single")
"""Names of the loads that show where a request's time goes."""


@contextlib.contextmanager
def ready_to_load() -> Iterator[tuple[Path, Path, dict[str, Load]]]:
    """Give a folder with the models of `LOADS`, the compiled load generator, and the loads by name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cellport-loads-") as name:
        folder = Path(name)
        yield folder, build_grpcload(), serving_models.classifier_loads(folder) | serving_models.step_loads(folder)
