from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from myna.actors.messages import CallSight, Phase, PrefixSight, Sight, SpanSight, StepSight, WorkerKind
from myna.actors.watch.history import KEEP, SILENT, History


def sight(worker: str = "e1", at: float = 1000.0, **more: Any) -> Sight:
    return Sight(
        worker=worker,
        incarnation="i",
        at=at,
        kind=WorkerKind.ENGINE,
        serves=("m",),
        capacity=4,
        load={"pages": 9.0},
        **more,
    )


def call(name: str, tenant: str = "acme") -> CallSight:
    return CallSight(tenant=tenant, session="s", call=name, attempt=1, function="f", phase=Phase.DECODE, since=1.0)


def span(name: str, ended: float, tenant: str = "acme") -> SpanSight:
    return SpanSight(
        tenant=tenant, session="s", call=name, attempt=1, function="f", received=0.0, began=0.0, first=0.0, ended=ended
    )


def step(at: float) -> StepSight:
    return StepSight(at=at, seconds=0.1, steps=1, drawn=1, prefilled=0, running=1, waiting=0, pages=1)


def prefix(cache: str) -> PrefixSight:
    return PrefixSight(id=1, parent=None, cache=cache, begin=0, tokens=16, hits=1, holders=0, text="secret")


def test_only_what_is_new_is_told_to_who_has_seen_the_rest() -> None:
    history = History()
    history.add(sight(at=10.0, steps=(step(9.1), step(9.6)), ended=(span("a", 9.4),)), 0.0)
    history.add(sight(at=11.0, steps=(step(10.2),), ended=(span("b", 10.9),)), 1.0)
    (view,) = history.engines(since=9.5)
    assert [s.at for s in view.steps] == [9.6, 10.2]
    assert [s.call for s in view.spans] == ["b"]


def test_a_tenant_is_told_of_its_own_alone() -> None:
    history = History()
    prefixes = tuple(map(prefix, ("acme", "acme/user", "rival", "shared:acme", "acme2")))
    calls = (call("mine"), call("theirs", "rival"))
    ended = (span("m", 5.0), span("t", 5.0, "rival"))
    history.add(sight(calls=calls, ended=ended, steps=(step(999.0),), prefixes=prefixes, left_out=3), 0.0)
    (view,) = history.engines(tenant="acme")
    assert [c.call for c in view.calls] == ["mine"]
    assert [s.call for s in view.spans] == []
    assert (view.steps, view.load, view.left_out) == ((), {}, 0)
    assert [p.cache for p in view.prefixes] == ["acme", "acme/user"]


def test_old_history_is_dropped() -> None:
    history = History()
    history.add(sight(at=1000.0, steps=(step(1000.0 - KEEP - 1), step(999.0))), 0.0)
    (view,) = history.engines()
    assert [s.at for s in view.steps] == [999.0]


def test_a_silent_engine_is_forgotten_with_its_calls() -> None:
    history = History()
    history.add(sight("gone", calls=(call("a"),)), 0.0)
    history.add(sight("there"), SILENT)
    history.forget(SILENT + 1.0)
    assert [e.worker for e in history.engines()] == ["there"]
    assert history.call(("acme", "s", "a")) is None


def test_of_very_many_engines_only_the_newest_of_each_is_told() -> None:
    history = History()
    calls = tuple(call(f"c{n}") for n in range(30))
    for n in range(500):
        history.add(sight(f"e{n}", calls=calls, steps=tuple(step(900.0 + t) for t in range(30))), 0.0)
    views = history.engines()
    assert sum(len(v.calls) for v in views) == sum(len(v.steps) for v in views) == 500 * 12
    assert {(v.left_out, v.steps[-1].at) for v in views} == {(18, 929.0)}
    assert history.call(("acme", "s", "c29")) is not None


class Watching(RuleBasedStateMachine):
    """Calls move between engines, in whatever order these show themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.now = 0.0
        self.shown: dict[str, set[str]] = {}

    @rule(worker=st.sampled_from("ab"), calls=st.sets(st.sampled_from("xyz")), passed=st.floats(0, SILENT))
    def show(self, worker: str, calls: set[str], passed: float) -> None:
        self.now += passed
        self.history.add(sight(worker, calls=tuple(map(call, sorted(calls)))), self.now)
        self.shown[worker] = calls

    @rule(passed=st.floats(0, 2 * SILENT))
    def forget(self, passed: float) -> None:
        self.now += passed
        self.history.forget(self.now)
        there = {e.worker for e in self.history.engines()}
        self.shown = {w: calls for w, calls in self.shown.items() if w in there}

    @invariant()
    def a_call_is_found_exactly_while_an_engine_shows_it(self) -> None:
        for name in "xyz":
            found = self.history.call(("acme", "s", name)) is not None
            assert found == any(name in calls for calls in self.shown.values())


TestWatching = Watching.TestCase
TestWatching.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
