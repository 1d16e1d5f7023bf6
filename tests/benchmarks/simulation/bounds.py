"""How short the mean completion time of jobs can be on engines of a model, whoever schedules them.

Law: a bound counts only what nobody can avoid, and lets go of the rest: memory is endless, what jobs of one kind share is
computed for nothing, work can be cut and moved at will, and everything is known beforehand. What stays: each call takes its own
prompt and a step for each token, after its inputs and the pauses before it; and all together take no more than the engines have.

With mean busy times (Goemans et al., "Single machine scheduling with release dates"): let a call begin no sooner than `starts`
after its job, take `seconds` at least, and have `tail` seconds after it. Its middle, weighted by work, lies at M; so the job ends
at M + seconds / 2 + tail or later. A mean over a job's calls, by their work, holds too. The sum of all M, each call weighted by
its part of its job's work, is least where the call of the job with least work goes first, cut off by those that come. (A
conversation's turns together take what it takes as a whole, without the pauses.)

A step's constant part is shared by all that it draws. Engines of one pace, which take `step` seconds a step, have what that
leaves; the bound for the best pace is near to what can be had. One that holds whatever steps engines take (`step` None) must give
each call a step of a lone sequence and at the same time the price of one in a full batch, and is therefore lower.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from myna.actors.messages import Text
from tests.benchmarks.simulation.engine import EngineModel
from tests.benchmarks.simulation.workloads import Job, sizes

STEPS = tuple(n / 1000 for n in (8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24, 30, 40))
"""Seconds of a step: the paces that are tried."""


@dataclass
class Part:
    """A call: its stage, when it can start, how long it takes, the engine seconds of its work, and what comes after it."""

    stage: int
    starts: float
    seconds: float
    work: float
    inputs: list[Part]
    tail: float = 0.0


@dataclass(frozen=True)
class Speed:
    """An engine: seconds that a token takes its call, and how much it takes of the engine without what its sequence reads; and
    the part of the engine that is left for such work."""

    token: float
    price: float
    left: float


def speed(model: EngineModel, step: float | None) -> Speed:
    """Of an engine of one pace, or one that may have any at any time."""
    if step is None:
        return Speed(model.alone, model.base / model.sequences + model.slope, 1.0)
    return Speed(step, model.slope, 1.0 - model.base / step)


def mean_completion(jobs: Sequence[Job], model: EngineModel, engines: int, step: float | None) -> float:
    """Seconds from asking to the last result, the mean over all turns, at least."""
    pace = speed(model, step)
    released: list[tuple[float, float, float]] = []
    total, turns = 0.0, 0
    for job in jobs:
        parts = _parts(job, model, pace)
        work = sum(part.work for part in parts)
        turns += 1 if job.whole else len(job.stages)
        total -= job.arrival if job.whole else job.arrival + sum(stage.think for stage in job.stages[1:])
        for part in parts:
            total += part.work / work * (part.seconds / 2 + part.tail)
            released.append((part.starts, 1 / work, part.work))
    return (total + _busy(sorted(released), engines * pace.left)) / turns


def least(jobs: Sequence[Job], model: EngineModel, engines: int) -> float:
    """The same of engines of one pace, at the best one."""
    return min(mean_completion(jobs, model, engines, step) for step in STEPS)


def _parts(job: Job, model: EngineModel, pace: Speed) -> list[Part]:
    """The calls of a job as soon as each could run, were it alone."""
    parts: list[Part] = []
    made: dict[str, Part] = {}
    measured, clock = sizes(job), job.arrival
    apart = all(
        len(stage.calls) == 1 for stage in job.stages
    )  # no two of its calls run at once: neither shares a context
    for n, stage in enumerate(job.stages):
        clock += stage.think if n else 0.0
        for call in stage.calls:
            outputs, new, context, names = next(measured)
            tokens = sum(job.outputs[v] for v in outputs)
            constant = sum(len(s.text) / 4 for m in call.messages for s in m.segments if isinstance(s, Text))
            read = model.kv * ((context - constant if apart else new) + tokens / 2)
            inputs = [made[v] for v in names if v in made]
            starts = max([clock, *(p.starts + p.seconds for p in inputs)])
            part = Part(
                n,
                starts,
                new * model.prefill + tokens * pace.token,
                new * model.prefill + tokens * (pace.price + read),
                inputs,
            )
            parts.append(part)
            made |= dict.fromkeys(outputs, part)
        clock = max(p.starts + p.seconds for p in parts)
    _set_tails(job, parts)
    return parts


def _set_tails(job: Job, parts: list[Part]) -> None:
    rest = 0.0
    for n in reversed(range(len(job.stages))):
        stage = [part for part in parts if part.stage == n]
        for part in stage:
            part.tail = rest
        for part in reversed(stage):
            for above in part.inputs:
                if above.stage == n:
                    above.tail = max(above.tail, part.tail + part.seconds)
        rest = max(part.tail + part.seconds for part in stage) + job.stages[n].think


def _busy(released: list[tuple[float, float, float]], capacity: float) -> float:
    """The least sum of weighted mean busy times of (start, weight a unit of work, work), by start."""
    waiting: list[tuple[float, float]] = []
    now, total, n = 0.0, 0.0, 0
    while n < len(released) or waiting:
        if not waiting:
            now = max(now, released[n][0])
        while n < len(released) and released[n][0] <= now:
            _, weight, work = released[n]
            heapq.heappush(waiting, (-weight, work))
            n += 1
        weight, work = heapq.heappop(waiting)
        until = released[n][0] if n < len(released) else float("inf")
        seconds = min(work / capacity, until - now)
        total -= weight * capacity * seconds * (now + seconds / 2)
        now += seconds
        if (left := work - capacity * seconds) > 1e-12:
            heapq.heappush(waiting, (weight, left))
    return total
