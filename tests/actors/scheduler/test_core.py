from __future__ import annotations

from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import structs

from myna.actors.messages import (
    PROTOCOL,
    CallId,
    Cancel,
    Cancellation,
    Close,
    Declare,
    ErrorCode,
    EventKind,
    Failure,
    Input,
    Leave,
    Message,
    ModelCall,
    Objective,
    ObjectiveKind,
    Open,
    Output,
    Sampling,
    Segment,
    SessionId,
    Submit,
    Tenant,
    Text,
    Unwant,
    VarId,
    Want,
    Why,
    WorkerId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.attempts import LOST_BEATS, MOST_OVERTAKEN, STOPPED_BEATS, SUSPECT, UNSERVED
from myna.actors.scheduler.commands import AppendEntry, Dispatch, EndVariable, Halt, Inquire, PurgeSession, SayHello
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.dispatch import SETTLE
from myna.actors.scheduler.events import Ended, Garbled, Heard, Led, Logged, Tick, Touched, Unlogged
from myna.actors.scheduler.ledger import CLOSING, EARLY
from myna.actors.scheduler.nodes import CallState
from myna.actors.scheduler.policies.objectives import Urgency
from myna.actors.scheduler.state import HAUNTED
from myna.actors.worker.shell import ASLEEP
from myna.actors.worker.storage import PATIENCE
from tests.actors.scheduler.world import SESSION, TENANT, World, opened
from tests.actors.stage import call

C = TypeVar("C")


def of(kind: type[C], world: World, **fields: Any) -> list[C]:
    """The commands of a kind, so far not carried out, whose fields (by a dotted path) have these values."""
    return [c for c in world.commands if isinstance(c, kind) and all(_at(c, p) == v for p, v in fields.items())]


def _at(thing: Any, path: str) -> Any:
    for step in path.split("__"):
        thing = getattr(thing, step)
    return thing


def dispatched(world: World) -> list[tuple[str, str]]:
    return [(c.worker, c.run.call.id) for c in of(Dispatch, world)]


def node(world: World, name: str) -> Any:
    return world.core.sessions[SESSION].graph.calls[CallId(f"call-{name}")]


def key(name: str) -> Any:
    return (*SESSION, CallId(f"call-{name}"))


def deliver(world: World) -> None:
    """Commands are carried out, and workers take their orders."""
    world.carry_out_all()
    for worker in world.workers.values():
        world.take_orders(worker)


def settled(world: World) -> World:
    while world.core.settling:
        world.tick()
    return world


# --- dispatch ---------------------------------------------------------------------------------------------------------


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


# --- failure, retries, refusals ---------------------------------------------------------------------------------------


def test_a_retryable_failure_is_tried_again_so_often_and_then_the_variable_fails_with_its_origin() -> None:
    world = opened(call("a", retries=2), call("b", "a"))
    worker = world.workers[WorkerId("w0")]
    for tries in range(3):
        deliver(world)
        assert [r.resume for r in world.dispatched] == [False, True, True][: tries + 1]
        world.fail(worker, key("a"), retryable=True)
        world.read_mail()
    assert len(world.dispatched) == 3
    (end,) = of(EndVariable, world)
    assert isinstance(end.outcome, Failure)
    assert (end.outcome.call, end.outcome.function, end.outcome.message) == (
        "call-a",
        "a",
        "given up after 3 attempts: broken",
    )
    world.step()
    world.step()
    assert world.ended[SESSION, VarId("b")] is OutcomeStatus.FAILURE


def test_a_call_that_kills_its_workers_is_given_up_after_its_tries_however_many_schedulers_led_meanwhile() -> None:
    world = opened(call("poison", retries=2))
    worker = world.workers[WorkerId("w0")]
    for tries in range(3):
        deliver(world)
        assert node(world, "poison").tries == tries
        worker.held.clear()
        world.mail.append(Leave(worker=worker.id, incarnation=worker.incarnation, reason="its engine died"))
        world.read_mail()
        world.carry_out_all()
        world.lead()
        world.restart(worker)
        world.read_mail()
        settled(world)
    world.read_streams()
    outcome = world.values[0].failure
    assert outcome is not None
    assert "given up after 3 attempts: worker 'w0' was lost: its engine died" in outcome.message


def test_a_failure_that_is_not_retryable_ends_the_call_at_once() -> None:
    world = opened(call("a"))
    deliver(world)
    world.fail(world.workers[WorkerId("w0")], key("a"), retryable=False)
    world.read_mail()
    assert of(EndVariable, world, variable="a")
    assert dispatched(world) == []


def test_an_event_of_an_old_attempt_changes_nothing() -> None:
    world = opened(call("a"))
    deliver(world)
    worker = world.workers[WorkerId("w0")]
    first = worker.held[key("a")]
    world.fail(worker, key("a"), retryable=True)
    world.read_mail()
    deliver(world)
    for kind in (EventKind.FAILED, EventKind.REFUSED):
        world.mail.append(worker.event(kind, first))
    world.read_mail()
    assert node(world, "a").state is CallState.RUNNING
    assert node(world, "a").tries == 1
    assert dispatched(world) == []


def test_a_refused_call_goes_elsewhere_and_costs_no_try() -> None:
    world = opened(call("a", retries=0), workers=2)
    refuser = world.workers[of(Dispatch, world)[0].worker]
    refuser.refuses = True
    deliver(world)
    world.read_mail()
    (again,) = of(Dispatch, world)
    assert again.worker != refuser.id
    assert node(world, "a").tries == 0


def test_a_worker_that_refuses_for_ever_does_not_make_the_scheduler_spin() -> None:
    world = opened(*(call(f"c{i}") for i in range(4)), capacity=4)
    world.workers[WorkerId("w0")].refuses = True
    for _ in range(20):  # ten seconds, in which everything that can be exchanged at once is
        for _ in range(10):
            deliver(world)
            world.read_mail()
        world.tick()
    assert len(world.dispatched) <= 4 * 21
    world.heal()
    for _ in range(5):
        world.step()
    assert not world.core.sessions[SESSION].graph.unfinished


def test_a_call_that_nobody_serves_fails_after_a_while_and_says_what_is_served() -> None:
    world = opened(call("a", models=("llama",)), call("b", "a"))
    for _ in range(int(UNSERVED)):
        world.mail += [w.beat() for w in world.workers.values()]
        world.read_mail()
        world.tick(1.0)
    assert not of(EndVariable, world)
    world.tick(1.5)
    (end,) = of(EndVariable, world)
    assert isinstance(end.outcome, Failure)
    assert end.outcome.code is ErrorCode.NO_WORKER
    assert "'llama'" in end.outcome.message
    assert "serve m" in end.outcome.message


def test_a_busy_worker_that_serves_is_waited_for_however_long_it_takes() -> None:
    world = opened(call("a"), call("b"), capacity=1)
    deliver(world)
    for _ in range(int(UNSERVED) * 2):
        world.mail += [w.beat() for w in world.workers.values()]
        world.read_mail()
        world.tick(1.0)
    assert not of(EndVariable, world)


# --- workers come and go ----------------------------------------------------------------------------------------------


def test_a_silent_worker_is_given_up_and_its_call_goes_on_elsewhere() -> None:
    world = opened(call("a"), workers=2)
    lost = of(Dispatch, world)[0].worker
    deliver(world)
    while world.now - 100 <= SUSPECT + 1:
        world.mail += [w.beat() for w in world.workers.values() if w.id != lost]
        world.read_mail()
        world.tick()
    (again,) = of(Dispatch, world)
    assert again.worker != lost
    assert again.run.resume
    assert node(world, "a").tries == 1


def test_silence_proves_nothing_while_the_network_is_gone_or_the_scheduler_slept() -> None:
    world = opened(call("a"), workers=2)
    deliver(world)
    for _ in range(20):
        world.tick(healthy=False)
    world.tick()
    world.tick(30.0)
    world.tick()
    assert len(world.core.fleet.workers) == 2
    assert node(world, "a").tries == 0


def test_a_worker_that_comes_back_after_it_was_given_up_is_told_to_stop_the_old_attempt() -> None:
    world = opened(call("a"), workers=2)
    zombie = world.workers[of(Dispatch, world)[0].worker]
    deliver(world)
    world.mail.append(Leave(worker=zombie.id, incarnation=zombie.incarnation))
    world.read_mail()
    deliver(world)
    world.mail += [zombie.beat()]
    world.read_mail()
    world.tick()
    deliver(world)
    world.read_mail()
    (halt,) = of(Halt, world)
    assert (halt.worker, halt.stop.call) == (zombie.id, "call-a")
    deliver(world)
    assert zombie.held == {}
    assert sum(key("a") in w.held for w in world.workers.values()) == 1


def test_a_restarted_worker_has_lost_its_calls_even_if_nobody_noticed_the_crash() -> None:
    world = opened(call("a"))
    deliver(world)
    world.restart(world.workers[WorkerId("w0")])
    world.read_mail()
    assert dispatched(world) == [("w0", "call-a")]
    assert node(world, "a").tries == 1


def test_goodbye_of_an_earlier_incarnation_is_ignored() -> None:
    world = opened(call("a"))
    worker = world.workers[WorkerId("w0")]
    before = worker.incarnation
    world.restart(worker)
    world.mail.append(Leave(worker=worker.id, incarnation=before))
    world.read_mail()
    assert worker.id in world.core.fleet.workers


def test_a_lost_dispatch_shows_in_the_beats_and_is_sent_again() -> None:
    world = opened(call("a"))
    world.commands.clear()
    worker = world.workers[WorkerId("w0")]
    for _ in range(LOST_BEATS):
        world.mail.append(worker.beat())
        world.read_mail()
    assert dispatched(world) == []
    world.mail.append(worker.beat())
    world.read_mail()
    assert dispatched(world) == [("w0", "call-a")]


def test_a_beat_of_an_unknown_worker_is_answered_with_a_hello_but_a_thousand_with_one() -> None:
    world = opened()
    stranger = World().join("stranger")
    for _ in range(1000):
        world.feed(Heard(stranger.beat(), world.now))
    world.commands.clear()
    world.tick()
    assert len(of(SayHello, world)) == 1
    world.commands.clear()
    world.tick()
    assert of(SayHello, world) == []


def test_a_worker_of_another_protocol_gets_nothing() -> None:
    world = opened(call("a"), workers=0)
    world.join("w")
    (announce,) = world.mail
    world.mail = []
    world.feed(Heard(type(announce)(**{**_fields(announce), "protocol": PROTOCOL + 1}), world.now))
    assert dispatched(world) == []
    (seen,) = world.core.status(world.now).workers
    assert f"protocol {PROTOCOL + 1}" in seen.paused


def _fields(message: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


# --- rebuild ----------------------------------------------------------------------------------------------------------


def test_before_it_leads_a_scheduler_commands_nothing() -> None:
    world = opened(call("a"), call("bad", "ghost"))
    deliver(world)
    core = SchedulerCore()
    for session, entry in world.log:
        assert core.handle(Logged(*session, entry, 1.0)) == []
    for message in (w.announce() for w in world.workers.values()):
        assert core.handle(Heard(message, 1.0)) == []
    assert core.handle(Tick(2.0)) == []


def test_a_rebuilt_scheduler_adopts_what_live_workers_run_and_runs_nothing_twice() -> None:
    world = opened(call("a"), call("b"), call("c", "a"), workers=2)
    deliver(world)
    world.lead()
    for _ in range(int(SETTLE / 0.5) + 1):
        deliver(world)
        world.read_mail()
        world.tick()
    assert len(world.dispatched) == 2
    assert {n.state for n in (node(world, "a"), node(world, "b"))} == {CallState.RUNNING}
    for worker in world.workers.values():
        assert not worker.inbox
        assert len(worker.held) == 1
    for _ in range(4):
        world.step()
    assert [sum(k == key(n) for w in world.workers.values() for k, _ in w.begun) for n in "abc"] == [1, 1, 1]


def test_what_no_worker_runs_any_more_is_dispatched_again_after_the_pause_and_told_to_resume() -> None:
    world = opened(call("a"), call("b"))
    deliver(world)
    del world.workers[WorkerId("w0")].held[key("a")]
    world.lead()
    deliver(world)
    world.read_mail()
    world.tick()
    assert dispatched(world) == []
    settled(world)
    (dispatch,) = of(Dispatch, world)
    assert (dispatch.run.call.id, dispatch.run.resume) == ("call-a", True)


def test_a_resumed_call_that_is_refused_is_still_resumed_elsewhere() -> None:
    world = opened(call("a", retries=0), workers=2)
    deliver(world)
    for worker in world.workers.values():
        worker.held.clear()
    world.lead()
    deliver(world)
    world.read_mail()
    settled(world)
    world.workers[of(Dispatch, world)[0].worker].refuses = True
    deliver(world)
    world.read_mail()
    (again,) = of(Dispatch, world)
    assert again.run.resume


def test_of_two_attempts_found_running_the_newer_is_adopted_whoever_speaks_first() -> None:
    for first in (0, 1):
        world = opened(call("a"), workers=2)
        old, new = sorted(world.workers.values(), key=lambda w: w.id != of(Dispatch, world)[0].worker)
        deliver(world)
        world.mail.append(Leave(worker=old.id, incarnation=old.incarnation))
        world.read_mail()
        deliver(world)  # now the call runs on both: the old worker has not been heard for a while
        assert len(old.held) == len(new.held) == 1
        world.lead()
        for worker in [(old, new), (new, old)][first]:
            world.feed(Heard(worker.announce(), world.now))
        assert node(world, "a").worker == new.id
        deliver(world)
        assert old.held == {}
        assert len(new.held) == 1


def test_failures_and_cancellations_that_a_crash_swallowed_are_published_by_the_next_leader() -> None:
    world = opened(call("bad", "ghost"), call("a"), call("kept"), declare=("by-hand",))
    world.append(SESSION, Cancel(calls=("call-a",)))
    world.read_streams()
    world.commands.clear()
    world.lead()
    assert {c.variable for c in of(EndVariable, world)} == {"bad", "a"}
    world.append(SESSION, Close())
    world.read_streams()
    world.commands.clear()
    world.lead()
    assert {c.variable for c in of(EndVariable, world)} == {"bad", "a", "kept", "by-hand"}
    assert len(of(EndVariable, world)) == 4


def test_late_calls_of_a_closed_session_are_answered_even_if_a_crash_comes_between() -> None:
    world = opened(call("a"))
    world.append(SESSION, Close(reason="done"))
    world.append(SESSION, Submit(calls=(call("late"),)))
    stranger = (TENANT, SessionId("purged-long-ago"))
    world.append(stranger, Submit(calls=(call("later"),)))
    world.lead()
    (late,) = of(EndVariable, world, variable="late")
    assert isinstance(late.outcome, Failure)
    assert late.outcome.code is ErrorCode.SESSION_CLOSED
    assert "done" in late.outcome.message
    assert of(EndVariable, world, variable="later")
    world.tick(CLOSING + 0.1)
    assert of(Inquire, world, session=stranger[1]), "and purged, when whoever waits could read it"


def test_a_rebuilt_scheduler_finishes_the_purge_of_a_closed_session() -> None:
    world = opened(call("a"))
    world.append(SESSION, Close())
    world.read_streams()
    world.lead()
    world.carry_out_all()
    world.read_streams()
    world.tick(CLOSING + 0.1)
    assert not of(PurgeSession, world), "its earlier leader may have given up a worker that is not dead"
    world.tick(HAUNTED)
    assert of(PurgeSession, world)


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_closing_halts_cancels_and_purges_and_forgets() -> None:
    world = opened(call("a"), call("b", "a"), declare=("x",))
    deliver(world)
    world.append(SESSION, Close(reason="bye"))
    world.read_streams()
    assert {c.variable for c in of(EndVariable, world)} == {"a", "b", "x"}
    assert all(isinstance(c.outcome, Cancellation) and "bye" in c.outcome.reason for c in of(EndVariable, world))
    assert of(Halt, world, stop__call="call-a")
    deliver(world)
    world.read_streams()
    world.tick(CLOSING + 0.1)
    assert not of(PurgeSession, world), "the worker has yet to show that it has stopped"
    for _ in range(STOPPED_BEATS):
        world.mail.append(world.workers[WorkerId("w0")].beat())
        world.read_mail()
    world.tick()
    assert of(PurgeSession, world)
    assert SESSION not in world.core.sessions
    assert world.workers[WorkerId("w0")].held == {}
    assert world.core.status(world.now).queued == 0


@pytest.mark.parametrize("harm", ["silent", "restarted", "order lost", None])
def test_what_a_worker_may_still_write_to_is_purged_only_when_it_surely_writes_no_more(harm: str | None) -> None:
    world = opened(call("a"))
    worker = world.workers[WorkerId("w0")]
    match harm:
        case "silent":
            deliver(world)
            for _ in range(int(SUSPECT / 0.5) + 1):
                world.tick()
        case "restarted":
            deliver(world)
            world.restart(worker)
        case "order lost":
            world.commands.clear()
            world.mail += [worker.beat()] * (LOST_BEATS + 1)
        case None:
            deliver(world)
    world.read_mail()
    assert node(world, "a").tries == (0 if harm is None else 1)
    world.store(SESSION, VarId("a"), None)
    world.read_streams()
    world.append(SESSION, Close())
    world.read_streams()
    world.tick(CLOSING + 0.1)
    assert bool(of(PurgeSession, world)) == (harm is None)
    assert HAUNTED > ASLEEP + PATIENCE, "for so long it writes, and what it wrote may be on its way"
    world.tick(HAUNTED)
    assert of(PurgeSession, world)


def test_a_session_expires_when_it_is_idle_but_not_while_a_call_runs_or_a_client_holds_it() -> None:
    world = World()
    world.join("w")
    world.append(SESSION, Open(protocol=PROTOCOL, ttl=10.0))
    world.append(SESSION, Submit(calls=(call("a"),)))
    world.read_mail()
    world.read_streams()
    deliver(world)
    for _ in range(30):
        world.mail += [w.beat() for w in world.workers.values()]
        world.read_mail()
        world.tick(1.0)
    assert not of(AppendEntry, world)
    world.finish(world.workers[WorkerId("w")], key("a"))
    world.read_streams()
    world.tick(9.0)
    world.feed(Touched(*SESSION, world.now))
    world.tick(9.0)
    assert not of(AppendEntry, world)
    world.tick(2.0)
    (close,) = of(AppendEntry, world)
    assert "expired after 10 s" in close.entry.reason
    world.carry_out_all()
    world.read_streams()
    assert world.core.sessions[SESSION].closing_at is not None


def test_a_session_of_another_protocol_is_closed_with_the_reason() -> None:
    world = World()
    world.append(SESSION, Open(protocol=PROTOCOL + 1))
    world.append(SESSION, Submit(calls=(call("a"),)))
    world.read_streams()
    (end,) = of(EndVariable, world)
    assert isinstance(end.outcome, Failure)
    assert f"protocol {PROTOCOL + 1}" in end.outcome.message


def test_two_tenants_with_the_same_names_never_meet() -> None:
    world = opened(call("a"), call("b", "a"))
    other = (Tenant("other"), SESSION[1])
    world.append(other, Open(protocol=PROTOCOL))
    world.append(other, Submit(calls=(call("a"), call("b", "a"))))
    world.read_streams()
    world.carry_out_all()
    world.store(SESSION, VarId("a"), None)
    world.read_streams()
    assert [(c.run.tenant, c.run.call.id) for c in of(Dispatch, world)] == [("t", "call-b")]


def test_a_value_that_comes_before_its_session_counts_and_one_without_a_session_is_purged() -> None:
    world = World()
    world.join("w")
    world.read_mail()
    world.store(SESSION, VarId("a"), None)
    world.feed(Ended(*SESSION, VarId("a"), OutcomeStatus.VALUE, 0, world.now))
    world.append(SESSION, Open(protocol=PROTOCOL))
    world.append(SESSION, Submit(calls=(call("a"), call("b", "a"))))
    world.read_streams()
    assert [c for _, c in dispatched(world)] == ["call-b"]
    ghost = SessionId("ghost")
    world.feed(Ended(TENANT, ghost, VarId("a"), OutcomeStatus.VALUE, 0, world.now))
    world.tick(EARLY + 0.1)
    assert of(Inquire, world, session=ghost), "the log may only be late"
    assert not of(PurgeSession, world, session=ghost)
    world.feed(Unlogged(TENANT, ghost, world.now))
    assert of(PurgeSession, world, session=ghost)


def test_a_value_is_kept_for_its_session_however_late_the_log_is() -> None:
    world = World()
    world.ended[SESSION, VarId("a")] = OutcomeStatus.VALUE
    world.feed(Ended(*SESSION, VarId("a"), OutcomeStatus.VALUE, 0, world.now))
    for _ in range(5):
        world.tick(EARLY + 0.1)
    world.join("w")
    world.read_mail()
    assert len(of(Inquire, world)) == 5
    world.append(SESSION, Open(protocol=PROTOCOL))
    world.append(SESSION, Submit(calls=(call("a"), call("b", "a"))))
    world.read_streams()
    assert [c for _, c in dispatched(world)] == ["call-b"]
    world.feed(Unlogged(*SESSION, world.now))
    assert not of(PurgeSession, world), "an answer that comes when the session is known changes nothing"


def test_a_session_of_which_the_log_holds_only_garbage_is_purged_and_an_open_one_is_not() -> None:
    world = opened()
    ghost = SessionId("ghost")
    for key in (SESSION, (TENANT, ghost)):
        world.feed(Garbled(*key, world.now))
    world.tick(EARLY + 0.1)
    assert [c.session for c in of(Inquire, world)] == [ghost]
    world.feed(Unlogged(TENANT, ghost, world.now))
    assert [c.session for c in of(PurgeSession, world)] == [ghost]


def test_a_worker_that_leaves_hands_its_calls_over_and_that_costs_them_no_try() -> None:
    world = opened(call("a", retries=0), workers=1)
    for _ in range(3):
        ((worker, _),) = dispatched(world)
        world.commands.clear()
        world.feed(Heard(Leave(worker=worker, incarnation=f"{worker}-0"), world.now))
        assert dispatched(world) == [], "there is nobody else"
        world.join("w0")
        world.read_mail()
    assert not of(EndVariable, world)


def test_a_worker_that_is_forced_to_leave_gives_its_reason_to_the_calls_that_it_brings_down() -> None:
    world = opened(call("a", retries=1), workers=1)
    for _ in range(2):
        world.commands.clear()
        world.feed(Heard(Leave(worker="w0", incarnation="w0-0", reason="the engine process has ended"), world.now))
        world.join("w0")
        world.read_mail()
    (end,) = of(EndVariable, world)
    assert isinstance(end.outcome, Failure)
    assert end.outcome.code is ErrorCode.WORKER_LOST
    assert end.outcome.message == ("given up after 2 attempts: worker 'w0' was lost: the engine process has ended"), (
        "a poison call is failed after a bounded number of attempts, with the reason"
    )


def test_an_attempt_that_was_overtaken_costs_no_try_but_not_for_ever() -> None:
    world = opened(call("a", retries=0), workers=1)
    for tries in range(MOST_OVERTAKEN + 1):
        assert not of(EndVariable, world), tries
        run = world.dispatches()[-1].run
        world.commands.clear()
        world.feed(Heard(world.workers[WorkerId("w0")].event(EventKind.OVERTAKEN, run), world.now))
    (end,) = of(EndVariable, world)
    assert isinstance(end.outcome, Failure)
    assert "taken" in end.outcome.message


def test_a_final_failure_is_not_tried_again_and_its_readers_still_learn_that_another_call_may_succeed() -> None:
    world = opened(call("a", retries=5))
    ((_, _),) = dispatched(world)
    run = world.dispatches()[0].run
    failure = Failure(code=ErrorCode.ENGINE_ERROR, message="broke off in mid-stream", retryable=True)
    event = world.workers[WorkerId("w0")].event(EventKind.FAILED, run, failure)
    world.feed(Heard(structs.replace(event, final=True), world.now))
    (end,) = of(EndVariable, world)
    assert isinstance(end.outcome, Failure)
    assert end.outcome.retryable


def test_a_lazy_session_dispatches_what_is_wanted() -> None:
    world = opened(call("a"), call("b"), call("c", "b"), lazy=True)
    assert dispatched(world) == []
    world.append(SESSION, Want(variables=("c",)))
    world.read_streams()
    assert [c for _, c in dispatched(world)] == ["call-b"]


def test_cancel_without_names_cancels_everything_unfinished() -> None:
    world = opened(call("a"), call("b", "a"), call("c"))
    deliver(world)
    world.store(SESSION, VarId("c"), None)
    world.read_streams()
    world.append(SESSION, Cancel(reason="stop it"))
    world.read_streams()
    assert {c.variable for c in of(EndVariable, world)} == {"a", "b"}
    assert [c.stop.call for c in of(Halt, world)] == ["call-a"]


def test_status_tells_workers_sessions_and_what_waits() -> None:
    world = opened(*(call(f"c{i}") for i in range(4)), call("d", "c0"), capacity=1)
    status = world.core.status(world.now, rejected=3)
    (session,) = status.sessions
    assert (session.calls, session.waiting, session.ready, session.running) == (5, 1, 3, 1)
    assert (status.queued, status.rejected, status.lease) == (3, 3, world.lease)
    assert [(w.worker, w.running, w.capacity) for w in status.workers] == [("w0", 1, 1)]


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


# --- everything at once -----------------------------------------------------------------------------------------------

SESSIONS = [(TENANT, SessionId(s)) for s in ("s", "u")]
sessions = st.sampled_from(SESSIONS)
variables = st.sampled_from([f"v{i}" for i in range(8)])
objectives = st.none() | st.builds(
    Objective, kind=st.sampled_from(ObjectiveKind), seconds=st.none() | st.sampled_from((0.1, 5.0))
)


@st.composite
def some_calls(draw: st.DrawFn) -> list[ModelCall]:
    """Calls that mostly make sense: one in five may look forwards, and so close a cycle or name what is not known."""
    made = []
    for i in draw(st.lists(st.integers(0, 7), min_size=1, max_size=5)):
        most = 7 if draw(st.integers(0, 4)) == 0 else i - 1
        inputs = draw(st.lists(st.integers(0, most), max_size=2)) if most >= 0 else []
        outputs = draw(st.sampled_from((1, 1, 2)))
        objective = draw(objectives)
        options = {"retries": draw(st.integers(0, 3)), "objective": objective}
        one = call(f"v{i}", *(f"v{n}" for n in inputs), outputs=outputs, **options)
        made.append(alike(one) if draw(st.booleans()) else one)
    return made


def alike(one: ModelCall) -> ModelCall:
    """The call, drawn greedily and with the same text as others, so that one may take the other's results."""
    (message,) = one.messages
    segments: list[Segment] = []
    for segment in message.segments:
        match segment:
            case Text():
                segments.append(Text(text="the same " * 200))  # long enough to be kept, and computed ahead
            case Output():
                segments.append(structs.replace(segment, sampling=Sampling(temperature=0.0)))
            case Input():
                segments.append(segment)
    return structs.replace(one, messages=(Message(segments=tuple(segments)),), memoise=True)


class CoreMachine(RuleBasedStateMachine):
    """A scheduler in a bad world. Whatever happened, once the world is well everything ends."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(workers=st.integers(1, 3), lazy=st.sampled_from((False, False, True)), calls=some_calls())
    def open(self, workers: int, lazy: bool, calls: list[ModelCall]) -> None:
        for n in range(workers):
            self.world.join(f"w{n}", capacity=n + 1, tokens=2000 if n else None)
        for session in SESSIONS:
            self.world.append(session, Open(protocol=PROTOCOL, lazy=lazy, ttl=1000.0))
            self.world.append(session, Declare(variables=tuple(f"v{i}" for i in range(8))))
            self.world.append(session, Submit(calls=(*calls, call("x"), call("y", "x"), call("z", "y", "v0"))))
        self.go_on()

    @rule()
    def lose_all_orders(self) -> None:
        """What was told to workers since the last delivery never arrives."""
        self.world.commands = [c for c in self.world.commands if not isinstance(c, Dispatch | Halt)]

    @rule()
    def go_on(self) -> None:
        """For once everything arrives; nobody finishes anything."""
        for worker in self.world.workers.values():
            if worker.up:
                self.world.say(worker, worker.beat())
        deliver(self.world)
        self.world.read_mail()
        self.world.read_streams()

    # what applications do

    @rule(session=sessions, calls=some_calls())
    def submit(self, session: Any, calls: list[ModelCall]) -> None:
        self.world.append(session, Submit(calls=tuple(calls)))

    @rule(session=sessions, names=st.lists(variables, min_size=1, max_size=3))
    def declare(self, session: Any, names: list[str]) -> None:
        self.world.append(session, Declare(variables=tuple(names)))

    @rule(session=sessions, names=st.lists(variables, min_size=1, max_size=3), objective=objectives)
    def want(self, session: Any, names: list[str], objective: Objective | None) -> None:
        self.world.append(session, Want(variables=tuple(names), objective=objective))

    @rule(session=sessions, names=st.lists(variables, min_size=1, max_size=3))
    def unwant(self, session: Any, names: list[str]) -> None:
        self.world.append(session, Unwant(variables=tuple(names)))

    @rule(name=variables)
    def ask_why(self, name: str) -> None:
        assert len(self.world.core.why(Why(call=f"call-{name}"), self.world.now).calls) <= len(SESSIONS)

    @rule(session=sessions, name=variables)
    def set_by_hand(self, session: Any, name: str) -> None:
        self.world.store(session, VarId(name), None)

    @rule(session=sessions, name=variables, upstream=st.booleans())
    def cancel(self, session: Any, name: str, upstream: bool) -> None:
        self.world.append(session, Cancel(calls=(f"call-{name}",), upstream=upstream))

    # what the network does

    @rule(most=st.integers(1, 5))
    def read_streams(self, most: int) -> None:
        self.world.read_streams(most)

    @rule(data=st.data(), fate=st.sampled_from(("deliver", "deliver", "deliver", "lose", "double")))
    def carry_mail(self, data: st.DataObject, fate: str) -> None:
        if self.world.mail:
            message = self.world.mail.pop(data.draw(st.integers(0, len(self.world.mail) - 1)))
            for _ in range({"lose": 0, "deliver": 1, "double": 2}[fate]):
                self.world.feed(Heard(message, self.world.now))

    @rule(lost=st.booleans(), times=st.integers(1, 4))
    def carry_out(self, lost: bool, times: int) -> None:
        for _ in range(min(times, len(self.world.commands))):
            self.world.carry_out(self.world.commands.pop(0), lost=lost)

    # what workers do

    def worker(self, data: st.DataObject) -> Any:
        return data.draw(st.sampled_from(sorted(self.world.workers.values(), key=lambda w: w.id)))

    @rule(data=st.data())
    def take_orders(self, data: st.DataObject) -> None:
        self.world.take_orders(self.worker(data))

    @rule(data=st.data(), outputs=st.sampled_from((None, None, 1)))
    def finish(self, data: st.DataObject, outputs: int | None) -> None:
        worker = self.worker(data)
        if worker.held and worker.up:
            self.world.finish(worker, data.draw(st.sampled_from(sorted(worker.held))), outputs=outputs)

    @rule(data=st.data(), retryable=st.booleans())
    def fail(self, data: st.DataObject, retryable: bool) -> None:
        worker = self.worker(data)
        if worker.held and worker.up:
            self.world.fail(worker, data.draw(st.sampled_from(sorted(worker.held))), retryable=retryable)

    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        worker = self.worker(data)
        if worker.up:
            self.world.say(worker, worker.beat())

    @rule(data=st.data(), what=st.sampled_from(("silent", "heard", "refuse", "crash", "restart", "leave")))
    def misbehave(self, data: st.DataObject, what: str) -> None:
        worker = self.worker(data)
        match what:
            case "silent" | "heard":
                worker.heard = what == "heard"
            case "refuse":
                worker.refuses = not worker.refuses
            case "crash":
                worker.up = False
            case "restart":
                self.world.restart(worker)
            case "leave":
                self.world.mail.append(Leave(worker=worker.id, incarnation=worker.incarnation))

    @rule(seconds=st.sampled_from((0.5, 0.5, 1.0, 3.0)), healthy=st.sampled_from((True, True, False)))
    def tick(self, seconds: float, healthy: bool) -> None:
        self.world.tick(seconds, healthy=healthy)

    # what schedulers do

    @rule()
    def crash(self) -> None:
        self.world.lead()

    @invariant()
    def books_are_straight(self) -> None:
        self.world.core.check()
        for session in self.world.core.sessions.values():
            for call_node in session.graph.calls.values():
                spec_retries = call_node.spec.retries if call_node.spec else 3
                assert call_node.tries <= spec_retries + 1

    def teardown(self) -> None:
        world = self.world
        world.heal()
        for session in SESSIONS:
            world.append(
                session, Want(variables=tuple(f"v{i}{j}" for i in range(8) for j in ("", "-0", "-1")) + tuple("xyz"))
            )
            self.world.read_streams()
            for variable in list(world.core.sessions[session].graph.variables.values()):
                if variable.producer is None:  # declared or wanted, and awaiting a hand
                    world.store(session, variable.id, None)
        for _ in range(40):
            world.step()
            if all(not s.graph.unfinished for s in world.core.sessions.values()) and not world.mail:
                break
        for session in world.core.sessions.values():
            assert not session.graph.unfinished, "a well world, and calls that never end"
        for session in SESSIONS:
            world.append(session, Close())
        known = [(k, v) for k, s in world.core.sessions.items() for v in s.graph.variables]
        world.step()
        world.now += HAUNTED
        for _ in range(12):
            world.step()
        assert set(SESSIONS) <= world.purged
        assert not world.core.sessions
        for where in known:
            assert where in world.ended, f"{where} never ended"
        assert all(not w.held for w in world.workers.values())


CoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCoreMachine = CoreMachine.TestCase


@pytest.mark.parametrize("size", [2000])
def test_thousands_of_calls_cost_a_bounded_number_of_commands(size: int) -> None:
    world = opened(call("root"), *(call(f"m{i}", "root") for i in range(size)), workers=4, capacity=16)
    core_check, world.core.check = world.core.check, lambda: None  # type: ignore[method-assign]
    for _ in range(size):
        world.step()
        if not world.core.sessions[SESSION].graph.unfinished:
            break
    core_check()
    assert len(world.dispatched) == size + 1


def test_a_larger_lease_is_told_to_all_workers_when_a_scheduler_leads() -> None:
    core = SchedulerCore()
    (hello,) = core.handle(Led("me", 77, 0.0))
    assert isinstance(hello, SayHello)
    assert (hello.hello.lease, hello.hello.scheduler) == (77, "me")
