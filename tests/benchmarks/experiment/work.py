"""What an engine works for an experiment: seconds of processor time, by arm. For machines that are never quiet.

    python -m tests.benchmarks.experiment.work [NAME ...] [--scale cpu|tiny] [--runs N] [--without POLICY ...] [--json FILE]

Law: what is counted is the processor time of the engine's process and its host's. Neighbours delay a run, but hardly change
that; one thread computes, so that none spins while it waits for another. Arms take turns. A ratio is the baseline's work divided
by ours: it says what is computed, twice or in dearer steps, and nothing of who waits for whom.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.experiment.arms import Arm, Client, Load, perform
from tests.benchmarks.experiment.cluster import Cluster, cluster
from tests.benchmarks.experiment.comparing import CACHED, MYNA
from tests.benchmarks.experiment.running import ENGINE, Engine
from tests.benchmarks.experiment.scheduling import all_but
from tests.benchmarks.experiment.workloads import Experiment, Scale, named
from tests.benchmarks.reporting import Row, row, show, write

SHAPES = {Scale.CPU: "default", Scale.TINY: "tiny"}
SETTLES = 0.2
"""Seconds after a run in which an engine ends what it does for it."""


async def seconds(made: Cluster, arm: Arm, loads: Sequence[Load]) -> float:
    """What the engine works for a run."""
    await made.policies(arm.switches)
    before = made.processor_seconds(ENGINE)
    await perform(made, arm, loads)
    await asyncio.sleep(SETTLES)
    return made.processor_seconds(ENGINE) - before


async def measure(engine: Engine, experiments: Sequence[Experiment], arms: Sequence[Arm], runs: int) -> list[Row]:
    """The work of each arm in each experiment, and its ratio to Myna's; `arms` has Myna among them."""
    rows, words = [], engine.words()
    for experiment in experiments:
        with tempfile.TemporaryDirectory() as folder:
            async with cluster(Path(folder)) as made:
                await made.engines([ENGINE], *engine.options(memory=experiment.memory))
                taken: dict[Arm, list[float]] = {arm: [] for arm in arms}
                for turn in range(runs + 1):
                    for arm in arms[:: 1 if turn % 2 else -1]:
                        found = await seconds(made, arm, experiment.loads(words))
                        if turn:  # the first warms up
                            taken[arm].append(found)
        rows += (added := _rows(experiment, taken))
        show(added)
    return rows


def _rows(experiment: Experiment, taken: dict[Arm, list[float]]) -> list[Row]:
    case, ours = f"{experiment.name}: {experiment.sizes}", statistics.median(taken[MYNA])
    rows = [row(case, f"{arm}: engine's processor time", "s", "lower", values) for arm, values in taken.items()]
    for arm, values in taken.items():
        if arm != MYNA:
            theirs = statistics.median(values)
            ratio = row(experiment.name, f"work, ratio to {arm}", "x", "higher", [theirs / ours])
            rows.append(replace(ratio, runs=len(values), baselines={str(arm): theirs, str(MYNA): ours}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments whose names begin so")
    parser.add_argument("--scale", type=Scale, choices=list(SHAPES), default=Scale.CPU)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--without", nargs="+", default=[], metavar="POLICY", help="also Myna without each of these")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that this one starts
    engine = Engine(options.scale, SHAPES[options.scale], "cpu")
    arms = [CACHED, MYNA, *(Arm(Client.MYNA, switches=all_but(policy)) for policy in options.without)]
    rows = asyncio.run(measure(engine, named(options.scale, options.names), arms, options.runs))
    if options.json:
        write(options.json, "engine_work", rows, ("torch", "transformers", "numba"))


if __name__ == "__main__":
    main()
