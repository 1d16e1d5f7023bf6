from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given, settings

from myna.actors.messages import CallId, Tenant
from myna.actors.scheduler.nodes import CallNode
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.applications import Application
from myna.actors.scheduler.policies.lengths import Lengths
from myna.actors.scheduler.policies.objectives import Need, Urgency
from myna.actors.scheduler.policies.queue import PATIENCE, TURN, ReadyQueue, order_of
from myna.actors.scheduler.policies.tenants import Accounts, Share

T = Tenant("t")


def ready(name: str, *, work: float = 1.0, path: float = 0.0, need: Need | None = None, since: float = 0.0) -> CallNode:
    """A ready call of an application with so much work."""
    node = CallNode(CallId(name), None, "", (), 0, 1)
    node.work, node.path, node.need, node.since = work, path, need, since
    node.application = Application()
    node.application.work = work
    return node


class Line:
    """A queue, and the books of who is served."""

    def __init__(self, policies: Policies | None = None) -> None:
        self.policies = policies or Policies()
        self.accounts = Accounts(self.policies.shares)
        self.lengths = Lengths()
        self.queue = ReadyQueue(self.policies, self.accounts, self.lengths)

    def push(self, *calls: CallNode, tenant: Tenant = T, priority: int = 0) -> None:
        for call in calls:
            self.queue.push(call, tenant, priority, 0.0)

    def take(self, now: float = 0.0, tenant: Tenant | None = None) -> str | None:
        found = self.queue.choose(now, lambda call, first: call)
        if found is None:
            return None
        call = found[0]
        owner = tenant or T
        self.queue.take(call, owner, now)
        self.accounts.serve(self.accounts.of(owner), call.work)
        return call.id

    def drain(self, now: float = 0.0) -> list[str]:
        taken = []
        while (call := self.take(now)) is not None:
            taken.append(call)
        return taken


def test_the_application_with_least_work_left_goes_first_and_the_order_of_arrival_decides_without_the_policy() -> None:
    for on, order in ((True, ["c", "a", "b"]), (False, ["a", "b", "c"])):
        line = Line(Policies(applications=on))
        line.push(ready("a", work=5), ready("b", work=9), ready("c", work=1))
        assert line.drain() == order


def test_inside_an_application_the_longest_path_goes_first() -> None:
    line = Line()
    calls = [ready("short", path=1), ready("long", path=9), ready("middle", path=5)]
    for call in calls[1:]:
        call.application = calls[0].application
    line.push(*calls)
    assert line.drain() == ["long", "middle", "short"]


def test_an_application_that_has_less_to_do_than_before_moves_forward() -> None:
    line = Line()
    big, small = ready("big", work=10), ready("small", work=5)
    line.push(big, small)
    assert big.application is not None
    assert big.application.waiting is not None
    big.application.work = 1.0
    big.application.waiting.promote()
    assert line.drain() == ["big", "small"]


def test_stricter_needs_go_first_and_what_is_too_late_for_its_deadline_waits() -> None:
    line = Line()
    line.push(
        ready("batch", need=Need(Urgency.BATCH)),
        ready("late", need=Need(Urgency.DEADLINE, deadline=-1.0)),
        ready("normal"),
        ready("soon", need=Need(Urgency.DEADLINE, deadline=2.0), work=50),
        ready("chat", need=Need(Urgency.INTERACTIVE), work=99),
    )
    assert line.drain() == ["chat", "soon", "late", "normal", "batch"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 20), st.floats(1, 500)), min_size=1, max_size=12), st.floats(0, 12))
def test_what_can_no_longer_be_in_time_gives_way_to_what_can_and_still_goes_before_batches(
    calls: list[tuple[float, float]], waited: float
) -> None:
    line = Line()
    for n, (deadline, work) in enumerate(calls):
        line.push(ready(f"d{n}", work=work, need=Need(Urgency.DEADLINE, deadline=deadline)))
    line.push(ready("batch", need=Need(Urgency.BATCH)))
    hopeful = {f"d{n}" for n, (d, work) in enumerate(calls) if waited + work * line.lengths.pace < d}
    order = line.drain(waited)
    assert set(order[: len(hopeful)]) == hopeful
    assert order[-1] == "batch"
    assert len(order) == len(calls) + 1


def test_calls_that_have_left_the_queue_keep_its_order_until_age_makes_up_for_it() -> None:
    batch, urgent = Need(Urgency.BATCH), Need(Urgency.INTERACTIVE)
    calls = [ready("small", work=1), ready("large", work=50), ready("batch", work=1, need=batch)]
    calls.append(ready("urgent", work=90, need=urgent))
    assert [c.id for c in sorted(calls, key=order_of)] == ["urgent", "small", "large", "batch"]
    for late, passed in ((PATIENCE, False), (3.1 * PATIENCE, True)):
        newer = ready("newer", work=1, need=urgent)
        assert newer.application is not None
        newer.application.born = late
        assert (order_of(calls[2]) < order_of(newer)) is passed


