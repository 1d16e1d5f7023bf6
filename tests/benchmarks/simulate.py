"""Policies compared on a simulated cluster: the real scheduler core, modelled engines, a virtual clock.

    python tests/benchmarks/simulate.py [--json FILE] [--quick] [--seeds N] [--only WORKLOAD] [--engine FILE]
                                        [--recorded FILE ...]

Every policy sees the same jobs. `ours` is what runs in production; `prefix-aware` places by prefix and load, and knows no graph.
All policies hear of a ready call at once, as if clients were on the spot: what a distant client would wait counts for nobody.
The seeds are not those that any constant was chosen on (these were below `SEED`). A figure of ours that is worse than a
baseline's says by which policy, and what for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from myna.actors.messages import Input, Message, ModelCall, Output, Sampling, Segment, Text
from myna.actors.scheduler.policies import Policies, Spread
from tests.benchmarks.reporting import Row, row, show, write
from tests.benchmarks.simulation import bounds, losses
from tests.benchmarks.simulation.cluster import Cluster, Turn
from tests.benchmarks.simulation.engine import EngineModel, load
from tests.benchmarks.simulation.known import Known
from tests.benchmarks.simulation.metrics import Summary, by_tenant, of_kind, percentile, summarize
from tests.benchmarks.simulation.recorded import workload as recording
from tests.benchmarks.simulation.workloads import WORKLOADS, Job, Stage, Workload, jobs

ENGINES = 4
SEED = 100
SEEDS = 5
LOADS = (0.7, 1.0, 1.6, 2.0)
"""Beside its own load, those at which the mixed workload is run too."""
SWITCHES = (
    "objectives",
    "groups",
    "applications",
    "prefixes",
    "capacity",
    "interference",
    "residents",
    "retention",
    "early",
    "fairness",
)
METRICS = (
    ("mean_jct", "mean completion", "s", "lower"),
    ("p99_jct", "p99 completion", "s", "lower"),
    ("mean_ttft", "mean TTFT", "s", "lower"),
    ("goodput", "goodput", "share", "higher"),
    ("hit_rate", "cache hits", "share", "higher"),
    ("fairness", "fairness", "index", "higher"),
)


def policies() -> dict[str, Policies]:
    """What is compared."""
    arms = {
        "ours": Policies(),
        "round robin": Policies.none(spread=Spread.ROUND_ROBIN),
        "least loaded": Policies.none(),
        "prefix-aware": Policies.none(prefixes=True),
    }
    for switch in SWITCHES:
        arms[f"without {switch}"] = replace(Policies(), **{switch: False})  # type: ignore[arg-type]
    return arms


def simulate(
    workload: Workload,
    model: EngineModel,
    policy: Policies,
    seed: int,
    scale: float,
    own: Mapping[str, float] | None = None,
) -> tuple[Summary, list[Turn]]:
    """One run. `own`: as `alone_on_share` tells, for the fairness."""
    cluster = Cluster(model, ENGINES, policy)
    turns = cluster.run(jobs(workload, model, ENGINES, seed, scale))
    assert not cluster.failures, cluster.failures[:3]
    return summarize(cluster, turns, model, own), turns


def alone_on_share(workload: Workload, model: EngineModel, seed: int, scale: float) -> dict[str, float]:
    """Mean seconds of each tenant if its share of the engines were its own. A part of an engine counts as one."""
    tenants = workload.tenants
    if len(tenants) == 1:
        return {}
    made = jobs(workload, model, ENGINES, seed, scale)
    engines = max(1, ENGINES // len(tenants))
    means: dict[str, float] = {}
    for tenant in sorted(tenants):
        theirs = [job for job in made if job.tenant == tenant]
        if theirs:
            means |= by_tenant(Cluster(model, engines, Policies()).run(theirs))
    return means


@dataclass(frozen=True)
class Task:
    """One run, for a process of its own."""

    workload: Workload
    model: EngineModel
    arm: str
    seed: int
    scale: float
    own: Mapping[str, float]

    def run(self) -> tuple[Summary, dict[str, list[float]]]:
        """The summary, and the seconds of turns by their kind."""
        arm = policies()[self.arm]
        summary, turns = simulate(self.workload, self.model, arm, self.seed, self.scale, self.own)
        return summary, {kind: of_kind(turns, kind) for kind in sorted({t.job.kind for t in turns})}


def compare(workload: Workload, model: EngineModel, seeds: range, scale: float, pool: Executor) -> list[Row]:
    """All policies on one workload: a row a metric, ours as the value, the others as baselines."""
    arms = list(policies())
    own = list(pool.map(alone_on_share, *zip(*((workload, model, n, scale) for n in seeds), strict=True)))
    tasks = [Task(workload, model, arm, n, scale, given) for arm in arms for n, given in zip(seeds, own, strict=True)]
    found: dict[str, list[Summary]] = {arm: [] for arm in arms}
    kinds: dict[str, list[dict[str, list[float]]]] = {arm: [] for arm in arms}
    for task, (summary, taken) in zip(tasks, pool.map(Task.run, tasks), strict=True):
        found[task.arm].append(summary)
        kinds[task.arm].append(taken)
    means = {arm: [s.mean_jct for s in runs] for arm, runs in found.items()}
    rows = []
    for attribute, metric, unit, better in METRICS:
        figures = {arm: [getattr(s, attribute) for s in runs] for arm, runs in found.items()}
        ours = row(workload.name, metric, unit, better, figures["ours"])
        others = {arm: median(runs) for arm, runs in figures.items() if arm != "ours"}
        rows.append(replace(ours, baselines=others, note=losses.note(better, figures, means)))
    if len(set().union(*kinds["ours"])) > 1:
        rows += _by_kind(workload, kinds, means)
    if workload.name == "mixed multi-tenant":
        rows.append(_completion_ratio(workload, found["prefix-aware"], found["ours"], model, seeds, scale, pool))
    if workload.name == "chat under floods":
        calm = _calm(workload, model, seeds, scale)
        ratios = {arm: percentile(_pooled(runs, "chat"), 0.99) / calm for arm, runs in kinds.items()}
        ours = Row(workload.name, "p99 ratio", "ratio", "lower", ratios.pop("ours"), baselines=ratios, target=1.1)
        rows.append(ours)
    return rows


def _completion_ratio(
    workload: Workload,
    theirs: list[Summary],
    ours: list[Summary],
    model: EngineModel,
    seeds: range,
    scale: float,
    pool: Executor,
) -> Row:
    """How many times as long jobs take by prefix alone. And how many times at most, were each of ours alone on the cluster; were
    the best schedule found on engines of one pace, the best one; and how many times where the true lengths are known."""
    ratios = [t.mean_jct / o.mean_jct for t, o in zip(theirs, ours, strict=True)]
    alone = [t.mean_jct / o.mean_alone for t, o in zip(theirs, ours, strict=True)]
    made = [(workload, model, seed, scale) for seed in seeds]
    bound = [t.mean_jct / b for t, b in zip(theirs, pool.map(_least, made), strict=True)]
    known = [t.mean_jct / k for t, k in zip(theirs, pool.map(_known, made), strict=True)]
    found = row(workload.name, "completion ratio", "ratio", "higher", ratios, 2.0)
    arms = {
        "at most: each job alone": median(alone),
        "at most: engines of one pace": median(bound),
        "every length known": median(known),
    }
    return replace(found, baselines=arms, note=losses.BOUND)


_Made = tuple[Workload, EngineModel, int, float]


def _least(made: _Made) -> float:
    workload, model, seed, scale = made
    return bounds.least(jobs(workload, model, ENGINES, seed, scale), model, ENGINES)


def _known(made: _Made) -> float:
    workload, model, seed, scale = made
    cluster = Known(model, ENGINES, Policies())
    return summarize(cluster, cluster.run(jobs(workload, model, ENGINES, seed, scale)), model).mean_jct


def _by_kind(
    workload: Workload, kinds: Mapping[str, list[dict[str, list[float]]]], means: Mapping[str, list[float]]
) -> list[Row]:
    """Mean and p99 of each kind of job, over all seeds: of a policy that gives to one and takes from another both are told."""
    rows = []
    for kind in sorted(set().union(*kinds["ours"])):
        for metric, figure in ((f"mean of {kind}", mean), (f"p99 of {kind}", lambda taken: percentile(taken, 0.99))):
            values = {arm: figure(_pooled(runs, kind)) for arm, runs in kinds.items()}
            figures = {arm: [figure(taken[kind]) for taken in runs if kind in taken] for arm, runs in kinds.items()}
            note = losses.note("lower", figures, means)
            rows.append(
                Row(
                    workload.name, metric, "s", "lower", values.pop("ours"), None, len(means["ours"]), values, note=note
                )
            )
    return rows


def _pooled(runs: list[dict[str, list[float]]], kind: str) -> list[float]:
    return [seconds for taken in runs for seconds in taken.get(kind, ())]


def _calm(workload: Workload, model: EngineModel, seeds: range, scale: float) -> float:
    """The chats' p99 on the same cluster without the floods."""
    taken: list[float] = []
    for seed in seeds:
        chats = [j for j in jobs(workload, model, ENGINES, seed, scale) if j.kind == "chat"]
        taken += of_kind(Cluster(model, ENGINES, Policies()).run(chats), "chat")
    return percentile(taken, 0.99)


