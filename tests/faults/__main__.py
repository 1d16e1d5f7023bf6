"""Random fault schedules, each from one number.

    python -m tests.faults --schedules 100000 [--first SEED] [--jobs N]
    python -m tests.faults --seed 4711                replay one, and tell what happened in it

The exit status is 1 if what must hold did not, in any of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from tests.faults.play import Report, perform

SHOWN = 20


def tell(report: Report) -> None:
    """One schedule, for people."""
    verdict = "FAILED" if report.problems else "well"
    print(f"seed {report.seed}: {verdict} after {report.seconds:.1f} simulated seconds, trace {report.trace}")
    for line in sorted(report.script):
        print(f"    {line}")
    for problem in report.problems:
        print(f"  ! {problem[:3000]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="one schedule only, told in full")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes side by side")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        report = perform(arguments.seed)
        tell(report)
        return int(bool(report.problems))
    seeds = range(arguments.first, arguments.first + arguments.schedules)
    began = time.monotonic()
    failed, simulated, done = 0, 0.0, 0
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for report in pool.imap_unordered(perform, seeds, chunksize=50):
            done += 1
            simulated += report.seconds
            if report.problems:
                failed += 1
                if failed <= SHOWN:
                    tell(report)
            if done % 10_000 == 0:
                print(f"{done} schedules, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    took = time.monotonic() - began
    print(f"{done} schedules ({simulated / 3600:.1f} simulated hours) in {took:.0f} s: {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
