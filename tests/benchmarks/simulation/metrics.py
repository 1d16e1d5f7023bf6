"""What is read off a simulated run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.simulation.cluster import Cluster, Turn
from tests.benchmarks.simulation.engine import EngineModel
from tests.benchmarks.simulation.workloads import Job, alone

PATIENCE = 4.0
"""A turn is good if it took no longer than so many times its time alone, where its job has no deadline of its own."""


@dataclass(frozen=True)
class Summary:
    """Seconds, and shares from 0 to 1. `fairness`: how near the worst-off tenant comes to what it would have if its share of the
    engines were its own (the sharing incentive): the least, over tenants, of its mean time there over its mean time here, at
    most 1. It counts against a policy that a tenant is slowed by others, and not that another is quicker. `mean_alone`: what
    `mean_jct` would be if each job had all engines for itself, which no policy can better."""

    mean_jct: float
    p99_jct: float
    mean_ttft: float
    goodput: float
    hit_rate: float
    fairness: float
    mean_alone: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def by_tenant(turns: Sequence[Turn]) -> dict[str, float]:
    """Each tenant's mean seconds."""
    taken: dict[str, list[float]] = {}
    for turn in turns:
        taken.setdefault(turn.job.tenant, []).append(_seconds(turn))
    return {tenant: sum(t) / len(t) for tenant, t in taken.items()}


def summarize(
    cluster: Cluster, turns: Sequence[Turn], model: EngineModel, own: Mapping[str, float] | None = None
) -> Summary:
    """All turns, which must all have ended. `own`: mean seconds of each tenant with its share of the engines to itself."""
    taken = [_seconds(t) for t in turns]
    had = by_tenant(turns)
    bests = [_alone(turn, model) for turn in turns]
    good = 0
    for turn, seconds, best in zip(turns, taken, bests, strict=True):
        objective = turn.job.objective
        limit = objective.seconds if objective is not None and objective.seconds is not None else PATIENCE * best
        good += seconds <= limit
    prompt = sum(e.prompt_tokens for e in cluster.engines.values())
    return Summary(
        mean_jct=sum(taken) / len(taken),
        p99_jct=percentile(taken, 0.99),
        mean_ttft=sum((t.first or t.asked) - t.asked for t in turns) / len(turns),
        goodput=good / len(turns),
        hit_rate=sum(e.cached_tokens for e in cluster.engines.values()) / max(prompt, 1.0),
        fairness=min([1.0, *(seconds / had[tenant] for tenant, seconds in (own or {}).items())]),
        mean_alone=sum(bests) / len(bests),
    )


def of_kind(turns: Sequence[Turn], kind: str) -> list[float]:
    """Seconds of the turns of one kind of job."""
    return [_seconds(t) for t in turns if t.job.kind == kind]


def _seconds(turn: Turn) -> float:
    assert turn.ended is not None, f"a turn of {turn.job.kind} never ended"
    return turn.ended - turn.asked


def _alone(turn: Turn, model: EngineModel) -> float:
    job = turn.job
    if len(job.stages) == 1 or job.whole:
        return alone(job, model)
    best = [alone(Job(job.kind, job.tenant, 0.0, [stage], job.given, job.outputs), model) for stage in job.stages]
    return sum(best) / len(best)
