"""The core of the supervisor: events in, commands out; no process, clock or file is touched here (Law 4).

A child starts when the children that it needs are ready. One that dies is started again, with back-off; one that dies
quickly too often, or says by its exit status that trying again is useless, ends the whole machine with its last log
lines as reason. A stop goes rank by rank, highest first: everybody of a rank is asked to end, is killed when its grace
is over, and only when all of a rank are gone comes the next. So a stop takes at most the sum of the graces.

    waiting -> starting -> launched -> ready        (exit) -> backing off -> starting ...
    any of them, on a stop:  -> stopping -> gone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

EXIT_USELESS = 2
"""Exit status of a child when starting it again can't help: wrong settings (see `myna.actors.process`)."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep alive. Times in seconds; `start_timeout` None waits for ever (fetching a model takes time)."""

    name: str
    needs: tuple[str, ...] = ()
    rank: int = 0
    grace: float = 10.0
    start_timeout: float | None = 60.0


@dataclass(frozen=True, slots=True)
class Policy:
    """When to try again: after the n-th quick death in a row in `first_delay * 2**(n-1)`, at most `longest_delay` s."""

    first_delay: float = 0.2
    longest_delay: float = 10.0
    quick: float = 10.0
    give_up_after: int = 5


# --- Events: what happened, and when (seconds of any steady clock) ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The machine is to run."""

    time: float


@dataclass(frozen=True, slots=True)
class Launched:
    """A child's process exists."""

    time: float
    name: str
    incarnation: int
    pid: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A child says that it does its work."""

    time: float
    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A child's process is gone, or could not be started (`status` None). Negative: by that signal."""

    time: float
    name: str
    incarnation: int
    status: int | None
    last_lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """The time asked for by `Wake` has come, or any other moment."""

    time: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants the machine to end."""

    time: float


Event = Begin | Launched | Ready | Exited | Tick | Stop

# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start this child's process."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask this child to end: SIGTERM."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End this child: SIGKILL."""

    name: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Send a `Tick` at this time."""

    time: float


@dataclass(frozen=True, slots=True)
class AllReady:
    """Every child is ready, for the first time."""


@dataclass(frozen=True, slots=True)
class Restarting:
    """For the log: a child died and will be started again in `delay` seconds."""

    name: str
    status: int | None
    delay: float


@dataclass(frozen=True, slots=True)
class Done:
    """No process is left. `failure` says why the machine gave up, None if it was asked to stop."""

    failure: str | None


Command = Start | Terminate | Kill | Wake | AllReady | Restarting | Done


# --- State ------------------------------------------------------------------------------------------------------------


class State(StrEnum):
    """Where a child stands."""

    WAITING = "waiting"
    STARTING = "starting"
    LAUNCHED = "launched"
    READY = "ready"
    BACKING_OFF = "backing off"
    STOPPING = "stopping"
    GONE = "gone"


ALIVE = frozenset({State.STARTING, State.LAUNCHED, State.READY, State.STOPPING})
"""States in which a process exists or is about to."""


@dataclass(slots=True)
class _Slot:
    """One child's history. `until` is when its state runs out: the back-off, the start or the grace."""

    child: Child
    state: State = State.WAITING
    incarnation: int = 0
    pid: int | None = None
    until: float | None = None
    ready_at: float | None = None
    quick_deaths: int = 0
    overdue: bool = False


