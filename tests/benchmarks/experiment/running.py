"""Runs experiments on one cluster: all arms of each, and beside them what else is asked for.

Law: what there is so far is kept after every run, so that nothing is lost when a machine's time is up.
"""

from __future__ import annotations

import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.experiment import floors
from tests.benchmarks.experiment.applications import Chain, MapReduce
from tests.benchmarks.experiment.arms import UNSHARED, WAITING, Arm, Client, Load, Outcome, perform, waiting
from tests.benchmarks.experiment.cluster import Cluster, cluster
from tests.benchmarks.experiment.comparing import ARMS, CACHED, FEW, MYNA, PLAIN, Taken, panel_of, rows_of
from tests.benchmarks.experiment.made import DEFAULT, SHAPES
from tests.benchmarks.experiment.peers import Peer, gateway_peer, peers_of
from tests.benchmarks.experiment.peers import perform as ask_peer
from tests.benchmarks.experiment.scheduling import all_but
from tests.benchmarks.experiment.words import Words, common_words, made_words
from tests.benchmarks.experiment.workloads import Experiment, Scale
from tests.benchmarks.reporting import Row, row, show

ENGINE = "engine"
UNSHARED_RUN = 10**9


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

    def options(self, *, memory: int | None = None, unshared: bool = False, ahead: int | None = None) -> list[str]:
        """How its process is started."""
        chosen = [] if memory is None else ["--kv-tokens", str(memory)]
        if ahead is not None:
            chosen += ["--ahead-tokens", str(ahead)]
        if unshared:
            chosen += ["--small-run", str(UNSHARED_RUN)]
        if self.shape == DEFAULT and not chosen:
            return []
        return ["--shape", self.shape, "--device", self.device, *chosen]


@dataclass(frozen=True)
class Extent:
    """How often each arm runs, not again after `enough` seconds. `few`: only arms that have targets. `patience`: seconds that a
    server of others has for a run."""

    runs: int
    enough: float = math.inf
    few: bool = False
    patience: float = 120.0

    def turns(self) -> Iterator[int]:
        """Numbers of turns, as long as it is worth another."""
        began = time.perf_counter()
        for turn in range(self.runs):
            if turn and time.perf_counter() - began > self.enough:
                return
            yield turn

    def arms(self, experiment: Experiment) -> tuple[Arm, ...]:
        """The arms of an experiment."""
        if not self.few:
            return ARMS
        return FEW if experiment.to_a is not None else (CACHED, MYNA)


@dataclass(frozen=True)
class Beside:
    """What else is run, once, on which experiments each: Myna without each of `policies`, (b) through the gateway, (b) where each
    request reads its prefix for itself, servers of others. And Myna `early`, on engines that fill steps to each of `widths` rows
    with what is computed ahead."""

    policies: Sequence[str] = ()
    without: Sequence[Experiment] = ()
    gateway: Sequence[Experiment] = ()
    unshared: Sequence[Experiment] = ()
    peers: Sequence[Experiment] = ()
    widths: Sequence[int] = ()
    early: Sequence[Experiment] = ()


