"""What `benchmarks/serving.py` measures in rounds: cases, what each is divided by, and the table of medians."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from serving_models import Load
from serving_processes import ServerProcess, run_load

YARDSTICK = "noop"


@dataclass(eq=False)
class Case:
    """One thing that is measured in every round.

    Attributes:
        name: its key, for others that are divided by it and for the JSON.
        scenario: the scenario it belongs to.
        label: its line in the table.
        server: name of the server that is loaded.
        load: what is sent.
        figure: ``"rate"``, steps a second, or ``"p50"``, the median latency in milliseconds.
        against: name of the case of the same round that it is divided by.
        target: what the ratio should reach; at most that for a latency.
        reports: what the load generator reported, a round each.
    """

    name: str
    scenario: str
    label: str
    server: str
    load: Load
    figure: Literal["rate", "p50"] = "rate"
    against: str = YARDSTICK
    target: float | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)

    def value(self, number: int) -> float:
        """The figure of one round."""
        report = self.reports[number]
        if self.figure == "p50":
            return float(report["latency_ms"]["p50"])
        return float(report["per_second"]) * self.load.steps


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        scenario: the scenario it belongs to.
        label: what was measured.
        figure: the measured figure with its unit.
        ratio: its ratio to what it is compared with; None for none.
        target: the target in words; empty for none.
        met: whether the target is met; None without one.
        notes: further figures.
    """

    scenario: str
    label: str
    figure: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    notes: str = ""


def run_rounds(
    program: Path,
    servers: Mapping[str, ServerProcess],
    cases: Sequence[Case],
    *,
    rounds: int,
    seconds: float,
    warmup: float,
) -> None:
    """Measure every case once a round, each round beginning with another one."""
    for number in range(rounds):
        first = number % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            print(f"\rround {number + 1} of {rounds}: {case.label:60.60}", end="", file=sys.stderr, flush=True)
            report = run_load(program, servers[case.server], case.load, seconds=seconds, warmup=warmup)
            case.reports.append(report)
    print(f"\r{'':80}\r", end="", file=sys.stderr, flush=True)


def rows_of(cases: Sequence[Case]) -> list[Row]:
    """Lines of the table: medians over the rounds, ratios taken within each."""
    by_name = {case.name: case for case in cases}
    rows = []
    for case in cases:
        rounds = range(len(case.reports))
        base = by_name[case.against]
        ratio = median(case.value(k) / base.value(k) for k in rounds)
        target, met = "", None
        if case.target is not None:
            latency = case.figure == "p50"
            target = f"{'≤' if latency else '≥'} {case.target:g}"
            met = ratio <= case.target if latency else ratio >= case.target
        unit = "ms" if case.figure == "p50" else "/s"
        figure = median(case.value(k) for k in rounds)
        middle, late = (median(report["latency_ms"][q] for report in case.reports) for q in ("p50", "p99"))
        spent = median(report["server_us"] for report in case.reports) / case.load.steps
        rows.append(
            Row(
                scenario=case.scenario,
                label=case.label,
                figure=f"{figure:,.2f} {unit}" if case.figure == "p50" else f"{figure:,.0f} {unit}",
                ratio=ratio,
                target=target,
                met=met,
                notes=f"{middle:.2f} / {late:.2f} ms, {spent:.0f} µs",
            )
        )
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Print the table of all scenarios."""
    print(f"{'':56}{'measured':>15}{'ratio':>9}{'target':>9}        p50 / p99, server's processor a step")
    scenario = None
    for row in rows:
        if row.scenario != scenario:
            scenario = row.scenario
            print(f"\n{scenario}")
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        met = {None: "", True: "met", False: "missed"}[row.met]
        print(f"  {row.label:54}{row.figure:>15}{ratio:>9}{row.target:>9} {met:6} {row.notes}")
