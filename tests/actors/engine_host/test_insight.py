from __future__ import annotations

from myna.actors.engine_host.insight import insight_of
from myna.actors.messages import CallId, Phase, PrefixSight, SessionId, StepSight, Tenant
from myna.actors.worker.backend import Progress, RunKey
from myna.engine.request import RequestId
from myna.engine.stats import PrefixView, RequestView, Stage, Steps, Survey


def test_a_survey_is_told_by_the_wall_clock_and_by_attempts_and_kept_prompts_are_nobodys() -> None:
    key: RunKey = (Tenant("acme"), SessionId("s"), CallId("c"), 7)
    survey = Survey(
        (
            RequestView(RequestId("acme.s.c.7"), Stage.PREFILL, 40, 16, 8, 0, 3),
            RequestView(RequestId("kept:k1"), Stage.QUEUED, 9, 0, 0, 0, None),
        ),
        (Steps(2.5, 0.25, 3, 6, 64, 2, 1, 9),),
        (PrefixView(3, 1, "acme", 16, 32, 5, 2, "You are"),),
    )
    insight = insight_of(survey, {"acme.s.c.7": key}, 1000.0)
    assert insight.progress == {key: Progress(Phase.PREFILL, 40, 16, 8, 3)}
    assert insight.steps == (
        StepSight(at=997.5, seconds=0.25, steps=3, drawn=6, prefilled=64, running=2, waiting=1, pages=9),
    )
    assert insight.prefixes == (
        PrefixSight(id=3, parent=1, cache="acme", begin=16, tokens=32, hits=5, holders=2, text="You are"),
    )
