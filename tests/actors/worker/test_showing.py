from __future__ import annotations

from msgspec.structs import replace

from myna.actors.messages import CallId, CallSight, Phase, SessionId, Tenant, Timing, Usage, Value
from myna.actors.worker import showing
from myna.actors.worker.backend import Insight, Progress, RunKey
from myna.actors.worker.showing import MOST_CALLS, MOST_ENDED, Showing


def key(name: str) -> RunKey:
    return (Tenant("acme"), SessionId("s"), CallId(name), 7)


def held(name: str, phase: Phase = Phase.QUEUED) -> CallSight:
    return CallSight(tenant="acme", session="s", call=name, attempt=7, function="f", phase=phase, since=5.0, produced=2)


def value(*times: float, output: int = 3) -> Value:
    received, began, first, ended = times
    timing = Timing(worker="w", received=received, began=began, first=first, ended=ended)
    return Value(text="", timing=timing, usage=Usage(prompt_tokens=10, cached_tokens=4, output_tokens=output))


def test_the_outputs_of_a_call_are_one_span_with_what_they_used_together() -> None:
    it = Showing()
    it.ended(key("a"), "f", value(1, 2, 3, 4))
    it.ended(key("a"), "f", value(1, 2, 5, 6, output=7))
    (span,) = it.take()
    assert (span.call, span.received, span.first, span.ended) == ("a", 1, 3, 6)
    assert span.usage == Usage(prompt_tokens=20, cached_tokens=8, output_tokens=10)
    assert it.take() == ()


def test_values_without_times_are_not_shown_and_there_are_never_too_many() -> None:
    it = Showing()
    it.ended(key("copied"), "f", Value(text=""))
    for n in range(MOST_ENDED + 5):
        it.ended(key(f"c{n}"), "f", value(1, 2, 3, 4))
    it.ended(key("c0"), "f", value(1, 2, 3, 9))
    spans = it.take()
    assert (len(spans), spans[0].call, spans[0].ended) == (MOST_ENDED, "c0", 9)


def test_what_the_backend_knows_of_a_call_counts_while_it_has_it() -> None:
    insight = Insight({key(n): Progress(Phase.PREFILL, 40, 16, 8, 3) for n in ("known", "reading", "storing")})
    calls = [held("known"), held("unknown"), held("reading", Phase.READING), held("storing", Phase.STORING)]
    known, unknown, reading, storing = showing.calls([(key(c.call), c) for c in calls], insight, 100.0)
    assert (known.phase, known.tokens, known.computed, known.cached, known.prefix) == (Phase.PREFILL, 40, 16, 8, 3)
    assert (known.since, known.produced) == (105.0, 2)
    assert [c.phase for c in (unknown, reading, storing)] == [Phase.QUEUED, Phase.READING, Phase.STORING]
    early = [(key("a"), held("a")), (key("known"), replace(held("b"), first=7.0))]
    shown = showing.calls(early, insight, 100.0)
    assert [(c.call, c.first, c.tokens) for c in shown] == [("a", None, 0), ("b", 107.0, 40)]
    assert len(showing.calls(((key("a"), held(f"c{n}")) for n in range(MOST_CALLS + 9)), insight, 0.0)) == MOST_CALLS
