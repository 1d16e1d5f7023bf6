from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import structs

from myna.actors.messages import (
    PROTOCOL,
    Cancel,
    Close,
    Declare,
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
    Text,
    Unwant,
    VarId,
    Want,
    Why,
)
from myna.actors.scheduler.commands import Dispatch, Halt, SayHello
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Heard, Led, Logged, Tick
from myna.actors.scheduler.state import HAUNTED
from tests.actors.scheduler.seen import deliver
from tests.actors.scheduler.world import SESSION, TENANT, World, opened
from tests.actors.stage import call


def test_before_it_leads_a_scheduler_commands_nothing() -> None:
    world = opened(call("a"), call("bad", "ghost"))
    deliver(world)
    core = SchedulerCore()
    for session, entry in world.log:
        assert core.handle(Logged(*session, entry, 1.0)) == []
    for message in (w.announce() for w in world.workers.values()):
        assert core.handle(Heard(message, 1.0)) == []
    assert core.handle(Tick(2.0)) == []


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


def _fields(message: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


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