@dataclass(slots=True)
class Supervisor:
    """See the module's law. `handle` is its only door."""

    children: Sequence[Child]
    policy: Policy = field(default_factory=Policy)
    _slots: dict[str, _Slot] = field(init=False)
    _stopping: bool = False
    _announced: bool = False
    _done: bool = False
    _failure: str | None = None

    def __post_init__(self) -> None:
        """Refuse children that could never start."""
        self._slots = {child.name: _Slot(child) for child in self.children}
        if len(self._slots) != len(self.children):
            raise ValueError("two children have the same name")
        known: set[str] = set()
        for child in self.children:
            if missing := set(child.needs) - known:
                raise ValueError(f"{child.name} needs {', '.join(sorted(missing))}, which must stand before it")
            known.add(child.name)

    def handle(self, event: Event) -> list[Command]:
        """What to do now that `event` happened."""
        match event:
            case Begin() | Tick():
                commands: list[Command] = []
            case Launched():
                commands = self._launched(event)
            case Ready():
                commands = self._ready(event)
            case Exited():
                commands = self._exited(event)
            case Stop():
                commands = self._stop()
            case _:
                assert_never(event)
        return commands + self._advance(event.time)

    def states(self) -> dict[str, tuple[State, int | None]]:
        """State and process id of every child."""
        return {name: (slot.state, slot.pid) for name, slot in self._slots.items()}

    # --- single events ---

    def _current(self, name: str, incarnation: int) -> _Slot | None:
        slot = self._slots[name]
        return slot if slot.incarnation == incarnation and slot.state in ALIVE else None

    def _launched(self, event: Launched) -> list[Command]:
        slot = self._current(event.name, event.incarnation)
        if slot is None:
            return []
        slot.pid = event.pid
        if slot.state is State.STOPPING:  # the stop came while its process was being made
            slot.until = event.time + slot.child.grace
            return [Terminate(event.name)]
        timeout = slot.child.start_timeout
        slot.state, slot.until = State.LAUNCHED, None if timeout is None else event.time + timeout
        return []

    def _ready(self, event: Ready) -> list[Command]:
        slot = self._current(event.name, event.incarnation)
        if slot is None or slot.state is not State.LAUNCHED:
            return []
        slot.state, slot.ready_at, slot.until = State.READY, event.time, None
        if self._announced or any(s.state is not State.READY for s in self._slots.values()):
            return []
        self._announced = True
        return [AllReady()]

    def _exited(self, event: Exited) -> list[Command]:
        slot = self._current(event.name, event.incarnation)
        if slot is None:
            return []
        slot.pid, slot.until = None, None
        if self._stopping:
            slot.state = State.GONE
            return []
        lived = 0.0 if slot.ready_at is None else event.time - slot.ready_at
        slot.quick_deaths = slot.quick_deaths + 1 if lived < self.policy.quick else 0
        overdue, slot.overdue, slot.ready_at = slot.overdue, False, None
        if event.status == EXIT_USELESS or slot.quick_deaths >= self.policy.give_up_after:
            slot.state = State.GONE
            self._failure = _reason(slot, event, overdue=overdue)
            return self._stop()
        delay = self._delay(slot.quick_deaths)
        slot.state, slot.until = State.BACKING_OFF, event.time + delay
        return [Restarting(event.name, event.status, delay)]

    def _delay(self, quick_deaths: int) -> float:
        if quick_deaths == 0:
            return 0.0
        return min(self.policy.longest_delay, self.policy.first_delay * 2.0 ** (quick_deaths - 1))

    def _stop(self) -> list[Command]:
        self._stopping = True
        for slot in self._slots.values():
            if slot.state not in ALIVE:
                slot.state, slot.until = State.GONE, None
        return []

    # --- what follows from the state and the time ---

    def _advance(self, now: float) -> list[Command]:
        if self._done:
            return []
        commands = self._advance_stop(now) if self._stopping else self._advance_run(now)
        if self._stopping and all(slot.state is State.GONE for slot in self._slots.values()):
            self._done = True
            return [*commands, Done(self._failure)]
        times = [slot.until for slot in self._slots.values() if slot.until is not None]
        return [*commands, Wake(min(times))] if times else commands

    def _advance_run(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for slot in self._slots.values():
            due = slot.until is not None and slot.until <= now
            may_start = slot.state is State.WAITING and self._may_start(slot)
            if may_start or (slot.state is State.BACKING_OFF and due):
                commands.append(self._start(slot))
            elif slot.state is State.LAUNCHED and due:
                slot.until, slot.overdue = None, True
                commands.append(Kill(slot.child.name))
        return commands

    def _may_start(self, slot: _Slot) -> bool:
        return all(self._slots[name].state is State.READY for name in slot.child.needs)

    def _start(self, slot: _Slot) -> Start:
        slot.state, slot.incarnation, slot.until = State.STARTING, slot.incarnation + 1, None
        return Start(slot.child.name, slot.incarnation)

    def _advance_stop(self, now: float) -> list[Command]:
        alive = [slot for slot in self._slots.values() if slot.state in ALIVE]
        rank = max((slot.child.rank for slot in alive), default=0)
        commands: list[Command] = []
        for slot in alive:
            if slot.child.rank != rank:
                slot.until = None
            elif slot.state is not State.STOPPING:
                slot.state, slot.until = State.STOPPING, None
                if slot.pid is not None:  # else `_launched` comes and asks it
                    slot.until = now + slot.child.grace
                    commands.append(Terminate(slot.child.name))
            elif slot.until is not None and slot.until <= now:
                slot.until = None
                commands.append(Kill(slot.child.name))
        return commands


def _reason(slot: _Slot, event: Exited, *, overdue: bool) -> str:
    match event.status:
        case None:
            how = "could not be started"
        case status if status < 0:
            how = f"was ended by signal {-status}"
        case status:
            how = f"ended with status {status}"
    if overdue:
        how = f"was not ready within {slot.child.start_timeout:g} s"
    often = f", {slot.quick_deaths} times in a row" if slot.quick_deaths > 1 else ""
    lines = "".join(f"\n  {line}" for line in event.last_lines)
    return f"{slot.child.name} {how}{often}" + (f"; it said last:{lines}" if lines else "")
