"""Where a request's microseconds go on each front: the processor time of every thread of `cellport serve`.

The kernel counts it, so that nothing is slower for being watched. What onnxruntime takes of it is the time by the clock
that the server's statistics tell of the runs themselves, which is more than processor time where cores are shared.

    python benchmarks/serving_threads.py [--fronts grpcio envoy] [--load fixed random stream many single] [--seconds 3]
"""

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from serving import available_fronts, serve
from serving_models import Load
from serving_processes import LOADS, TICKS, BenchmarkError, ServerProcess, ready_to_load, run_load
from tritonclient.grpc import InferenceServerClient

ROLES = {
    "cellport-loop": "event loop, Python",
    "cellport-run": "runs: gathering, onnxruntime, giving out",
    "wrk:worker_0": "Envoy: HTTP/2 and sockets",
    "envoy": "pyvoy: between Envoy and the event loop",
    "cellport": "event loop, Python, and grpc.aio's poller",
}
OTHERS = "others"


def threads_of(server: ServerProcess) -> dict[int, tuple[str, float]]:
    """The name and the processor seconds of every thread of a server, by its number."""
    found = {}
    for pid in server.processes():
        for task in Path(f"/proc/{pid}/task").iterdir():
            begin, _, fields = (task / "stat").read_text().rpartition(")")
            user, system = fields.split()[11:13]
            found[int(task.name)] = begin.partition("(")[2], (int(user) + int(system)) / TICKS
    return found


def infer_seconds(server: ServerProcess) -> float:
    """Seconds by the clock that onnxruntime has run so far, all runs together."""
    with InferenceServerClient(f"{server.host}:{server.port}") as client:
        statistics = client.get_inference_statistics()
    return sum(batch.compute_infer.ns for model in statistics.model_stats for batch in model.batch_stats) / 1e9


def measure(program: Path, server: ServerProcess, load: Load, seconds: float) -> tuple[int, dict[str, float]]:
    """Run a load; return its steps, and the processor seconds of each role and of onnxruntime."""
    run_load(program, server, load, seconds=0.5, warmup=0)
    before, ran = threads_of(server), infer_seconds(server)
    report = run_load(program, server, load, seconds=seconds, warmup=0)
    after, ended = threads_of(server), infer_seconds(server)
    spent: dict[str, float] = defaultdict(float)
    for number, (name, total) in after.items():
        spent[ROLES.get(name, OTHERS)] += total - before.get(number, (name, 0.0))[1]
    return report["all_requests"] * load.steps, {**spent, "onnxruntime, by the clock": ended - ran}


def main() -> int:
    parser = argparse.ArgumentParser(description="Show the processor time of each thread of the server.")
    parser.add_argument("--fronts", nargs="+", choices=("grpcio", "envoy"), default=available_fronts())
    parser.add_argument("--load", nargs="+", choices=LOADS, default=list(LOADS), help="what is sent (all)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each load (%(default)s)")
    arguments = parser.parse_args()
    try:
        with ready_to_load() as (folder, program, loads):
            for front in arguments.fronts:
                with ServerProcess(front, serve(front, folder / "models"), folder) as server:
                    for load in arguments.load:
                        steps, spent = measure(program, server, loads[load], arguments.seconds)
                        print(f"\n{front}, {load}: {steps:,} steps; microseconds a step")
                        for role, seconds in sorted(spent.items(), key=lambda each: -each[1]):
                            if seconds / steps < 1e-7:
                                break
                            print(f"  {seconds / steps * 1e6:8.1f}  {role}")
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
