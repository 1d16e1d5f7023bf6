from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given, settings

from myna.actors.messages import PROTOCOL, Announce, CallId, Message, ModelCall, Output, Text, WorkerKind
from myna.actors.scheduler.fleet import Fleet
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import CallNode
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.lengths import Lengths
from myna.actors.scheduler.policies.lines import NEW, RESUMES, Lines
from myna.actors.scheduler.policies.placement import Because, Place
from myna.actors.scheduler.policies.queue import PATIENCE, TURN, ReadyQueue
from myna.actors.scheduler.policies.tenants import Accounts

GRAPH = SessionGraph(tenant="t", session="s")


def ready(name: str, since: float = 0.0) -> CallNode:
    spec = ModelCall(id=name, messages=(Message(segments=(Text(text="Go on."), Output(variables=(name,)))),))
    return CallNode(CallId(name), spec, "", (), 0, 1, since=since, session=GRAPH)


class Counter:
    """Ready calls, and one engine that takes one call at a time."""

    def __init__(self) -> None:
        policies = Policies(applications=False)
        accounts = Accounts({})
        numbers = itertools.count(1)
        self.lines = Lines(lambda: ReadyQueue(policies, accounts, Lengths(), numbers))
        self.fleet = Fleet()
        offer = Announce(
            protocol=PROTOCOL, worker="w", kind=WorkerKind.ENGINE, incarnation="i", serves=("m",), capacity=1000
        )
        self.worker = self.fleet.announce(offer, 0.0)

    def take(self, now: float) -> str:
        def place(call: CallNode, first: bool) -> Place:
            return Place(self.worker, None, Because.LEAST_LOADED)

        call, _ = next(self.lines.choose(self.fleet, place, now))
        return call.id


def test_calls_that_go_on_with_a_context_go_before_new_ones() -> None:
    counter = Counter()
    counter.lines.push(ready("new"), 0.0, NEW)
    counter.lines.push(ready("next"), 0.0, RESUMES)
    assert [counter.take(1.0), counter.take(1.0)] == ["next", "new"]
    assert len(counter.lines) == 0


@settings(max_examples=40, deadline=None)
@given(older=st.integers(0, 8), dispatches=st.integers(1, 20))
def test_no_new_call_starves_however_many_conversations_go_on(older: int, dispatches: int) -> None:
    counter = Counter()
    for n in range(older):
        counter.lines.push(ready(f"old{n}"), 0.0, NEW)
    counter.lines.push(ready("new"), 0.0, NEW)
    for n in range(dispatches):  # before its patience is over, those that go on have all the turns
        counter.lines.push(ready(f"early{n}", PATIENCE / 2), PATIENCE / 2, RESUMES)
        assert counter.take(PATIENCE / 2) == f"early{n}"
    for n in range(TURN * (older + 2)):  # at each dispatch another conversation goes on
        now = PATIENCE + 1 + 1e-3 * n
        counter.lines.push(ready(f"next{n}", now), now, RESUMES)
        if counter.take(now) == "new":
            return
    raise AssertionError("it starved")


def test_a_call_that_is_parked_keeps_none_behind_it_waiting() -> None:
    counter = Counter()
    for name in ("large", "small", "later"):
        counter.lines.push(ready(name), 0.0, NEW)

    def place(call: CallNode, first: bool) -> Place | None:
        if call.id == "large":
            counter.lines.park(call, 0.0)
            return None
        return Place(counter.worker, None, Because.LEAST_LOADED)

    taken = [call.id for call, _ in counter.lines.choose(counter.fleet, place, 0.0)]
    assert taken == ["small", "later"]
    assert [call.id for call in counter.lines.calls()] == ["large"]
    assert not list(counter.lines.choose(counter.fleet, place, 0.0))
    assert counter.take(0.0) == "large"


def test_a_parked_call_has_its_turn_after_a_while_whatever_comes() -> None:
    counter = Counter()
    parked = ready("parked")
    counter.lines.push(parked, 0.0, NEW)
    counter.lines.park(parked, 0.0)
    for n in range(2 * TURN):
        now = PATIENCE + 1.0 + n
        counter.lines.push(ready(f"new{n}", now), now, NEW)
        if counter.take(now) == "parked":
            return
    raise AssertionError("it starved")


def test_a_call_that_changes_its_line_waits_in_one_only() -> None:
    counter = Counter()
    changed = ready("changed")
    counter.lines.push(changed, 0.0, NEW)
    counter.lines.push(changed, 0.0, RESUMES)
    counter.lines.push(ready("other"), 0.0, NEW)
    assert len(counter.lines) == 2
    assert [counter.take(1.0), counter.take(1.0)] == ["changed", "other"]
    assert len(counter.lines) == 0
    assert not list(counter.lines.choose(counter.fleet, lambda call, first: None, 1.0))