def test_a_call_whose_need_has_changed_is_queued_anew_and_taken_once() -> None:
    line = Line()
    first, second = ready("first"), ready("second")
    line.push(first, second)
    second.need = Need(Urgency.INTERACTIVE)
    line.push(second)
    assert len(line.queue) == 2
    assert line.drain() == ["second", "first"]
    assert line.queue.empty


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 200), st.randoms(use_true_random=False))
def test_no_call_starves_whatever_more_urgent_calls_keep_coming(older: int, seed: int, rng: random.Random) -> None:
    line = Line()
    for n in range(older):
        line.push(ready(f"old{n}", work=1000 + rng.random()))
    line.push(ready("patient", work=10_000, need=Need(Urgency.BATCH)))
    for n in range(500):  # after PATIENCE, each dispatch is followed by the arrival of something more urgent
        line.push(ready(f"new{n}", need=Need(Urgency.INTERACTIVE), since=PATIENCE + 1 + n * 1e-3))
        if line.take(PATIENCE + 1 + n * 1e-3) == "patient":
            assert n + 1 <= TURN * (older + 1)
            return
    raise AssertionError("it starved")


def test_before_its_patience_is_over_age_does_not_matter() -> None:
    line = Line()
    line.push(ready("patient", need=Need(Urgency.BATCH)))
    for n in range(20):
        line.push(ready(f"new{n}", need=Need(Urgency.INTERACTIVE), since=1.0))
        assert line.take(PATIENCE - 1) == f"new{n}"


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 8), st.integers(50, 300))
def test_tenants_share_by_weight(weight: float, dispatches: int) -> None:
    a, b = Tenant("a"), Tenant("b")
    line = Line(Policies(shares={a: Share(weight=weight)}))
    for n in range(dispatches):
        line.push(ready(f"a{n}"), tenant=a)
        line.push(ready(f"b{n}"), tenant=b)
    served = {"a": 0, "b": 0}
    for _ in range(dispatches):
        found = line.queue.choose(0.0, lambda call, first: call)
        assert found is not None
        owner = Tenant(found[0].id[0])
        line.queue.take(found[0], owner, 0.0)
        line.accounts.serve(line.accounts.of(owner), 1.0)
        served[owner] += 1
    assert abs(served["a"] / weight - served["b"]) <= 1 + 1 / weight


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(10, 400))
def test_a_flood_of_one_tenant_delays_anothers_call_by_one_call_of_each_tenant(tenants: int, flood: int) -> None:
    line = Line()
    for t in range(tenants):
        for n in range(flood):
            line.push(ready(f"{t}-{n}"), tenant=Tenant(f"flood{t}"))
    for _ in range(flood // 2):
        found = line.queue.choose(0.0, lambda call, first: call)
        assert found is not None
        owner = Tenant("flood" + found[0].id.split("-")[0])
        line.queue.take(found[0], owner, 0.0)
        line.accounts.serve(line.accounts.of(owner), 1.0)
    line.push(ready("mine"), tenant=Tenant("late"))
    for waited in range(tenants + 1):
        found = line.queue.choose(0.0, lambda call, first: call)
        assert found is not None
        if found[0].id == "mine":
            assert waited <= tenants
            return
        owner = Tenant("flood" + found[0].id.split("-")[0])
        line.queue.take(found[0], owner, 0.0)
        line.accounts.serve(line.accounts.of(owner), 1.0)
    raise AssertionError("the flood went on")


def test_a_tenant_at_its_quota_waits_and_others_do_not() -> None:
    a, b = Tenant("a"), Tenant("b")
    line = Line(Policies(shares={a: Share(most_running=1)}))
    line.push(ready("a1"), ready("a2"), tenant=a)
    line.push(ready("b1"), ready("b2"), tenant=b)
    taken = [line.take(tenant=a), line.take(tenant=b), line.take(tenant=b), line.take()]
    assert taken == ["a1", "b1", "b2", None]
    line.accounts.of(a).running -= 1
    assert line.take(tenant=a) == "a2"


def test_a_call_without_a_place_lets_other_tenants_pass_and_keeps_its_turn() -> None:
    line = Line()
    line.push(ready("big"), tenant=Tenant("a"))
    line.push(ready("small"), tenant=Tenant("b"))
    turns: dict[str, bool] = {}

    def place(call: CallNode, first: bool) -> CallNode | None:
        turns[call.id] = first
        return call if call.id == "small" else None

    found = line.queue.choose(0.0, place)
    assert found is not None
    assert found[0].id == "small"
    assert turns == {"big": True, "small": False}
    line.queue.take(found[0], Tenant("b"), 0.0)
    assert line.take(tenant=Tenant("a")) == "big"
