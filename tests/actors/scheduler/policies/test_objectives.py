from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from myna.actors.messages import CallId, Objective, ObjectiveKind, Open, Submit, Want
from myna.actors.scheduler.nodes import CallNode
from myna.actors.scheduler.policies.objectives import Need, Urgency, need_of, strictest, upstream
from tests.actors.scheduler.world import SESSION, World, opened
from tests.actors.stage import call

LATENCY = Objective(kind=ObjectiveKind.LATENCY)
THROUGHPUT = Objective(kind=ObjectiveKind.THROUGHPUT)
needs = st.none() | st.builds(
    Need,
    st.sampled_from(Urgency),
    st.none() | st.floats(0, 100),
    st.none() | st.floats(0.001, 1),
    st.booleans(),
)


def node(world: World, name: str) -> CallNode:
    return world.core.sessions[SESSION].graph.calls[CallId(f"call-{name}")]


def need(world: World, name: str) -> Need:
    found = node(world, name).need
    assert found is not None
    return found


def want(world: World, *names: str, objective: Objective | None = None) -> None:
    world.append(SESSION, Want(variables=names, objective=objective))
    world.read_streams()


@given(needs, needs, needs)
def test_the_strictest_need_is_the_same_in_whatever_order_they_come(
    a: Need | None, b: Need | None, c: Need | None
) -> None:
    assert strictest(a, b) == strictest(b, a)
    assert strictest(strictest(a, b), c) == strictest(a, strictest(b, c))
    assert strictest(a, a) == a


@given(needs, needs)
def test_two_needs_in_one_are_at_least_as_strict_as_each(a: Need | None, b: Need | None) -> None:
    both = strictest(a, b)
    for single in (a, b):
        if single is not None and both is not None:
            assert both.urgency <= single.urgency
            assert single.deadline is None or (both.deadline is not None and both.deadline <= single.deadline)
            assert single.tpot is None or (both.tpot is not None and both.tpot <= single.tpot)


def test_an_objective_goes_backwards_to_all_that_the_result_needs_and_to_nothing_else() -> None:
    world = opened(call("a"), call("b", "a"), call("other"), workers=0)
    want(world, "b", objective=LATENCY)
    assert need(world, "a").urgency is need(world, "b").urgency is Urgency.INTERACTIVE
    assert node(world, "other").need is None


def test_siblings_that_feed_one_consumer_are_wide_and_a_single_producer_is_paced() -> None:
    world = opened(call("m1"), call("m2"), call("r", "m1", "m2"), call("end", "r"), workers=0)
    want(world, "end", objective=LATENCY)
    assert [need(world, n).wide for n in ("m1", "m2", "r", "end")] == [True, True, False, False]
    assert not need(world, "m1").paced
    assert need(world, "r").paced


def test_a_later_get_makes_a_need_stricter_and_never_weaker() -> None:
    world = opened(call("a"), call("b", "a"), workers=0)
    want(world, "b", objective=THROUGHPUT)
    assert need(world, "a").urgency is Urgency.BATCH
    want(world, "b", objective=LATENCY)
    want(world, "b", objective=THROUGHPUT)
    assert need(world, "a").urgency is Urgency.INTERACTIVE


def test_a_producer_has_to_end_earlier_than_the_deadline_of_its_consumer() -> None:
    world = opened(call("a"), call("b", "a"), workers=0)
    want(world, "b", objective=Objective(kind=ObjectiveKind.DEADLINE, seconds=10.0))
    last, first = need(world, "b").deadline, need(world, "a").deadline
    assert last == world.now + 10.0
    assert first is not None
    assert first < last


def test_an_objective_of_a_variable_waits_for_the_call_that_makes_it() -> None:
    world = World()
    world.append(SESSION, Open(protocol=1))
    world.append(SESSION, Want(variables=("a",), objective=LATENCY))
    world.append(SESSION, Submit(calls=(call("a"),)))
    world.read_streams()
    assert need(world, "a").urgency is Urgency.INTERACTIVE


def test_a_call_added_before_an_urgent_one_inherits_its_need() -> None:
    world = opened(call("b", "a", objective=LATENCY), declare=("a",), workers=0)
    world.append(SESSION, Submit(calls=(call("a"),)))
    world.read_streams()
    assert need(world, "a").urgency is Urgency.INTERACTIVE


def test_an_urgent_get_overtakes_what_is_queued() -> None:
    world = opened(call("a"), call("b"), workers=0)
    want(world, "b", objective=LATENCY)
    world.join("w", capacity=1)
    world.read_mail()
    assert [r.call.id for r in world.dispatched] == ["call-b"]


def test_the_pace_of_tokens_is_asked_of_the_result_alone() -> None:
    paced = need_of(Objective(kind=ObjectiveKind.TPOT, seconds=0.05), 0.0)
    assert paced is not None
    assert paced.tpot == 0.05
    assert upstream(paced, 1.0, grouped=False).tpot is None


def test_a_deadline_does_not_go_round_a_refused_cycle_for_ever() -> None:
    world = opened(call("a", "b"), call("b", "a"), call("c", "b", objective=SOON), workers=0)
    want(world, "a", "c", objective=SOON)
    assert node(world, "c").unended


SOON = Objective(kind=ObjectiveKind.DEADLINE, seconds=1.0)