def by_load(workload: Workload, model: EngineModel, seeds: range, scale: float, pool: Executor) -> list[Row]:
    """How the completion ratio depends on the load."""
    rows = []
    for load_ in LOADS:
        at = replace(workload, name=f"{workload.name}, load {load_:g}", load=load_)
        tasks = [Task(at, model, arm, n, scale, {}) for arm in ("ours", "prefix-aware") for n in seeds]
        found = [summary for summary, _ in pool.map(Task.run, tasks)]
        ratio = _completion_ratio(at, found[len(seeds) :], found[: len(seeds)], model, seeds, scale, pool)
        rows.append(replace(ratio, target=None, note=""))
    return rows


def giant(nodes: int) -> Job:
    """One application of very many calls: layers in which each call reads two of the layer before."""
    job = Job("giant", "a", 0.0)
    width = max(2, nodes // 100)
    calls: list[ModelCall] = []
    for n in range(nodes):
        layer, place = divmod(n, width)
        above = (layer - 1) * width
        inputs = (f"n{above + place}", f"n{above + (place * 7 + 1) % width}") if layer else ()
        segments: list[Segment] = [Text(text="go on: "), *(Input(variables=(v,)) for v in dict.fromkeys(inputs))]
        segments.append(Output(variables=(f"n{n}",), sampling=Sampling(max_tokens=8)))
        calls.append(ModelCall(id=f"c-n{n}", function="node", messages=(Message(segments=tuple(segments)),)))
        job.outputs[f"n{n}"] = 4
    job.stages = [Stage(calls, tuple(f"n{n}" for n in range(nodes - width, nodes)))]
    return job


def run_giant(model: EngineModel, nodes: int) -> Row:
    """Submitted, run and closed: every call exactly once, and nothing left."""
    began = time.perf_counter()
    cluster = Cluster(model, ENGINES, Policies())
    cluster.run([giant(nodes)])
    core = cluster.core
    assert cluster.dispatches == nodes, cluster.dispatches
    assert not core.sessions
    assert core.planner.queued == 0
    assert all(not w.held and not w.costs for w in core.fleet.workers.values())
    core.check()
    return Row(f"graph of {nodes} calls", "submitted, run and closed", "s", "lower", time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one seed")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many runs of each")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--recorded", type=Path, nargs="+", default=[], help="workloads recorded from real sessions")
    parser.add_argument("--engine", type=Path, help="a fitted engine model, as JSON")
    arguments = parser.parse_args()
    model = load(arguments.engine)
    seeds, scale = (range(SEED, SEED + 1), 0.1) if arguments.quick else (range(SEED, SEED + arguments.seeds), 1.0)
    rows: list[Row] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        recorded = [recording(path) for path in arguments.recorded]
        for workload in recorded or WORKLOADS:
            if arguments.only in workload.name:
                found = compare(workload, model, seeds, scale, pool)
                show(found)
                rows += found
                if workload.name == "mixed multi-tenant":
                    found = by_load(workload, model, seeds, scale, pool)
                    show(found)
                    rows += found
    if not arguments.only and not arguments.recorded:
        rows.append(run_giant(model, 5_000 if arguments.quick else 100_000))
        show(rows[-1:])
    if arguments.json is not None:
        write(arguments.json, "simulate", rows)


if __name__ == "__main__":
    main()
