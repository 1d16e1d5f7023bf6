from __future__ import annotations

from typing import Any

import pytest

from myna.actors.messages import (
    PROTOCOL,
    CallId,
    Cancel,
    Close,
    FormatKind,
    Input,
    Message,
    ModelCall,
    Objective,
    ObjectiveKind,
    Open,
    Output,
    ResponseFormat,
    Sampling,
    Segment,
    SessionId,
    Submit,
    Tenant,
    Text,
    Transform,
    TransformKind,
    Unwant,
    VarId,
    Want,
    WorkerId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.commands import Dispatch, Halt
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Ended, Heard, Led, Logged
from myna.actors.scheduler.nodes import CallState
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.memo import key_of
from tests.actors.scheduler.world import TENANT, ModelWorker, World

GREEDY = Sampling(temperature=0.0, max_tokens=8)


def call(name: str, *segments: Segment, sampling: Sampling = GREEDY, **options: Any) -> ModelCall:
    segments = (*(segments or (Text(text="What is it?"),)), Output(variables=(name,), name="answer", sampling=sampling))
    return ModelCall(id=f"c-{name}", messages=(Message(segments=segments),), **{"memoise": True} | options)


def known(variable: VarId) -> str:
    return {"x": "one", "y": "one", "z": "other"}.get(variable, "")


# --- what is identical ------------------------------------------------------------------------------------------------


def test_calls_are_identical_whatever_they_are_called() -> None:
    first = key_of(call("a", Input(variables=("x",), name="p")), TENANT, known)
    assert first is not None
    assert first == key_of(call("b", Input(variables=("y",), name="q"), priority=3, retries=0), TENANT, known)


@pytest.mark.parametrize(
    "other",
    [
        call("a", Input(variables=("z",))),
        call("a", Input(variables=("x",), joiner=" ")),
        call("a", Input(variables=("x", "x"))),
        call("a", Text(text="one")),
        call("a", Input(variables=("x",)), models=("large",)),
        call("a", Input(variables=("x",)), tool_choice="auto"),
        call("a", Input(variables=("x",)), sampling=Sampling(temperature=0.0, max_tokens=9)),
        call("a", Input(variables=("x",)), sampling=Sampling(seed=1, max_tokens=8)),
        ModelCall(
            id="c",
            messages=(
                Message(segments=(Input(variables=("x",)), Output(variables=("a",), sampling=GREEDY)), role="user"),
            ),
        ),
    ],
)
def test_whatever_decides_a_result_tells_calls_apart(other: ModelCall) -> None:
    assert key_of(other, TENANT, known) not in (None, key_of(call("a", Input(variables=("x",))), TENANT, known))


def test_transforms_formats_and_the_tenant_tell_calls_apart() -> None:
    def made(**options: Any) -> bytes | None:
        segments = (Text(text="x"), Output(variables=("a",), sampling=GREEDY, **options))
        return key_of(ModelCall(id="c", messages=(Message(segments=segments),)), TENANT, known)

    plain = made()
    assert made(transforms=(Transform(kind=TransformKind.STRIP),)) != plain
    assert made(format=ResponseFormat(kind=FormatKind.JSON_OBJECT)) != plain
    assert key_of(call("a"), Tenant("other"), known) != key_of(call("a"), TENANT, known)


def test_what_is_not_determined_or_not_known_is_identical_to_nothing() -> None:
    assert key_of(call("a", sampling=Sampling()), TENANT, known) is None
    assert key_of(call("a", Input(variables=("unknown",))), TENANT, known) is None


# --- in the scheduler -------------------------------------------------------------------------------------------------


class Play:
    """A scheduler with one session after another, whose values have contents."""

    def __init__(self, *, workers: int = 1, capacity: int = 8, policies: Policies | None = None) -> None:
        self.core = SchedulerCore(policies)
        self.now = 1.0
        self.commands: list[Any] = []
        self.feed(Led("s", 1, self.now))
        self.workers = [ModelWorker(WorkerId(f"w{n}"), capacity) for n in range(workers)]
        for worker in self.workers:
            self.feed(Heard(worker.announce(), self.now))

    def feed(self, event: Any) -> None:
        self.commands += self.core.handle(event)
        self.core.check()

    def log(self, session: str, *entries: Any) -> None:
        for entry in entries:
            self.feed(Logged(TENANT, SessionId(session), entry, self.now))

    def submit(self, session: str, *calls: ModelCall) -> None:
        if (TENANT, SessionId(session)) not in self.core.sessions:
            self.log(session, Open(protocol=PROTOCOL))
        self.log(session, Submit(calls=calls))

    def value(self, session: str, variable: str, content: str = "d1") -> None:
        key = (TENANT, SessionId(session), VarId(variable))
        self.feed(Ended(*key, OutcomeStatus.VALUE, 1, self.now, characters=4, content=content))

    def runs(self) -> list[tuple[str, str, str | None]]:
        """What was dispatched since the last look: session, call, and the session of the source."""
        found = [c.run for c in self.commands if isinstance(c, Dispatch)]
        self.commands = []
        return [(r.session, r.call.id, r.source.session if r.source else None) for r in found]

    def state(self, session: str, name: str) -> CallState:
        return self.core.sessions[TENANT, SessionId(session)].graph.calls[CallId(f"c-{name}")].state


def test_identical_calls_of_several_sessions_are_computed_once_and_then_copied() -> None:
    play = Play()
    for session in ("s", "u", "v"):
        play.submit(session, call("a"))
    assert play.runs() == [("s", "c-a", None)]
    play.value("s", "a")
    assert play.runs() == [("u", "c-a", "s"), ("v", "c-a", "s")]
    play.value("u", "a")
    play.value("v", "a")
    play.submit("w", call("b"))
    assert play.runs() == [("w", "c-b", "s")]


def test_what_depends_on_a_copied_result_goes_on_as_if_it_had_been_computed() -> None:
    play = Play()
    for session in ("s", "u"):
        play.submit(session, call("a"), call("b", Text(text="Go on: "), Input(variables=("a",))))
    assert len(play.runs()) == 1
    play.value("s", "a")
    assert play.runs() == [("u", "c-a", "s"), ("s", "c-b", None)]
    play.value("u", "a")
    assert play.runs() == [], "it follows the other session's"
    play.value("s", "b", "d2")
    assert play.runs() == [("u", "c-b", "s")]


def test_copies_take_no_capacity_and_wait_for_none() -> None:
    play = Play(capacity=1)
    play.submit("s", call("a"))
    play.value("s", "a")
    play.runs()
    play.submit("s", call("x", Text(text="another")), call("y", Text(text="a third")))
    play.submit("u", call("a"))
    assert play.runs() == [("s", "c-x", None), ("u", "c-a", "s")]
    assert play.core.status(play.now).workers[0].running == 2
    play.value("s", "x", "d3")
    assert play.runs() == [("s", "c-y", None)]


def test_a_leader_that_is_cancelled_hands_over_to_the_next() -> None:
    play = Play()
    for session in ("s", "u", "v"):
        play.submit(session, call("a"))
    play.runs()
    play.log("s", Cancel())
    assert [type(c) for c in play.commands[:1]] == [Halt]
    assert play.runs() == [("u", "c-a", None)]
    play.value("u", "a")
    assert play.runs() == [("v", "c-a", "u")]


def test_a_leader_that_nobody_needs_any_more_hands_over_too() -> None:
    play = Play()
    play.log("s", Open(protocol=PROTOCOL, lazy=True))
    play.submit("s", call("a"))
    play.log("s", Want(variables=("a",)))
    play.submit("u", call("a"))
    assert play.runs() == [("s", "c-a", None)]
    play.log("s", Unwant(variables=("a",)))
    assert play.runs() == [("u", "c-a", None)]
    play.log("s", Want(variables=("a",)))
    assert play.runs() == [("s", "c-a", None)], "it may have streamed: it goes on for itself"


def test_a_follower_that_is_cancelled_follows_no_more() -> None:
    play = Play()
    play.submit("s", call("a"))
    play.submit("u", call("a"))
    play.runs()
    play.log("u", Cancel())
    play.value("s", "a")
    assert play.runs() == []


def test_results_of_a_closed_session_are_not_taken_but_a_copy_of_them_is() -> None:
    play = Play()
    play.submit("s", call("a"))
    play.value("s", "a")
    play.submit("u", call("a"))
    play.value("u", "a")
    play.runs()
    play.log("s", Close())
    play.submit("v", call("a"))
    assert play.runs() == [("v", "c-a", "u")]
    play.value("v", "a")
    play.log("u", Close())
    play.log("v", Close())
    play.submit("w", call("a"))
    assert play.runs() == [("w", "c-a", None)]


def test_a_copy_that_fails_is_computed_and_costs_no_try() -> None:
    world = World()
    world.join("w0", 4)
    world.read_mail()
    for name in ("s", "u"):
        key = (TENANT, SessionId(name))
        world.append(key, Open(protocol=PROTOCOL))
        world.append(key, Submit(calls=(call("a", retries=0),)))
    world.read_streams()
    (worker,) = world.workers.values()
    world.carry_out_all()
    world.take_orders(worker)
    world.store((TENANT, SessionId("s")), VarId("a"), None, 1)
    world.read_streams()
    world.carry_out_all()
    world.take_orders(worker)
    copy = (TENANT, SessionId("u"), CallId("c-a"))
    assert worker.held[copy].source is not None
    world.fail(worker, copy, retryable=True)
    world.read_mail()
    world.carry_out_all()
    world.take_orders(worker)
    assert worker.held[copy].source is None
    node = world.core.sessions[copy[:2]].graph.calls[copy[2]]
    assert (node.state, node.tries) == (CallState.RUNNING, 0)


def test_a_leader_is_needed_for_what_its_followers_are_needed_for() -> None:
    play = Play(capacity=1)
    play.submit("s", call("x", Text(text="first")), call("y", Text(text="second")), call("a"))
    play.submit("u", call("a", objective=Objective(kind=ObjectiveKind.LATENCY)))
    assert play.runs() == [("s", "c-x", None)]
    play.value("s", "x", "d2")
    assert play.runs() == [("s", "c-a", None)]


def test_nothing_is_shared_where_it_was_not_asked_for_or_is_switched_off() -> None:
    play = Play()
    play.submit("s", call("a", memoise=False))
    play.submit("u", call("a", memoise=False))
    assert len(play.runs()) == 2
    off = Play(policies=Policies(memoisation=False))
    off.submit("s", call("a"))
    off.submit("u", call("a"))
    assert len(off.runs()) == 2


def test_nothing_is_kept_when_all_sessions_are_closed() -> None:
    play = Play()
    for session in ("s", "u"):
        play.submit(session, call("a"))
    play.value("s", "a")
    for session in ("s", "u"):
        play.log(session, Close())
    play.value("u", "a")
    assert not play.core.planner.memo._entries
    assert not play.core.planner.memo._held
