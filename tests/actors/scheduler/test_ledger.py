from __future__ import annotations

import pytest

from myna.actors.messages import (
    PROTOCOL,
    Cancel,
    Cancellation,
    Close,
    ErrorCode,
    Failure,
    Open,
    SessionId,
    Submit,
    Tenant,
    VarId,
    WorkerId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.attempts import LOST_BEATS, STOPPED_BEATS, SUSPECT
from myna.actors.scheduler.commands import AppendEntry, Dispatch, EndVariable, Halt, Inquire, PurgeSession
from myna.actors.scheduler.events import Ended, Garbled, Touched, Unlogged
from myna.actors.scheduler.ledger import CLOSING, EARLY
from myna.actors.scheduler.state import HAUNTED
from myna.actors.worker.shell import ASLEEP
from myna.actors.worker.storage import PATIENCE
from tests.actors.scheduler.seen import deliver, dispatched, key, node, of
from tests.actors.scheduler.world import SESSION, TENANT, World, opened
from tests.actors.stage import call


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
    for where in (SESSION, (TENANT, ghost)):
        world.feed(Garbled(*where, world.now))
    world.tick(EARLY + 0.1)
    assert [c.session for c in of(Inquire, world)] == [ghost]
    world.feed(Unlogged(TENANT, ghost, world.now))
    assert [c.session for c in of(PurgeSession, world)] == [ghost]


def test_cancel_without_names_cancels_everything_unfinished() -> None:
    world = opened(call("a"), call("b", "a"), call("c"))
    deliver(world)
    world.store(SESSION, VarId("c"), None)
    world.read_streams()
    world.append(SESSION, Cancel(reason="stop it"))
    world.read_streams()
    assert {c.variable for c in of(EndVariable, world)} == {"a", "b"}
    assert [c.stop.call for c in of(Halt, world)] == ["call-a"]
