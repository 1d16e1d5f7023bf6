"""What it gains to fill in a streamed input while it is generated, on the default model: one application, with and without.

    python tests/benchmarks/streamed.py [--json FILE] [--runs N] [--sizes N ...]

A call writes; the next reads what was written, after a short instruction of its own, and answers briefly. With `early`, the
reader's prompt is computed as the writer writes; an input of less than `retention.STREAMED` tokens is left alone. Runs with and
without take turns, for the machine has moods; the first turn is discarded, which pays for what is made on first use.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.experiment.applications import Handed
from tests.benchmarks.experiment.arms import Arm, Client, Load, perform
from tests.benchmarks.experiment.cluster import Cluster, cluster
from tests.benchmarks.experiment.made import DEFAULT
from tests.benchmarks.experiment.running import ENGINE, Engine
from tests.benchmarks.experiment.scheduling import all_but
from tests.benchmarks.experiment.words import Words
from tests.benchmarks.experiment.workloads import Scale
from tests.benchmarks.reporting import Row, row, show, write

LEARNING = 200
"""Tokens."""
ARMS = (Arm(Client.MYNA), Arm(Client.MYNA, switches=all_but("early")))


async def measure(cluster: Cluster, sizes: Sequence[int], runs: int, words: Words) -> list[Row]:
    """A row for each size: seconds without are divided by seconds with."""
    taken: dict[tuple[int, Arm], list[float]] = {}
    for turn in range(runs + 1):
        for arm in ARMS[:: 1 if turn % 2 == 0 else -1]:
            await cluster.policies(arm.switches)
            for size in (LEARNING, *sizes):  # a scheduler that has just begun learns how its engine fares
                load = Load("handed", Handed(size).application(words.seeded(f"{turn} {size} {arm}")))
                (outcome,) = await perform(cluster, arm, [load])
                taken.setdefault((size, arm), []).append(outcome.run.seconds)
    return [_row(size, *(taken[size, arm][1:] for arm in ARMS)) for size in sizes]


def _row(size: int, with_: list[float], without: list[float]) -> Row:
    ratios = [b / a for a, b in zip(with_, without, strict=True)]
    made = row(f"{size} tokens written and read", "without / with", "x", "higher", ratios)
    return replace(made, baselines={"with, s": median(with_), "without, s": median(without)})


async def bench(folder: Path, sizes: Sequence[int], runs: int) -> list[Row]:
    """All rows, on a cluster of its own."""
    engine = Engine(Scale.CPU, DEFAULT, "cpu")
    async with cluster(folder) as made:
        await made.engines([ENGINE], *engine.options())
        return await measure(made, sizes, runs, engine.words())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 192, 384])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(bench(Path(folder), arguments.sizes, arguments.runs))
    show(rows)
    if arguments.json is not None:
        write(arguments.json, "streamed", rows, ("torch",))


if __name__ == "__main__":
    main()