class Bench:
    """See the module. `kept` is called with what there is so far."""

    def __init__(self, cluster: Cluster, engine: Engine, extent: Extent, kept: Callable[[Bench], None]) -> None:
        self._cluster = cluster
        self._engine = engine
        self._extent = extent
        self._kept = kept
        self._words = engine.words()
        self._options: list[str] | None = None
        self.rows: list[Row] = []
        self.timelines: dict[str, Any] = {}

    async def run(self, experiment: Experiment) -> None:
        """All arms of an experiment."""
        await self._serve(self._engine.options(memory=experiment.memory))
        before, taken = list(self.rows), Taken()
        for turn in self._extent.turns():
            for arm in self._extent.arms(experiment)[:: 1 if turn % 2 == 0 else -1]:
                taken.setdefault(arm, []).append(await self._perform(experiment, arm))
                self._keep(before, experiment, taken)
        show(self.rows[len(before) :])

    async def without(self, experiment: Experiment, policy: str) -> None:
        """Myna without one policy, beside the rows."""
        await self._serve(self._engine.options(memory=experiment.memory))
        await self._again(experiment, Arm(Client.MYNA, switches=all_but(policy)))

    async def unshared(self, experiment: Experiment) -> None:
        """The waiting client with prefix cache, on an engine that reads a shared prefix for each request; beside the rows."""
        await self._serve(self._engine.options(unshared=True))
        await self._again(experiment, waiting(Client.CACHED, engine=UNSHARED))

    async def early(self, experiment: Experiment, width: int) -> None:
        """Myna where steps are filled to so many rows with what is computed ahead; beside the rows."""
        await self._serve(self._engine.options(memory=experiment.memory, ahead=width))
        arm = replace(MYNA, engine=f"{width} rows ahead")
        self._compare(experiment, arm, *[await self._measured(experiment, arm) for _ in self._extent.turns()])

    async def gateway(self, experiments: Sequence[Experiment]) -> None:
        """(b) once more, by way of the gateway."""
        await self._serve(self._engine.options())
        await self._cluster.policies(WAITING)
        async with gateway_peer(self._cluster) as peer:
            await self.peer(experiments, peer)

    async def peer(self, experiments: Sequence[Experiment], peer: Peer) -> None:
        """A server, asked by a waiting client. One that does not end in time has no row."""
        await ask_peer(peer, [Load("warm", MapReduce(4, 64, 8).application(self._words.seeded("warm")))])
        for experiment in experiments:
            loads = experiment.loads(self._words.seeded("peer"))
            try:
                seconds = experiment.measure(await ask_peer(peer, loads, timeout=self._extent.patience))
            except TimeoutError:
                print(f"    {experiment.name}, {peer.name}: did not end in {self._extent.patience:g} s", flush=True)
            else:
                self._compare(experiment, f"{peer.name}, 0 ms", seconds)

    async def end_engine(self) -> None:
        """Leave the device to others."""
        await self._cluster.stop(ENGINE)
        self._options = None

    async def _again(self, experiment: Experiment, arm: Arm) -> None:
        self._compare(experiment, arm, await self._measured(experiment, arm))

    async def _measured(self, experiment: Experiment, arm: Arm) -> float:
        return experiment.measure(await self._perform(experiment, arm))

    def _compare(self, experiment: Experiment, arm: Arm | str, *runs: float) -> None:
        """Another arm's seconds, and their ratio to Myna's at 0 ms, if these are known."""
        case = f"{experiment.name}: {experiment.sizes}"
        made = [row(case, f"{arm}: {experiment.metric}", "s", "lower", list(runs))]
        seconds = made[0].value
        ours = self._seconds(experiment, MYNA)
        if ours is not None:
            who = str(arm).removesuffix(", 0 ms")
            ratio = row(experiment.name, f"0 ms ratio to {who}", "x", "higher", [seconds / ours])
            made.append(replace(ratio, baselines={str(arm): seconds, str(MYNA): ours}))
        self.rows += made
        self._kept(self)
        show(made)

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
        loads = experiment.loads(self._words)
        for load in loads:
            load.application(floors.Recorder())  # its texts are made
        began = time.perf_counter()
        outcomes = await perform(self._cluster, arm, loads)
        seconds = time.perf_counter() - began
        print(f"    {experiment.name}, {arm}: {experiment.measure(outcomes):.3f} s ({seconds:.1f})", flush=True)
        return outcomes

    async def _warm(self, arm: Arm) -> None:
        """A scheduler that has just begun learns how its engine fares."""
        if await self._cluster.policies(arm.switches):
            await perform(
                self._cluster, replace(arm, round_trip=0.0), [Load("warm", Chain(3, 128, 16).application(self._words))]
            )

    def _keep(self, before: list[Row], experiment: Experiment, taken: Taken) -> None:
        speed = self._engine.speed
        soonest = None if speed is None else floors.outcomes(experiment.loads(self._words), speed)
        self.rows = before + rows_of(experiment, taken, soonest)
        self.timelines[experiment.name] = {
            "sizes": experiment.sizes,
            "panels": [panel_of(arm, taken[arm][-1]) for arm in (CACHED, MYNA) if arm in taken],
        }
        self._kept(self)


async def bench(
    engine: Engine,
    experiments: Sequence[Experiment],
    extent: Extent,
    beside: Beside = Beside(),
    kept: Callable[[Bench], None] = lambda bench: None,
) -> Bench:
    """Everything, one engine after another. Experiments that need one of their own come last."""
    gc.collect()
    gc.freeze()  # torch is loaded here too: a collection that looks at it holds a client up for longer than a step
    with tempfile.TemporaryDirectory() as folder:
        async with cluster(Path(folder)) as made:
            found = Bench(made, engine, extent, kept)
            for memory in dict.fromkeys(e.memory for e in sorted(experiments, key=_is_on_an_engine_of_its_own)):
                for experiment in (e for e in experiments if e.memory == memory):
                    await found.run(experiment)
                for policy in beside.policies:
                    for experiment in (e for e in beside.without if e.memory == memory):
                        await found.without(experiment, policy)
                if memory is None and beside.gateway:
                    await found.gateway(beside.gateway)
            for width in beside.widths:
                for experiment in beside.early:
                    await found.early(experiment, width)
            for experiment in beside.unshared:
                await found.unshared(experiment)
            if beside.peers:
                await found.end_engine()
                async for peer in peers_of(engine.shape, engine.device):
                    await found.peer(beside.peers, peer)
                    sys.stdout.flush()
    return found


def _is_on_an_engine_of_its_own(experiment: Experiment) -> bool:
    return experiment.memory is not None
