from __future__ import annotations

from myna.actors.messages import (
    PROTOCOL,
    EventKind,
    Objective,
    ObjectiveKind,
    Open,
    Submit,
    Unwant,
    VarId,
    Want,
    WorkerId,
)
from myna.actors.scheduler.commands import Dispatch, Halt
from myna.actors.scheduler.nodes import CallState
from myna.actors.scheduler.policies.objectives import Urgency
from tests.actors.scheduler.seen import deliver, dispatched, key, node, of
from tests.actors.scheduler.world import SESSION, World, opened
from tests.actors.stage import call


def test_a_ready_call_goes_to_a_worker_with_the_lease_and_a_fresh_attempt() -> None:
    world = opened(call("a"))
    (dispatch,) = of(Dispatch, world)
    assert dispatch.run.lease == world.lease
    assert dispatch.run.attempt >> 20 == world.lease
    assert not dispatch.run.resume
    assert dispatch.run.call == call("a")


def test_no_more_is_dispatched_than_capacity_and_the_rest_follows_as_calls_end() -> None:
    world = opened(*(call(f"c{i}") for i in range(5)), workers=2, capacity=1)
    assert [c for _, c in dispatched(world)] == ["call-c0", "call-c1"]
    deliver(world)
    world.finish(world.workers[WorkerId("w0")], key("c0"))
    world.read_streams()
    assert dispatched(world) == [("w0", "call-c2")]


def test_priority_goes_first_and_otherwise_first_come_first_served() -> None:
    world = opened(call("low"), call("late"), call("high", priority=5), workers=0)
    world.join("w", capacity=1)
    order = []
    for _ in range(3):
        world.read_mail()
        order += [c for _, c in dispatched(world)]
        deliver(world)
        world.finish(world.workers[WorkerId("w")], key(order[-1].removeprefix("call-")))
        world.read_streams()
        order += [c for _, c in dispatched(world)]
    assert list(dict.fromkeys(order)) == ["call-high", "call-low", "call-late"]


def test_a_worker_is_told_the_order_of_its_calls_that_the_queue_would_have_kept() -> None:
    world = opened(call("long"), call("next", "long"), call("short"), workers=1, capacity=2)
    order = {c.run.call.id: c.run.order for c in of(Dispatch, world)}
    assert order["call-short"] < order["call-long"]


def test_dispatch_follows_the_value_and_not_the_workers_word() -> None:
    world = opened(call("a"), call("b", "a"))
    deliver(world)
    worker = world.workers[WorkerId("w0")]
    world.mail.append(worker.event(EventKind.FINISHED, worker.held[key("a")]))
    world.read_mail()
    assert dispatched(world) == []
    assert node(world, "a").state is CallState.RUNNING
    world.store(SESSION, VarId("a"), None)
    world.read_streams()
    assert [c for _, c in dispatched(world)] == ["call-b"]


def test_a_lazy_session_dispatches_what_is_wanted() -> None:
    world = opened(call("a"), call("b"), call("c", "b"), lazy=True)
    assert dispatched(world) == []
    world.append(SESSION, Want(variables=("c",)))
    world.read_streams()
    assert [c for _, c in dispatched(world)] == ["call-b"]


def test_a_dropped_want_halts_what_runs_for_it_and_a_new_one_resumes_it() -> None:
    world = opened(call("a"), call("b", "a"), lazy=True)
    world.append(SESSION, Want(variables=("b",), reader="ann"))
    world.read_streams()
    deliver(world)
    world.append(SESSION, Unwant(variables=("b",), reader="ann"))
    world.read_streams()
    assert [c.stop.call for c in of(Halt, world)] == ["call-a"]
    deliver(world)
    assert not world.workers[WorkerId("w0")].held
    world.append(SESSION, Want(variables=("a",), reader="bob"))
    world.read_streams()
    assert [r.resume for r in world.dispatched] == [False, True]


def test_a_want_before_its_call_decides_from_the_first_moment() -> None:
    world = opened(call("x"), call("y"), workers=0)
    world.append(SESSION, Want(variables=("a",), objective=Objective(kind=ObjectiveKind.LATENCY)))
    world.append(SESSION, Submit(calls=(call("a"),)))
    world.read_streams()
    world.join("w", capacity=1)
    world.read_mail()
    assert dispatched(world) == [("w", "call-a")]


def test_a_new_get_changes_what_is_queued() -> None:
    world = opened(call("x"), call("y"), call("z"), workers=0)
    world.append(SESSION, Want(variables=("z",), objective=Objective(kind=ObjectiveKind.LATENCY)))
    world.append(SESSION, Want(variables=("x",), objective=Objective(kind=ObjectiveKind.THROUGHPUT)))
    world.read_streams()
    order = []
    worker = world.join("w", capacity=1)
    for _ in range(3):
        world.read_mail()
        order += [c for _, c in dispatched(world)]
        deliver(world)
        for held in list(worker.held):
            world.finish(worker, held)
        world.read_streams()
        order += [c for _, c in dispatched(world)]
    assert list(dict.fromkeys(order)) == ["call-z", "call-y", "call-x"]


def test_a_sessions_objective_is_that_of_its_results_and_what_they_need_follows() -> None:
    world = World()
    world.append(SESSION, Open(protocol=PROTOCOL, objective=Objective(kind=ObjectiveKind.TPOT, seconds=0.05)))
    own = Objective(kind=ObjectiveKind.THROUGHPUT)
    world.append(SESSION, Submit(calls=(call("a"), call("b"), call("c", "a", "b"), call("d", objective=own))))
    world.read_streams()
    needs = {name: node(world, name).need for name in "abcd"}
    assert needs["c"].tpot == 0.05
    assert needs["c"].paced
    assert needs["a"].urgency is Urgency.INTERACTIVE
    assert not needs["a"].paced  # one of a group: the time of all counts
    assert needs["d"].urgency is Urgency.BATCH
