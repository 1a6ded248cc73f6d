"""How fast `cellport serve` is, as ratios to a gRPC server that does nothing.

The yardstick N is the unary rate of a grpc.aio + uvloop server that parses the request and answers a constant, 64
requests in flight. In every round each case is loaded in turn by the load generator `benchmarks/grpcload`, which checks
every answer against PyTorch's; ratios are taken within a round, and medians over the rounds are printed.

    python benchmarks/serving.py [--rounds 5] [--seconds 3] [--only classifier steps] [--fronts grpcio] [--json FILE]
    python benchmarks/serving.py --only soak

docs/benchmarking.md says what each scenario is. Needs the Debian packages gcc, make and libnghttp2-dev, and Linux.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import serving_models as models
import torch
from serving_cases import YARDSTICK, Case, Row, print_table, rows_of, run_rounds
from serving_memory import idle_row, soak_row
from serving_mixed import mixed_loads
from serving_models import Load
from serving_processes import BenchmarkError, ServerProcess, build_grpcload

SCENARIOS = ("classifier", "steps", "generation", "single", "idle", "soak", "mixed")
TIMED = ("classifier", "steps", "generation", "single", "mixed")
PEERS = Path(__file__).parent / "serving_peers.py"
TARGETS = {
    "fixed": {"envoy": 1.0, "grpcio": 0.7},
    "random": {"envoy": 0.8, "grpcio": 0.6},
    "stream": {"envoy": 6.0, "grpcio": 2.5},
    "many": {"envoy": 20.0, "grpcio": 20.0},
    "together": {"envoy": 5.0, "grpcio": 5.0},
    "single": {"envoy": 1.1, "grpcio": 1.1},
}


def cellport(*arguments: str) -> list[str]:
    """The command `cellport` of the Python that runs this."""
    return [str(Path(sys.executable).with_name("cellport")), *arguments]


def peer(*arguments: str) -> list[str]:
    """One of the servers of `serving_peers.py`."""
    return [sys.executable, str(PEERS), *arguments]


def available_fronts() -> list[str]:
    """The fronts that `cellport serve` has here, grpcio first."""
    told = subprocess.run(cellport("serve", "--help"), capture_output=True, text=True, timeout=60, check=True).stdout
    if "envoy" not in told:
        return ["grpcio"]
    from cellport.serve.envoy_config import why_not

    reason = why_not()
    if reason is not None:
        print(f"the front envoy is left out: {reason}", file=sys.stderr)
        return ["grpcio"]
    return ["grpcio", "envoy"]


def serve(front: str, path: Path, *options: str) -> list[str]:
    """The command that serves a folder of models on a free port."""
    return cellport("serve", str(path), "--port", "0", "--front", front, "--json", *options)


def cases_of(front: str, chosen: Sequence[str], loads: dict[str, Load]) -> list[Case]:
    """What is measured of one front."""
    found = []

    def add(scenario: str, name: str, label: str, **more: Any) -> None:
        target = TARGETS.get(name, {}).get(front)
        more = {"server": front, "load": loads[name], "target": target, **more}
        found.append(Case(name=f"{name} {front}", scenario=scenario, label=f"{label}, {front}", **more))

    if "classifier" in chosen:
        title = "LSTM classifier, unary, 64 in flight, against the no-op server"
        for name, label in (("fixed", "32 tokens"), ("random", "4 to 128 tokens")):
            add(title, name, label)
            padded = f"{label}, padded only, {front}"
            found.append(Case(f"{name} whole {front}", title, padded, f"{front} whole", loads[name]))
    if "steps" in chosen:
        title = "LSTM steps over ModelStreamInfer, against the no-op server's unary calls"
        add(title, "stream", "64 sequences, a step a message")
        add(title, "many", "2 × 64 sequences, 64 steps a message")
    if "generation" in chosen:
        title = f"generations of {models.TOKENS} tokens, against one after another"
        add(title, "alone", "one after another", against=f"alone {front}")
        add(title, "together", "64 at a time", against=f"alone {front}")
    if "mixed" in chosen:
        title = "images, sequences read both ways and graphs in turn, against one caller"
        add(title, "mixed alone", "1 caller", against=f"mixed alone {front}")
        add(title, "mixed", "64 callers", against=f"mixed alone {front}")
    if "single" in chosen:
        title = "one request of 32 tokens at a time, against plain grpc.aio + uvloop + onnxruntime"
        add(title, "single", "median latency", figure="p50", against="plain")
    return found


def timed(program: Path, folder: Path, arguments: argparse.Namespace, chosen: Sequence[str]) -> list[Case]:
    """Export, start the servers and run the rounds; return the cases with what was measured."""
    print("exporting", file=sys.stderr)
    loads = models.classifier_loads(folder)
    if "steps" in chosen:
        loads |= models.step_loads(folder)
    if "generation" in chosen:
        loads |= models.generation_loads(folder)
    if "mixed" in chosen:
        loads |= mixed_loads(folder)
    commands = {YARDSTICK: peer("noop")}
    cases = [Case(YARDSTICK, "the yardstick N", "no-op grpc.aio + uvloop, unary", YARDSTICK, loads[YARDSTICK])]
    if "single" in chosen:
        commands["plain"] = peer("plain", str(models.model_path(folder, "classifier")))
    for front in arguments.fronts:
        commands[front] = serve(front, folder / "models")
        if "classifier" in chosen:
            commands[f"{front} whole"] = peer("whole", str(folder / "models"), "--front", front)
        cases += cases_of(front, chosen, loads)
    if "single" in chosen:
        title = next(case.scenario for case in cases if case.name.startswith("single"))
        label = "median latency, the plain server"
        cases.append(Case("plain", title, label, "plain", loads["single"], figure="p50", against="plain"))
    order = {case.scenario: place for place, case in reversed(list(enumerate(cases)))}
    cases.sort(key=lambda case: (order[case.scenario], case.label))
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(ServerProcess(name.replace(" ", "_"), command, folder))
            for name, command in commands.items()
        }
        run_rounds(program, servers, cases, rounds=arguments.rounds, seconds=arguments.seconds, warmup=arguments.warmup)
    return cases


def memory(program: Path, folder: Path, arguments: argparse.Namespace, chosen: Sequence[str]) -> list[Row]:
    """Measure idle sequences and the soak, each on a fresh server."""
    rows = []
    if "idle" in chosen:
        idle = folder / "idle"
        size = models.export_layers(idle)
        for front in arguments.fronts:
            command = serve(front, idle / "models", "--sequences", str(arguments.sequences + 100), "--idle", "3600")
            with ServerProcess(f"idle_{front}", command, folder) as server:
                rows.append(idle_row(server, front, arguments.sequences, size))
    if "soak" in chosen:
        soak = folder / "soak"
        loads = models.classifier_loads(soak) | models.step_loads(soak)
        for front in arguments.fronts:
            with ServerProcess(f"soak_{front}", serve(front, soak / "models"), folder) as server:
                rows.append(soak_row(program, server, front, loads, arguments.soak_requests))
    return rows


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description="Measure `cellport serve` against a gRPC server that does nothing.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which medians are taken (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds of a case (%(default)s)")
    parser.add_argument("--warmup", type=float, default=0.7, help="seconds of load before them (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, help="scenarios (all but soak)")
    parser.add_argument("--fronts", nargs="+", choices=("grpcio", "envoy"), help="fronts (those that can be used)")
    parser.add_argument("--sequences", type=int, default=10_000, help="idle sequences (%(default)s)")
    parser.add_argument("--soak", action="store_true", help="run the soak too")
    parser.add_argument("--soak-requests", type=int, default=500_000, help="requests of the soak (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write all figures of all rounds here")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.sequences, arguments.soak_requests) < 1 or arguments.seconds <= 0:
        parser.error("--rounds, --seconds, --sequences and --soak-requests must be more than 0")
    fronts = available_fronts()
    arguments.fronts = arguments.fronts or fronts
    if missing := set(arguments.fronts) - set(fronts):
        parser.error(f"--fronts {' '.join(missing)} cannot be used here; accepted: {' '.join(fronts)}")
    arguments.only = arguments.only or [name for name in SCENARIOS if name != "soak" or arguments.soak]
    return arguments


def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End as Ctrl-C does, so that the servers are stopped."""
    raise KeyboardInterrupt


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, interrupt)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="cellport-serving-"))
    keep = True
    try:
        program = build_grpcload()
        chosen = [name for name in TIMED if name in arguments.only]
        cases = timed(program, folder, arguments, chosen) if chosen else []
        rows = rows_of(cases) + memory(program, folder, arguments, arguments.only)
        print_table(rows)
        if arguments.json:
            rounds = {case.name: case.reports for case in cases}
            figures = {"rows": [asdict(row) for row in rows], "rounds": rounds}
            arguments.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        keep = False
    except BenchmarkError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        keep = False
        return 130
    finally:
        if keep:
            print(f"\nlogs, models and requests are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
