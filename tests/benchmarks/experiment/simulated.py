"""What needs four engines or very long, in the simulator: the real scheduler core, modelled engines, a virtual clock. Not
measured: modelled.

    python -m tests.benchmarks.experiment.simulated [--json FILE] [--quick]

The engines are fitted to measured steps of ours (`simulation/engine.py`); the fit's errors are rows. Arms are those of
`arms.py`: a waiting client's application comes in stages, each submitted when the results of the one before have come back, a
round trip later; without prefix cache, no two prompts have anything in common.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from myna.actors.messages import Objective
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.prefixes import Boundary
from tests.benchmarks.experiment.arms import ROUND_TRIP, Client
from tests.benchmarks.experiment.floors import RECORD
from tests.benchmarks.reporting import Row, row, show, write
from tests.benchmarks.simulation.cluster import Cluster, Turn
from tests.benchmarks.simulation.engine import HERE, Engine, EngineModel, Request, load
from tests.benchmarks.simulation.fitting import errors, points_of
from tests.benchmarks.simulation.metrics import of_kind, percentile
from tests.benchmarks.simulation.workloads import LATENCY, THROUGHPUT, Job, Stage, constant

ENGINES = 4
FITTED = HERE / "h100_myna.json"
GPTS = ((7437, 7, 704), (1116, 8, 89), (1694, 4, 631), (2031, 4, 416))
"""Tokens of prompt, question and answer of the paper's four applications."""
BOUND = 0.020
"""Seconds a token, from asking to the last one, that a rate may lead to on average."""


class Uncached(Engine):
    """An engine without prefix cache."""

    def submit(self, request: Request, now: float) -> None:
        """See `Engine`."""
        own = tuple(Boundary(hash((request.key, b.name)), b.tokens) for b in request.boundaries)
        super().submit(replace(request, boundaries=own), now)


@dataclass(frozen=True)
class Simulation:
    """An arm: who sends the calls, at what distance."""

    client: Client
    round_trip: float = 0.0
    engines: int = ENGINES

    def run(self, jobs: Sequence[Job], model: EngineModel) -> list[Turn]:
        """All jobs, to the end. A waiting client's must be in stages."""
        waits = self.client is not Client.MYNA
        cluster = Cluster(model, self.engines, Policies.none(prefixes=True) if waits else Policies())
        if self.client is Client.UNCACHED:
            for worker, engine in cluster.engines.items():
                cluster.engines[worker] = Uncached(engine.model, engine.at, engine.finished)
        turns = cluster.run([self._seen(job) for job in jobs])
        assert not cluster.failures, cluster.failures[:3]
        return turns

    def seconds(self, turn: Turn) -> float:
        """Of a job, with the way there and back."""
        assert turn.ended is not None
        return turn.ended - turn.asked + self.round_trip

    def _seen(self, job: Job) -> Job:
        """A job as this client sends it: Myna's at once, unless it has pauses, others stage by stage."""
        if self.client is Client.MYNA and not any(stage.think for stage in job.stages):
            whole = [c for stage in job.stages for c in stage.calls]
            return replace(job, stages=[Stage(whole, job.stages[-1].wants)])
        late = 0.0 if self.client is Client.MYNA else self.round_trip  # Myna's tools are agents beside it
        return replace(job, stages=[replace(s, think=s.think + late if n else 0.0) for n, s in enumerate(job.stages)])


def gpts(rate: float, seconds: float, seed: int) -> list[Job]:
    """Poisson arrivals at four assistants in equal parts."""
    draw, jobs, now = random.Random(f"gpts {seed}"), [], 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        which = draw.randrange(len(GPTS))
        prompt, query, output = GPTS[which]
        job = Job("gpts", "a", now, objective=Objective(kind=LATENCY.kind))
        question = job.give("q", query)
        call = job.call("a", f"gpt{which}", constant(f"assistant {which}", prompt), question, output=output)
        job.stages = [Stage([call], ("a",))]
        jobs.append(job)
    return jobs


def mixed(seed: int, chats: int = 40, documents: int = 9, pieces: int = 16) -> list[Job]:
    """Chats at one a second, and map-reduce jobs spread over the same time."""
    draw, jobs, now = random.Random(f"mixed {seed}"), [], 0.0
    for _ in range(chats):
        now += draw.expovariate(1.0)
        job = Job("chat", "a", now, objective=LATENCY)
        call = job.call("a", "chat", job.give("q", draw.randint(100, 800)), output=draw.randint(50, 300))
        job.stages = [Stage([call], ("a",))]
        jobs.append(job)
    for n in range(documents):
        job = Job("map-reduce", "a", n * chats / documents, objective=THROUGHPUT, whole=True)
        names = tuple(f"m{i}" for i in range(pieces))
        head = constant("summarize", 40)
        maps = [job.call(name, "map", head, job.give(f"d{name}", 1024), output=50) for name in names]
        reduce = job.call("r", "reduce", constant("join", 40), names, output=50)
        job.stages = [Stage(maps, names), Stage([reduce], ("r",))]
        jobs.append(job)
    return sorted(jobs, key=lambda job: job.arrival)


