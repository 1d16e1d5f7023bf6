from __future__ import annotations

from dataclasses import replace

import pytest

from myna.actors.scheduler.policies import Policies
from tests.benchmarks.simulation import bounds, losses
from tests.benchmarks.simulation.cluster import Cluster
from tests.benchmarks.simulation.engine import load
from tests.benchmarks.simulation.known import Known, TrueLengths
from tests.benchmarks.simulation.metrics import summarize
from tests.benchmarks.simulation.workloads import LATENCY, WORKLOADS, Job, Stage, Workload, alone, constant, jobs

MODEL = load()


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if "flood" not in w.name], ids=lambda w: w.name)
def test_no_policy_is_quicker_than_the_bounds(workload: Workload) -> None:
    some = jobs(workload, MODEL, 2, seed=3, scale=0.02)
    bound = bounds.mean_completion(some, MODEL, 2, None)
    assert 0.0 < bound < bounds.least(some, MODEL, 2)
    for policies in (Policies(), Policies.none(prefixes=True)):
        cluster = Cluster(MODEL, 2, policies)
        assert summarize(cluster, cluster.run(some), MODEL).mean_jct > bound


def chains(count: int, pieces: int) -> list[Job]:
    made = []
    for n in range(count):
        job = Job("chain", "a", 0.001 * n, objective=LATENCY)
        calls = []
        for i in range(pieces):
            before = [f"s{i - 1}"] if i else []
            calls.append(
                job.call(f"s{i}", "refine", constant("refine", 40), *before, job.give(f"d{i}", 2000), output=50)
            )
        job.stages = [Stage(calls, (f"s{pieces - 1}",))]
        made.append(job)
    return made


def test_a_lone_chains_bound_is_its_time_but_for_the_way_to_its_middle() -> None:
    (job,) = chains(1, 4)
    best = alone(job, MODEL)
    assert 0.85 * best < bounds.mean_completion([job], MODEL, 1, None) <= best


def test_many_that_begin_together_wait_for_one_another_whatever_is_done() -> None:
    few, many = (bounds.least(chains(count, 4), MODEL, 1) for count in (2, 40))
    assert many > 3 * few
    assert bounds.least(chains(40, 4), MODEL, 4) < many


def test_a_scheduler_that_knows_the_lengths_asks_for_each_call_once() -> None:
    workload = replace(WORKLOADS[-1], jobs=40)
    cluster = Known(MODEL, 4, Policies())
    some = jobs(workload, MODEL, 4, seed=1)
    cluster.run(some)
    assert cluster.dispatches == sum(1 for job in some for _ in job.calls())
    assert isinstance(cluster.core.planner.lengths, TrueLengths)
    assert not cluster.core.planner.lengths.left, "each was asked for once"


def figures(ours: tuple[float, ...], theirs: tuple[float, ...], without: float) -> dict[str, tuple[float, ...]]:
    rivals = dict.fromkeys(losses.RIVALS, theirs)
    return {"ours": ours} | rivals | {"without fairness": (without,) * len(ours), "without early": ours}


@pytest.mark.parametrize(
    ("ours", "theirs", "without", "told"),
    [
        ((1.0, 1.02, 1.02), (1.0, 1.0, 1.0), 0.5, ""),
        (
            (2.0, 2.2, 0.9),
            (1.0, 1.0, 1.0),
            0.5,
            "0.90, 2.00, 2.20 times over the seeds, which disagree; most by `fairness`",
        ),
        ((2.0, 2.2, 2.1), (1.0, 1.0, 1.0), 0.5, "most by `fairness` (0.5 without it"),
        ((2.0, 2.2, 2.1), (1.0, 1.0, 1.0), 9.0, "no policy alone does it"),
    ],
)
def test_a_loss_is_told_with_the_policy_that_makes_it_unless_seeds_disagree(
    ours: tuple[float, ...], theirs: tuple[float, ...], without: float, told: str
) -> None:
    lower = losses.note("lower", figures(ours, theirs, without), figures((1.0,), (1.0,), 3.0))
    assert told in lower
    assert bool(lower) == bool(told)
    if "most by" in told:
        assert "mean completion 1 s instead of 3 with it" in lower


def test_what_should_be_high_loses_by_being_low() -> None:
    lost = losses.note("higher", figures((0.5, 0.5), (0.9, 0.8), 0.95), figures((1.0,), (1.0,), 3.0))
    assert "1.60, 1.80 times" in lost
    assert "`fairness`" in lost
