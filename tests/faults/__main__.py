"""Random fault schedules, each from one number.

    python -m tests.faults --schedules 100000 [--first SEED] [--jobs N] [--json FILE]
    python -m tests.faults --seed 4711                replay one, and tell what happened in it

The exit status is 1 if what must hold did not, in any of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.reporting import Row, show, write
from tests.faults.endless import perform_bounded
from tests.faults.play import Report

SHOWN = 20
TOLD = 5_000
"""Schedules between two lines about how far it is."""


def tell(report: Report) -> None:
    """One schedule, for people."""
    verdict = "FAILED" if report.problems else "well"
    print(f"seed {report.seed}: {verdict} after {report.seconds:.1f} simulated seconds, trace {report.trace}")
    for line in sorted(report.script):
        print(f"    {line}")
    for problem in report.problems:
        print(f"  ! {problem[:3000]}")


@dataclass
class Sum:
    """What many schedules came to."""

    schedules: int = 0
    failed: int = 0
    simulated: float = 0.0
    took: float = 0.0

    def add(self, report: Report) -> None:
        """One more; told if it failed."""
        self.schedules += 1
        self.simulated += report.seconds
        if report.problems:
            self.failed += 1
            if self.failed <= SHOWN:
                tell(report)

    def rows(self) -> list[Row]:
        """What the issue asks for."""
        case = "fault schedules"
        return [
            Row(case, "schedules", "", "higher", self.schedules, target=100_000),
            Row(case, "failed", "", "lower", self.failed, target=0),
            Row(case, "simulated time", "h", "higher", self.simulated / 3600),
            Row(case, "time", "s", "lower", self.took),
        ]


@contextmanager
def _timed(total: Sum) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        total.took = time.monotonic() - began


def many(seeds: range, jobs: int, total: Sum) -> None:
    """Schedules on so many processes; `total` is right at any moment."""
    began = time.monotonic()
    with _timed(total), ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for report in pool.map(perform_bounded, seeds, chunksize=50):
            total.add(report)
            if total.schedules % TOLD == 0:
                print(
                    f"{total.schedules} schedules, {total.failed} failed, {time.monotonic() - began:.0f} s", flush=True
                )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="one schedule only, told in full")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes side by side")
    parser.add_argument("--json", type=Path, help="where the record goes")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        report = perform_bounded(arguments.seed)
        tell(report)
        return int(bool(report.problems))
    total = Sum()
    try:
        many(range(arguments.first, arguments.first + arguments.schedules), arguments.jobs, total)
    finally:  # also of what was interrupted
        show(total.rows())
        if arguments.json is not None:
            write(arguments.json, "faults", total.rows(), ("msgspec", "nats-py"))
    return int(total.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
