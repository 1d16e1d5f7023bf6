"""Policies compared on a simulated cluster: the real scheduler core, modelled engines, a virtual clock.

    python tests/benchmarks/simulate.py [--json FILE] [--quick] [--only WORKLOAD] [--engine FILE]

Every policy sees the same jobs. `ours` is what runs in production; `prefix-aware` places by prefix and load, and knows no graph.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from myna.actors.messages import Input, Message, ModelCall, Output, Sampling, Text
from myna.actors.scheduler.policies import Policies, Spread
from tests.benchmarks.reporting import Row, row, show, write
from tests.benchmarks.simulation.cluster import Cluster, Turn
from tests.benchmarks.simulation.engine import EngineModel, load
from tests.benchmarks.simulation.metrics import Summary, of_kind, percentile, summarize
from tests.benchmarks.simulation.workloads import WORKLOADS, Job, Stage, Workload, jobs

ENGINES = 4
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
    for switch in ("objectives", "groups", "applications", "prefixes", "capacity", "fairness"):
        arms[f"without {switch}"] = replace(Policies(), **{switch: False})  # type: ignore[arg-type]
    return arms


def simulate(
    workload: Workload, model: EngineModel, policy: Policies, seed: int, scale: float
) -> tuple[Summary, list[Turn]]:
    """One run."""
    cluster = Cluster(model, ENGINES, policy)
    turns = cluster.run(jobs(workload, model, ENGINES, seed, scale))
    assert not cluster.failures, cluster.failures[:3]
    return summarize(cluster, turns, model), turns


def compare(workload: Workload, model: EngineModel, seeds: int, scale: float) -> list[Row]:
    """All policies on one workload: a row a metric, ours as the value, the others as baselines."""
    found: dict[str, list[Summary]] = {}
    chats: dict[str, list[float]] = {}
    for name, policy in policies().items():
        for seed in range(seeds):
            summary, turns = simulate(workload, model, policy, seed, scale)
            found.setdefault(name, []).append(summary)
            chats.setdefault(name, []).extend(of_kind(turns, "chat"))
    rows = []
    for attribute, metric, unit, better in METRICS:
        ours = row(workload.name, metric, unit, better, [getattr(s, attribute) for s in found["ours"]])
        others = {
            name: sorted(getattr(s, attribute) for s in runs)[len(runs) // 2]
            for name, runs in found.items()
            if name != "ours"
        }
        rows.append(replace(ours, baselines=others))
    if workload.name == "mixed multi-tenant":
        ratios = [p.mean_jct / o.mean_jct for p, o in zip(found["prefix-aware"], found["ours"], strict=True)]
        rows.append(row(workload.name, "completion ratio", "ratio", "higher", ratios, 2.0))
    if workload.name == "chat under floods":
        calm = _calm(workload, model, seeds, scale)
        ratio = percentile(chats["ours"], 0.99) / calm
        others = {name: percentile(taken, 0.99) / calm for name, taken in chats.items() if name != "ours"}
        rows.append(Row(workload.name, "p99 ratio", "ratio", "lower", ratio, baselines=others, target=1.1))
    return rows


def _calm(workload: Workload, model: EngineModel, seeds: int, scale: float) -> float:
    """The chats' p99 on the same cluster without the floods."""
    taken: list[float] = []
    for seed in range(seeds):
        chats = [j for j in jobs(workload, model, ENGINES, seed, scale) if j.kind == "chat"]
        taken += of_kind(Cluster(model, ENGINES, Policies()).run(chats), "chat")
    return percentile(taken, 0.99)


def giant(nodes: int) -> Job:
    """One application of very many calls: layers in which each call reads two of the layer before."""
    job = Job("giant", "a", 0.0)
    width = max(2, nodes // 100)
    calls: list[ModelCall] = []
    for n in range(nodes):
        layer, place = divmod(n, width)
        above = (layer - 1) * width
        inputs = (f"n{above + place}", f"n{above + (place * 7 + 1) % width}") if layer else ()
        segments = [Text(text="go on: "), *(Input(variables=(v,)) for v in dict.fromkeys(inputs))]
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
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--engine", type=Path, help="a fitted engine model, as JSON")
    arguments = parser.parse_args()
    model = load(arguments.engine)
    seeds, scale = (1, 0.1) if arguments.quick else (3, 1.0)
    rows: list[Row] = []
    for workload in WORKLOADS:
        if arguments.only in workload.name:
            found = compare(workload, model, seeds, scale)
            show(found)
            rows += found
    if not arguments.only:
        rows.append(run_giant(model, 5_000 if arguments.quick else 100_000))
        show(rows[-1:])
    if arguments.json is not None:
        write(arguments.json, "simulate", rows)


if __name__ == "__main__":
    main()
