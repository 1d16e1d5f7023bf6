"""What needs four engines, and every experiment once more on one, in the simulator: the real scheduler core, modelled engines, a
virtual clock. Not measured: modelled.

    python -m tests.benchmarks.experiment.simulated [--json FILE] [--quick]

The engines take the measured steps of ours (`simulation/h100_myna.json`); how far they are off is rows. Arms are those of
`arms.py`, as `modelled.py` plays them; beside them `TODAY`, as servers commonly are: each request reads a shared prefix for
itself, and goes where there is the least load. A ratio's floor is what it could be at most, whoever served on these engines.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

from myna.actors.messages import Objective
from myna.actors.scheduler.policies import Policies
from tests.benchmarks.experiment import floors
from tests.benchmarks.experiment.arms import UNSHARED, Arm, Client
from tests.benchmarks.experiment.comparing import ARMS, CACHED, MYNA, MYNA_FAR, PLAIN_FAR, rows_of
from tests.benchmarks.experiment.modelled import Simulation, perform
from tests.benchmarks.experiment.scheduling import all_but
from tests.benchmarks.experiment.words import made_words
from tests.benchmarks.experiment.workloads import EXPERIMENTS, Experiment, Scale
from tests.benchmarks.reporting import Row, row, show, write
from tests.benchmarks.simulation.engine import OURS, EngineModel, load
from tests.benchmarks.simulation.fitting import errors, points_of
from tests.benchmarks.simulation.metrics import of_kind, percentile
from tests.benchmarks.simulation.workloads import LATENCY, THROUGHPUT, Job, Stage, alone, constant

ENGINES = 4
TODAY = Arm(Client.CACHED, switches="", engine=f"{UNSHARED}, placed by load")
GPTS = ((7437, 7, 704), (1116, 8, 89), (1694, 4, 631), (2031, 4, 416))
"""Tokens of prompt, question and answer of the paper's four applications."""
WORDS = 100_000
"""Of the vocabulary: more than a prompt could have by chance in common with another."""
BOUND = 0.020
"""Seconds a token, from asking to the last one, that a rate may lead to on average."""


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


def highest_rate(simulation: Simulation, model: EngineModel, seconds: float, seed: int) -> float:
    """Requests a second up to which the mean time a token stays within `BOUND`, to 2 %."""

    def holds(rate: float) -> bool:
        turns = simulation.run(gpts(rate, seconds, seed), model)
        taken = [simulation.seconds(turn) / turn.job.outputs["a"] for turn in turns]
        return sum(taken) / len(taken) <= BOUND

    low, high = 1.0, 16.0
    while holds(high) and high < 1000:
        low, high = high, 2 * high
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def most_gpts(model: EngineModel, seconds: float) -> float:
    """The highest rate that anybody could serve within `BOUND`, were all prompts for nothing and requests a fluid: engines draw
    at best with `n` sequences each; what they don't keep up with waits, in the longest answers, for these bear it best. Infinite,
    where so few `seconds` pass that all of it may wait."""
    outputs = [output for _, _, output in GPTS]
    mean, own, longest = sum(outputs) / len(outputs), sum(o * o for o in outputs) / sum(outputs) / 2, max(outputs)

    def rate(n: int) -> float:
        step = model.step(n, n * own)
        drawn, spare = ENGINES * n / step, (BOUND - step) * 2 * longest**2 / seconds
        if spare < 0:
            return 0.0
        return drawn / (mean - spare) if spare < mean else math.inf

    return max(rate(n) for n in range(1, model.sequences + 1))


def compare(
    name: str,
    measure: Callable[[Simulation], float],
    to_a: float | None,
    to_b: float | None,
    most: float,
    *,
    higher: bool,
    unit: str,
    engines: int = ENGINES,
) -> list[Row]:
    """The ratios of one figure, and the figure of each arm. `most`: the figure that anybody could reach at most, at no
    distance."""
    found = {arm: measure(Simulation(arm, engines)) for arm in (*ARMS, TODAY)}
    rows = []
    for baseline, mine, target in ((PLAIN_FAR, MYNA_FAR, to_a), (CACHED, MYNA, to_b), (TODAY, MYNA, None)):
        theirs, ours = found[baseline], found[mine]
        who, _, distance = str(baseline).rpartition(", ")
        value, best = (ours / theirs, most / theirs) if higher else (theirs / ours, theirs / (most + mine.round_trip))
        made = row(name, f"{distance} ratio to {who}", "x", "higher", [value], target)
        rows.append(
            replace(made, baselines={str(baseline): theirs, str(mine): ours}, floor=best if best < math.inf else None)
        )
    return rows + [
        row(f"{name}: simulated, engines: {engines}", str(arm), unit, "higher" if higher else "lower", [value])
        for arm, value in found.items()
    ]


