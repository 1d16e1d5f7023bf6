from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from myna.actors.machine.supervisor import (
    ALIVE,
    EXIT_USELESS,
    AllReady,
    Begin,
    Child,
    Command,
    Done,
    Exited,
    Kill,
    Launched,
    Policy,
    Ready,
    Restarting,
    Start,
    State,
    Stop,
    Supervisor,
    Terminate,
    Tick,
    Wake,
)

C = TypeVar("C")

CHILDREN = [
    Child("nats", rank=0, grace=5.0),
    Child("scheduler", needs=("nats",), rank=1, grace=5.0),
    Child("engine", needs=("nats",), rank=2, grace=15.0, start_timeout=None),
]
POLICY = Policy(first_delay=0.5, longest_delay=4.0, quick=10.0, give_up_after=4)


def started(time: float = 0.0) -> Supervisor:
    """A supervisor whose three children are ready, as incarnation 1 with process ids 101 to 103."""
    core = Supervisor(CHILDREN, POLICY)
    core.handle(Begin(time))
    for pid, child in enumerate(CHILDREN, 101):
        core.handle(Launched(time, child.name, 1, pid))
        core.handle(Ready(time, child.name, 1))
    return core


def of(kind: type[C], commands: Iterable[Command]) -> list[C]:
    return [command for command in commands if isinstance(command, kind)]


def test_a_child_starts_only_when_those_that_it_needs_are_ready() -> None:
    core = Supervisor(CHILDREN, POLICY)
    assert core.handle(Begin(0.0)) == [Start("nats", 1)]
    assert of(Start, core.handle(Launched(0.1, "nats", 1, 101))) == []
    assert of(Start, core.handle(Ready(0.2, "nats", 1))) == [Start("scheduler", 1), Start("engine", 1)]


def test_all_ready_is_said_once_even_after_a_restart() -> None:
    core = Supervisor(CHILDREN, POLICY)
    said = core.handle(Begin(0.0))
    for child in CHILDREN:
        said += core.handle(Launched(0.0, child.name, 1, 1)) + core.handle(Ready(0.0, child.name, 1))
    said += core.handle(Exited(100.0, "engine", 1, 1))
    said += core.handle(Launched(100.0, "engine", 2, 2)) + core.handle(Ready(100.0, "engine", 2))
    assert of(AllReady, said) == [AllReady()]


def test_a_child_that_lived_long_is_started_again_at_once() -> None:
    commands = started().handle(Exited(1000.0, "scheduler", 1, -9))
    assert Restarting("scheduler", -9, 0.0) in commands
    assert Start("scheduler", 2) in commands


def test_quick_deaths_wait_longer_each_time_and_then_end_the_machine_with_the_reason() -> None:
    core = started()
    time, delays = 1.0, []
    for incarnation in range(1, 4):
        commands = core.handle(Exited(time, "engine", incarnation, 1, ("no such model",)))
        delays += [command.delay for command in of(Restarting, commands)]
        (wake,) = of(Wake, commands)
        assert of(Start, core.handle(Tick(wake.time - 0.01))) == []
        assert of(Start, core.handle(Tick(wake.time))) == [Start("engine", incarnation + 1)]
        time = wake.time + 1.0
        core.handle(Launched(time, "engine", incarnation + 1, 200 + incarnation))
    assert delays == [0.5, 1.0, 2.0]
    commands = core.handle(Exited(time, "engine", 4, 1, ("no such model",)))
    assert of(Terminate, commands) == [Terminate("scheduler")]
    core.handle(Exited(time, "scheduler", 1, 0))
    (done,) = of(Done, core.handle(Exited(time, "nats", 1, 0)))
    assert done.failure is not None
    assert "engine ended with status 1, 4 times in a row" in done.failure
    assert "no such model" in done.failure


def test_a_child_that_says_that_it_is_useless_is_not_started_again() -> None:
    commands = started().handle(Exited(1.0, "engine", 1, EXIT_USELESS, ("model refused: layer 3",)))
    assert of(Start, commands) == []
    assert of(Terminate, commands) == [Terminate("scheduler")]


def test_a_child_that_is_never_ready_is_killed_and_the_reason_says_so() -> None:
    core = Supervisor([Child("a", start_timeout=3.0)], Policy(give_up_after=1))
    core.handle(Begin(0.0))
    assert core.handle(Launched(1.0, "a", 1, 1)) == [Wake(4.0)]
    assert core.handle(Tick(4.0)) == [Kill("a")]
    (done,) = of(Done, core.handle(Exited(4.1, "a", 1, -9)))
    assert done.failure == "a was not ready within 3 s"


def test_a_stop_ends_engines_first_then_the_scheduler_and_nats_last() -> None:
    core = started()
    assert of(Terminate, core.handle(Stop(0.0))) == [Terminate("engine")]
    assert of(Terminate, core.handle(Exited(1.0, "engine", 1, 0))) == [Terminate("scheduler")]
    assert of(Terminate, core.handle(Exited(2.0, "scheduler", 1, 0))) == [Terminate("nats")]
    assert core.handle(Exited(3.0, "nats", 1, 0)) == [Done(None)]


def test_who_does_not_end_within_its_grace_is_killed() -> None:
    core = started()
    core.handle(Stop(0.0))
    assert of(Kill, core.handle(Tick(14.9))) == []
    assert of(Kill, core.handle(Tick(15.0))) == [Kill("engine")]


def test_a_stop_while_a_process_is_being_made_ends_it_as_soon_as_it_exists() -> None:
    core = Supervisor(CHILDREN, POLICY)
    core.handle(Begin(0.0))
    assert core.handle(Stop(0.1)) == []
    assert core.handle(Launched(0.2, "nats", 1, 101)) == [Terminate("nats"), Wake(5.2)]
    assert core.handle(Exited(0.3, "nats", 1, 0)) == [Done(None)]


