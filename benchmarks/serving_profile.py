"""Where a request's microseconds go: `cellport serve --front grpcio` under Python's profiler, a profile a thread.

Printed are, for each thread, the functions with the most processor time of their own, in microseconds a step. What
grpc's and uvloop's own code takes is in the function that runs the event loop. Watching makes calls of Python functions
several times dearer: take shares as leads, and measure changes with `serving.py`.

    python benchmarks/serving_profile.py [--load fixed random stream many single] [--seconds 5] [--lines 15]
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from serving_processes import LOADS, BenchmarkError, ServerProcess, ready_to_load, run_load


def serve_profiled(folder: Path, out: Path) -> None:
    """Serve until SIGTERM and write a profile of each thread to a folder."""
    from cellport.serve import Server, ServerSettings

    profiles: list[tuple[str, cProfile.Profile]] = []

    def begin(frame: FrameType, event: str, argument: Any) -> None:  # noqa: ARG001
        # The first event of a new thread replaces itself by the profiler, which is a hook of one thread.
        sys.setprofile(None)
        profile = cProfile.Profile(time.thread_time)
        profiles.append((threading.current_thread().name, profile))
        profile.enable()

    threading.setprofile(begin)
    server = Server(folder, ServerSettings(port=0, front="grpcio"))
    main = cProfile.Profile(time.thread_time)
    profiles.append(("event loop", main))
    main.enable()
    server.serve_forever(lambda: print(json.dumps({"address": server.address}), flush=True))
    main.disable()
    threading.setprofile(None)
    for number, (name, profile) in enumerate(profiles):
        profile.create_stats()
        if profile.stats:
            profile.dump_stats(out / f"{number} {name.replace('/', '_')}")


def describe(function: tuple[str, int, str]) -> str:
    """A function's name, with the file that it is in."""
    path, line, name = function
    return name if path == "~" else f"{'/'.join(Path(path).parts[-2:])}:{line} {name}"


def print_profile(path: Path, steps: int, lines: int) -> None:
    """Print the functions of a thread that took the most time of their own."""
    stats: dict[Any, Any] = pstats.Stats(str(path)).stats  # type: ignore[attr-defined]
    found = [(own, calls, describe(function)) for function, (_, calls, own, _, _) in stats.items()]
    total = sum(own for own, _, _ in found)
    if total / steps * 1e6 < 1:
        return
    print(f"\n{path.name.partition(' ')[2]}: {total / steps * 1e6:.0f} µs a step")
    for own, calls, name in sorted(found, reverse=True)[:lines]:
        print(f"  {own / steps * 1e6:8.1f} µs {calls / steps:8.2f} calls  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Show where a request's microseconds go.")
    parser.add_argument("--load", nargs="+", choices=LOADS, default=["fixed"], help="what is sent (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of load (%(default)s)")
    parser.add_argument("--lines", type=int, default=15, help="functions of a thread (%(default)s)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_profiled(arguments.serve, arguments.out)
        return 0
    try:
        with ready_to_load() as (folder, program, loads):
            for load in arguments.load:
                out = folder / f"profile-{load}"
                out.mkdir()
                command = [sys.executable, __file__, "--serve", str(folder / "models"), "--out", str(out)]
                with ServerProcess(f"profiled-{load}", command, folder) as server:
                    report = run_load(program, server, loads[load], seconds=arguments.seconds, warmup=0)
                steps = report["all_requests"] * loads[load].steps
                print(f"\n{load}: {steps:,} steps, {report['server_us'] / loads[load].steps:.0f} µs of processor each")
                for path in sorted(out.iterdir()):
                    print_profile(path, steps, arguments.lines)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