def on_one(experiment: Experiment, model: EngineModel, policies: Sequence[str]) -> Iterator[Row]:
    """An experiment on one modelled engine: its ratios, and Myna's seconds with each policy switched off in turn."""
    words = made_words(WORDS)
    taken = {arm: [perform(experiment, arm, words, model)] for arm in ARMS}
    soonest = floors.outcomes(experiment.loads(words), floors.Speed(model.alone, model.prompt))
    rows = rows_of(experiment, taken, soonest)
    ours = experiment.measure(taken[MYNA][0])
    for policy in policies:
        arm = Arm(Client.MYNA, switches=all_but(policy))
        theirs = experiment.measure(perform(experiment, arm, words, model))
        made = row(experiment.name, f"0 ms ratio to Myna without {policy}", "x", "higher", [theirs / ours])
        rows.append(replace(made, baselines={str(arm): theirs, str(MYNA): ours}))
    yield from (replace(made, case=f"simulated, one engine: {made.case}") for made in rows)


def fit_errors(model: EngineModel) -> list[Row]:
    """How far the model is from each measured step, in per cent; steps under a shared prefix it has not seen."""
    points = points_of(json.loads(floors.RECORD.read_text())["rows"])
    seen = {point.name: "fitted" if point.seen else "not fitted" for point in points}
    return [
        row("the fit's error", f"{name} ({seen[name]})", "%", "lower", [100 * abs(error)])
        for name, error in errors(model, points).items()
    ]


def _taken(
    make: Callable[[int], list[Job]], kind: str, *, worst: bool, model: EngineModel, seeds: Sequence[int]
) -> tuple[Callable[[Simulation], float], float]:
    """How the seconds of the jobs of a kind are measured, their mean or the 99th percentile; and what they would be, were each
    job alone on the engines."""

    def figure(taken: list[float]) -> float:
        return percentile(taken, 0.99) if worst else sum(taken) / len(taken)

    def measure(simulation: Simulation) -> float:
        distance = simulation.arm.round_trip
        return figure([s + distance for seed in seeds for s in of_kind(simulation.run(make(seed), model), kind)])

    return measure, figure([alone(job, model) for seed in seeds for job in make(seed) if job.kind == kind])


def on_four(model: EngineModel, seconds: float, seeds: Sequence[int]) -> Iterator[Row]:
    """What the paper measured on four GPUs."""
    for documents in (9, 120):
        name = f"mixed on four engines, {documents} map-reduce jobs"

        def make(seed: int, documents: int = documents) -> list[Job]:
            return mixed(seed, documents=documents)

        measure, most = _taken(make, "chat", worst=True, model=model, seeds=seeds)
        yield from compare(f"{name}, chat p99", measure, 5.5, 1.5, most, higher=False, unit="s")
        measure, most = _taken(make, "map-reduce", worst=False, model=model, seeds=seeds)
        yield from compare(f"{name}, mean", measure, 1.0, 0.98, most, higher=False, unit="s")
    yield from compare(
        f"four GPTs, rate within 20 ms a token over {seconds:.0f} s",
        lambda simulation: highest_rate(simulation, model, seconds, 0),
        12.0, 2.0, most_gpts(model, seconds), higher=True, unit="requests/s",
    )  # fmt: skip


def undeclared(model: EngineModel, seeds: Sequence[int]) -> list[Row]:
    """Coding agents whose next turn nobody knows before it is asked for."""
    model = replace(model, tokens=150_000)
    measure, most = _taken(agents, "agent", worst=False, model=model, seeds=seeds)
    name = "coding agent, 40 turns that nobody declares; mean"
    return compare(name, measure, None, 1.5, most, higher=False, unit="s", engines=1)


def simulate(model: EngineModel, *, quick: bool = False) -> list[Row]:
    """Every case."""
    policies = [f.name for f in fields(Policies) if isinstance(f.default, bool)]
    rows = fit_errors(model)
    for experiment in EXPERIMENTS[Scale.GPU]:
        rows += on_one(experiment, model, () if quick else policies)
    rows += undeclared(model, (0,) if quick else (0, 1, 2))
    return rows + list(on_four(model, 15.0 if quick else 120.0, (0,) if quick else (0, 1, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--engine", type=Path, help="a fitted engine model, as JSON")
    arguments = parser.parse_args()
    rows = simulate(load(arguments.engine or OURS), quick=arguments.quick)
    show(rows)
    if arguments.json:
        write(arguments.json, "experiments_simulated", rows)


if __name__ == "__main__":
    main()
