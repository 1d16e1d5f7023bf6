"""What is read off a simulated run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.simulation.cluster import Cluster, Turn
from tests.benchmarks.simulation.engine import EngineModel
from tests.benchmarks.simulation.workloads import Job, alone

PATIENCE = 4.0
"""A turn is good if it took no longer than so many times its time alone, where its job has no deadline of its own."""


@dataclass(frozen=True)
class Summary:
    """Seconds, and shares from 0 to 1. `fairness` is Jain's index of the tenants' mean slowdowns."""

    mean_jct: float
    p99_jct: float
    mean_ttft: float
    goodput: float
    hit_rate: float
    fairness: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summarize(cluster: Cluster, turns: Sequence[Turn], model: EngineModel) -> Summary:
    """All turns, which must all have ended."""
    taken = [_seconds(t) for t in turns]
    slowdown: dict[str, list[float]] = {}
    good = 0
    for turn, seconds in zip(turns, taken, strict=True):
        best = _alone(turn, model)
        slowdown.setdefault(turn.job.tenant, []).append(seconds / best)
        objective = turn.job.objective
        limit = objective.seconds if objective is not None and objective.seconds is not None else PATIENCE * best
        good += seconds <= limit
    means = [sum(s) / len(s) for s in slowdown.values()]
    prompt = sum(e.prompt_tokens for e in cluster.engines.values())
    return Summary(
        mean_jct=sum(taken) / len(taken),
        p99_jct=percentile(taken, 0.99),
        mean_ttft=sum((t.first or t.asked) - t.asked for t in turns) / len(turns),
        goodput=good / len(turns),
        hit_rate=sum(e.cached_tokens for e in cluster.engines.values()) / max(prompt, 1.0),
        fairness=sum(means) ** 2 / (len(means) * sum(m * m for m in means)),
    )


def of_kind(turns: Sequence[Turn], kind: str) -> list[float]:
    """Seconds of the turns of one kind of job."""
    return [_seconds(t) for t in turns if t.job.kind == kind]


def _seconds(turn: Turn) -> float:
    assert turn.ended is not None, f"a turn of {turn.job.kind} never ended"
    return turn.ended - turn.asked


def _alone(turn: Turn, model: EngineModel) -> float:
    job = turn.job
    if len(job.stages) == 1:
        return alone(job, model)
    best = [alone(Job(job.kind, job.tenant, 0.0, [stage], job.given, job.outputs), model) for stage in job.stages]
    return sum(best) / len(best)
