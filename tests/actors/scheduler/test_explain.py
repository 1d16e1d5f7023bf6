from __future__ import annotations

from myna.actors.messages import CallReasons, Cancel, Objective, ObjectiveKind, VarId, Why
from tests.actors.scheduler.world import SESSION, World, opened
from tests.actors.stage import call


def why(world: World, name: str) -> CallReasons:
    (found,) = world.core.why(Why(call=f"call-{name}"), world.now).calls
    return found


def told(world: World, name: str) -> str:
    return "\n".join(why(world, name).reasons)


def test_a_waiting_call_names_the_inputs_that_are_missing_and_who_makes_them() -> None:
    world = opened(call("a"), call("b", "a", "by-hand"), declare=("by-hand",))
    assert why(world, "b").state == "waiting"
    assert "'a' comes from call 'call-a', which is running" in told(world, "b")
    assert "'by-hand' has not been set" in told(world, "b")


def test_a_call_of_a_lazy_session_says_that_nobody_asked() -> None:
    assert "nobody has asked" in told(opened(call("a"), lazy=True), "a")


def test_a_ready_call_says_whether_workers_are_missing_or_full() -> None:
    assert "no engine serves any model" in told(opened(call("a"), workers=0), "a")
    world = opened(call("a"), call("b"), capacity=1)
    assert "1 engines serve it: 1 are full" in told(world, "b")
    assert "1 calls are ready, 0 of them for longer" in told(world, "b")


def test_a_call_that_can_not_be_in_time_any_more_says_that_others_go_first() -> None:
    soon = Objective(kind=ObjectiveKind.DEADLINE, seconds=10.0)
    world = opened(call("a"), call("b", objective=soon), capacity=1)
    hidden = next(n for n in "ab" if why(world, n).state == "ready")
    if hidden == "a":  # the one with a deadline went first: let another wait
        world.add(call("c", objective=soon))
        hidden = "c"
    assert "in time any more" not in told(world, hidden)
    world.now += 10.0
    assert "it can't be in time any more, so that calls that can go first" in told(world, hidden)


def test_a_running_call_says_where_why_and_since_when() -> None:
    world = opened(call("a", objective=Objective(kind=ObjectiveKind.LATENCY)))
    world.now += 2.0
    reasons = why(world, "a")
    assert (reasons.state, reasons.worker, reasons.seconds) == ("running", "w0", 2.0)
    assert "'w0' was chosen because it was the least loaded" in told(world, "a")
    assert "needed for interactive work" in told(world, "a")


def test_an_ended_call_still_tells_where_it_ran() -> None:
    world = opened(call("a"))
    world.store(SESSION, VarId("a"), None)
    world.read_streams()
    assert "output 'a' ended in a value" in told(world, "a")
    assert "'w0' was chosen" in told(world, "a")


def test_a_cancelled_call_tells_that_too() -> None:
    world = opened(call("a"))
    world.append(SESSION, Cancel(calls=("call-a",), reason="enough"))
    world.read_streams()
    assert why(world, "a").state == "ending"
    assert "enough" in told(world, "a")


def test_an_unknown_call_or_session_is_found_nowhere() -> None:
    world = opened(call("a"))
    assert world.core.why(Why(call="call-x"), world.now).calls == ()
    assert world.core.why(Why(call="call-a", session="other"), world.now).calls == ()
    assert len(world.core.why(Why(call="call-a", session="s"), world.now).calls) == 1