def agents(seed: int, count: int = 12, turns: int = 40, context: int = 12_000) -> list[Job]:
    """Coding agents whose contexts don't fit the memory all at once; their tools take one to three seconds."""
    draw, jobs = random.Random(f"agents {seed}"), []
    for n in range(count):
        job = Job("agent", "a", 0.3 * n, objective=LATENCY, whole=True)
        head, done = constant(f"repository {seed} {n}", context), [job.give("issue", 40)]
        for turn in range(turns):
            call = job.turn(f"a{turn}", "act", head, *done, output=40)
            job.stages.append(Stage([call], (f"a{turn}",), think=draw.uniform(1.0, 3.0) if turn else 0.0))
            done += [f"a{turn}", job.give(f"t{turn}", 200)]
        jobs.append(job)
    return jobs


def highest_rate(arm: Simulation, model: EngineModel, seconds: float, seed: int) -> float:
    """Requests a second up to which the mean time a token stays within `BOUND`, to 2 %."""

    def holds(rate: float) -> bool:
        turns = arm.run(gpts(rate, seconds, seed), model)
        taken = [arm.seconds(turn) / turn.job.outputs["a"] for turn in turns]
        return sum(taken) / len(taken) <= BOUND

    low, high = 8.0, 16.0
    while holds(high) and high < 1000:
        low, high = high, 2 * high
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def compare(
    name: str,
    measure: Callable[[Simulation], float],
    to_a: float | None,
    to_b: float | None,
    *,
    higher: bool,
    unit: str,
    engines: int = ENGINES,
) -> list[Row]:
    """The ratios of one figure, and the figure of each arm."""
    arms = [Simulation(c, r, engines) for c in Client for r in (0.0, ROUND_TRIP)]
    found = {arm: measure(arm) for arm in arms}
    rows = []
    for client, round_trip, target in ((Client.UNCACHED, ROUND_TRIP, to_a), (Client.CACHED, 0.0, to_b)):
        theirs, ours = (found[Simulation(c, round_trip, engines)] for c in (client, Client.MYNA))
        made = row(
            name,
            f"{1000 * round_trip:.0f} ms ratio to {client}",
            "x",
            "higher",
            [ours / theirs if higher else theirs / ours],
            target,
        )
        rows.append(replace(made, baselines={f"{client}": theirs, "Myna": ours}))
    for arm, value in found.items():
        metric = f"{arm.client}, {1000 * arm.round_trip:.0f} ms"
        rows.append(
            row(f"{name}: simulated, engines: {engines}", metric, unit, "higher" if higher else "lower", [value])
        )
    return rows


def fit_errors(model: EngineModel) -> list[Row]:
    """How far the model is from each measured step, in per cent; steps under a shared prefix were not fitted to."""
    points = points_of(json.loads(RECORD.read_text())["rows"])
    seen = {point.name: "fitted" if point.seen else "not fitted" for point in points}
    return [
        row("the fit's error", f"{name} ({seen[name]})", "%", "lower", [100 * abs(error)])
        for name, error in errors(model, points).items()
    ]


def _taken(
    make: Callable[[int], list[Job]], kind: str, *, worst: bool, model: EngineModel, seeds: Sequence[int]
) -> Callable[[Simulation], float]:
    """Seconds of the jobs of a kind: their mean, or the 99th percentile."""

    def measure(arm: Simulation) -> float:
        taken = [s + arm.round_trip for seed in seeds for s in of_kind(arm.run(make(seed), model), kind)]
        return percentile(taken, 0.99) if worst else sum(taken) / len(taken)

    return measure


def simulate(model: EngineModel, *, quick: bool = False) -> list[Row]:
    """Every case."""
    seconds, seeds = (15.0, (0,)) if quick else (120.0, (0, 1, 2))
    rows = fit_errors(model)
    for documents in (9, 120):
        name = f"mixed on four engines, {documents} map-reduce jobs"

        def make(seed: int, documents: int = documents) -> list[Job]:
            return mixed(seed, documents=documents)

        def chats(seed: int) -> list[Job]:
            return mixed(seed, documents=0)

        chat, whole = (
            _taken(make, k, worst=w, model=model, seeds=seeds) for k, w in (("chat", True), ("map-reduce", False))
        )
        rows += compare(f"{name}, chat p99", chat, 5.5, 1.5, higher=False, unit="s")
        rows += compare(f"{name}, mean", whole, 1.0, 0.98, higher=False, unit="s")
        least = _taken(chats, "chat", worst=True, model=model, seeds=seeds)(Simulation(Client.MYNA))
        rows.append(row(f"{name}, chat p99", "chats alone, 0 ms", "s", "lower", [least]))
    rows += compare(
        "coding agent, 40 turns, on one engine; mean",
        _taken(agents, "agent", worst=False, model=replace(model, tokens=150_000), seeds=seeds),
        None, 1.5, higher=False, unit="s", engines=1,
    )  # fmt: skip
    return rows + compare(
        f"four GPTs, rate within 20 ms a token over {seconds:.0f} s",
        lambda arm: highest_rate(arm, model, seconds, 0),
        12.0, 2.0, higher=True, unit="requests/s",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--engine", type=Path, help="a fitted engine model, as JSON")
    arguments = parser.parse_args()
    rows = simulate(load(arguments.engine or FITTED), quick=arguments.quick)
    show(rows)
    if arguments.json:
        write(arguments.json, "experiments_simulated", rows)


if __name__ == "__main__":
    main()
