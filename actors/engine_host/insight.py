"""An engine's survey of itself in the words of the wire. Pure: the time comes with it."""

from __future__ import annotations

from collections.abc import Mapping

from myna.actors.messages import Phase, PrefixSight, StepSight
from myna.actors.worker.backend import Insight, Progress, RunKey
from myna.engine.stats import PrefixView, Stage, Steps, Survey

_PHASES = {Stage.QUEUED: Phase.QUEUED, Stage.PREFILL: Phase.PREFILL, Stage.DECODE: Phase.DECODE}


def insight_of(survey: Survey, keys: Mapping[str, RunKey], now: float) -> Insight:
    """What is shown of an engine that was surveyed at `now` (seconds since the epoch); `keys` are its requests' attempts, by id.
    Prompts that are kept are no requests of anybody."""
    return Insight(
        {
            keys[r.id]: Progress(_PHASES[r.stage], r.tokens, r.computed, r.cached, r.node)
            for r in survey.requests
            if r.id in keys
        },
        tuple(_steps(steps, now) for steps in survey.steps),
        tuple(_prefix(prefix) for prefix in survey.prefixes),
    )


def _steps(s: Steps, now: float) -> StepSight:
    return StepSight(
        at=round(now - s.ago, 3),
        seconds=round(s.seconds, 4),
        steps=s.steps,
        drawn=s.drawn,
        prefilled=s.prefilled,
        running=s.running,
        waiting=s.waiting,
        pages=s.pages,
    )


def _prefix(p: PrefixView) -> PrefixSight:
    return PrefixSight(
        id=p.id,
        parent=p.parent,
        cache=p.namespace,
        begin=p.begin,
        tokens=p.tokens,
        hits=p.hits,
        holders=p.holders,
        text=p.text,
    )
