from __future__ import annotations

from msgspec import structs

from myna.actors.messages import PROTOCOL, ErrorCode, EventKind, Failure, Leave, VarId, WorkerId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.attempts import LOST_BEATS, MOST_OVERTAKEN, SUSPECT, UNSERVED
from myna.actors.scheduler.commands import Dispatch, EndVariable, Halt, SayHello
from myna.actors.scheduler.dispatch import SETTLE
from myna.actors.scheduler.events import Heard
from myna.actors.scheduler.nodes import CallState
from tests.actors.scheduler.seen import deliver, dispatched, key, node, of, settled
from tests.actors.scheduler.world import SESSION, World, opened
from tests.actors.stage import call

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
    world.feed(Heard(structs.replace(announce, protocol=PROTOCOL + 1), world.now))
    assert dispatched(world) == []
    (seen,) = world.core.status(world.now).workers
    assert f"protocol {PROTOCOL + 1}" in seen.paused


# --- what a new leader finds running ----------------------------------------------------------------------------------


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