def test_what_an_earlier_incarnation_says_is_ignored() -> None:
    core = started()
    core.handle(Exited(100.0, "engine", 1, 1))
    core.handle(Launched(100.0, "engine", 2, 300))
    core.handle(Ready(100.1, "engine", 1))
    core.handle(Exited(100.1, "engine", 1, 1))
    assert core.states()["engine"] == (State.LAUNCHED, 300)


def test_a_child_that_could_never_start_is_refused() -> None:
    with pytest.raises(ValueError, match="a needs b, which must stand before it"):
        Supervisor([Child("a", needs=("b",)), Child("b")])
    with pytest.raises(ValueError, match="the same name"):
        Supervisor([Child("a"), Child("a")])


class World(RuleBasedStateMachine):
    """Real children may be launched, become ready, die and be killed in any order; the core must keep its promises."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Supervisor(CHILDREN, POLICY)
        self.now = 0.0
        self.made: dict[str, int] = {}  # started, its process is being made: incarnation
        self.alive: dict[str, int] = {}  # incarnation of the living process
        self.asked: set[str] = set()
        self.stopping = False
        self.done: Done | None = None
        self.wake: float | None = None
        self.obey(self.core.handle(Begin(0.0)))

    def obey(self, commands: list[Command]) -> None:
        self.wake = None
        for command in commands:
            match command:
                case Start(name, incarnation):
                    assert not self.stopping, "started after a stop"
                    assert name not in self.made, "two starts of one child"
                    assert name not in self.alive, "started beside its living self"
                    self.made[name] = incarnation
                case Terminate(name):
                    self.stopping = True
                    assert name in self.alive
                    higher = {c.name for c in CHILDREN if c.rank > self.rank(name)}
                    assert not higher & (self.alive.keys() | self.made.keys()), "asked before those that need it ended"
                    self.asked.add(name)
                case Kill(name):
                    assert name in self.alive
                case Wake(time):
                    assert time > self.now, "a wake in the past makes a busy loop"
                    self.wake = time
                case Done():
                    assert self.done is None
                    assert not self.alive
                    assert not self.made
                    self.done = command
                case _:
                    pass

    @staticmethod
    def rank(name: str) -> int:
        return next(child.rank for child in CHILDREN if child.name == name)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), works=st.booleans())
    def a_process_is_made(self, data: st.DataObject, works: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.made)))
        incarnation = self.made.pop(name)
        if works:
            self.alive[name] = incarnation
            self.obey(self.core.handle(Launched(self.now, name, incarnation, 1000 + incarnation)))
        else:
            self.obey(self.core.handle(Exited(self.now, name, incarnation, None, ("no memory",))))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def a_process_is_ready(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.obey(self.core.handle(Ready(self.now, name, self.alive[name])))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), status=st.sampled_from([0, 1, -9, -15, EXIT_USELESS]))
    def a_process_ends(self, data: st.DataObject, status: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        incarnation = self.alive.pop(name)
        self.asked.discard(name)
        self.obey(self.core.handle(Exited(self.now, name, incarnation, status)))

    @rule(seconds=st.floats(0.01, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.obey(self.core.handle(Tick(self.now)))

    @precondition(lambda self: self.wake is not None)
    @rule()
    def the_alarm_rings(self) -> None:
        assert self.wake is not None
        self.now = max(self.now, self.wake)
        self.obey(self.core.handle(Tick(self.now)))

    @rule()
    def somebody_stops_it(self) -> None:
        self.stopping = True
        self.obey(self.core.handle(Stop(self.now)))

    @invariant()
    def the_core_knows_what_lives(self) -> None:
        believed = {name for name, (state, _) in self.core.states().items() if state in ALIVE}
        assert believed == self.alive.keys() | self.made.keys()

    def teardown(self) -> None:
        """Whatever has happened, a stop ends: each process dies at last when it is killed."""
        start = self.now
        self.stopping = True
        self.obey(self.core.handle(Stop(self.now)))
        for _ in range(50):
            if self.done:
                break
            while self.made:
                self.a_process_is_made_for_sure()
            if self.done is None and self.wake is not None:
                self.now = max(self.now, self.wake)
                commands = self.core.handle(Tick(self.now))
                self.obey(commands)
                for kill in of(Kill, commands):
                    incarnation = self.alive.pop(kill.name)
                    self.obey(self.core.handle(Exited(self.now, kill.name, incarnation, -9)))
            elif self.done is None:  # who was killed before and has not died yet
                name = next(iter(self.alive))
                self.obey(self.core.handle(Exited(self.now, name, self.alive.pop(name), -9)))
        assert self.done is not None, "a stop that never ends"
        assert self.now - start <= sum(child.grace for child in CHILDREN) + 0.001

    def a_process_is_made_for_sure(self) -> None:
        name, incarnation = self.made.popitem()
        self.alive[name] = incarnation
        self.obey(self.core.handle(Launched(self.now, name, incarnation, 1)))


World.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyHistory = World.TestCase


@given(st.integers(1, 60))
@settings(deadline=None)
def test_a_delay_is_never_longer_than_the_longest(deaths: int) -> None:
    core = Supervisor([Child("a")], Policy(first_delay=0.3, longest_delay=7.0, give_up_after=1000))
    core.handle(Begin(0.0))
    for incarnation in range(1, deaths + 1):
        commands = core.handle(Exited(0.0, "a", incarnation, None))
        (restart,) = of(Restarting, commands)
        assert 0.0 < restart.delay <= 7.0
        core.handle(Tick(10.0))
        core.handle(Launched(10.0, "a", incarnation + 1, 1))
