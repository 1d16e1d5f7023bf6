"""Which values of a session are awaited, and when they must be asked for."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from myna.actors.messages import VarId
from myna.sdk import readers
from myna.sdk.readers import Lost, Tick

FIRST_GET = 2.0
"""Seconds until a value is asked for that was listened for from the start."""
PROBE_AFTER = 8.0
"""Back-off from which a reader also asks whether the session still exists, and how often at most, in seconds."""
FEW = 16
"""Variables awaited at once, up to which a foreign session's values are subscribed to one by one."""


# --- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Somebody waits for a variable. `fresh`: it is listened for since before it could have a value."""

    variable: VarId
    now: float
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Nobody waits for a variable any more."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Found:
    """A variable has its outcome."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Missing:
    """A get found nothing, or (`answered` is False) got no answer."""

    variable: VarId
    now: float
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Listening:
    """The server knows a subscription: for one variable, or (None) for all of the session."""

    variable: VarId | None
    now: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The session has ended: what has no value now will have none."""

    now: float


ValueEvent = Wanted | Unwanted | Found | Missing | Listening | Lost | Gone | Tick


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listen:
    """Subscribe to a variable, or (None) to all of the session."""

    variable: VarId | None


@dataclass(frozen=True, slots=True)
class Unlisten:
    """End the subscription to one variable."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Get:
    """Get a variable's outcome directly."""

    variable: VarId


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether the session still exists."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell whoever waits that the session has ended."""

    variable: VarId


ValueCommand = Listen | Unlisten | Get | Probe | GiveUp


@dataclass(slots=True)
class _Wait:
    back_off: float = field(default_factory=lambda: readers.BACK_OFF)
    due: float | None = None
    getting: bool = False
    listening: bool = False
    final: bool = False


@dataclass(slots=True)
class ValueReader:
    """What is awaited in one session. `listens`: all its values are subscribed to already."""

    listens: bool
    _waits: dict[VarId, _Wait] = field(default_factory=dict)
    _heap: list[tuple[float, VarId]] = field(default_factory=list)
    _probe_at: float = 0.0
    _asked_all: bool = False
    _lossy: bool = False

    @property
    def due(self) -> float | None:
        """When the next tick is needed."""
        while self._heap and self._stale(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    @property
    def waiting(self) -> int:
        """How many variables are awaited."""
        return len(self._waits)

    def handle(self, event: ValueEvent) -> list[ValueCommand]:
        """What is to be done about `event`."""
        match event:
            case Wanted():
                return self._wanted(event)
            case Unwanted(variable) | Found(variable):
                return self._forget(variable)
            case Missing():
                return self._missing(event)
            case Listening(variable=None):
                return self._listening_to_all()
            case Listening(variable=variable):
                return self._get([variable] if variable in self._waits else [])
            case Lost():
                self._lossy = True
                return self._get(list(self._waits))
            case Gone():
                return self._gone()
            case Tick(now):
                return self._tick(now)

    def _wanted(self, event: Wanted) -> list[ValueCommand]:
        if event.variable in self._waits:
            return []
        wait = self._waits[event.variable] = _Wait()
        if self.listens:
            if not event.fresh or self._lossy:
                return self._get([event.variable])
            wait.back_off = 2 * FIRST_GET
            self._schedule(event.variable, wait, event.now + FIRST_GET)
            return []
        if self._asked_all:
            return []
        if len(self._waits) > FEW:
            self._asked_all = True
            return [Listen(None)]
        wait.listening = True
        return [Listen(event.variable)]

    def _forget(self, variable: VarId | None) -> list[ValueCommand]:
        wait = self._waits.pop(variable, None) if variable is not None else None
        return [Unlisten(variable)] if wait is not None and wait.listening and variable is not None else []

    def _missing(self, event: Missing) -> list[ValueCommand]:
        wait = self._waits.get(event.variable)
        if wait is None:
            return []
        wait.getting = False
        if wait.final and event.answered:
            return [*self._forget(event.variable), GiveUp(event.variable)]
        self._schedule(event.variable, wait, event.now + wait.back_off)
        wait.back_off = min(wait.back_off * 2, readers.LONGEST_BACK_OFF)
        return []

    def _listening_to_all(self) -> list[ValueCommand]:
        self.listens = True
        commands: list[ValueCommand] = []
        for variable, wait in self._waits.items():
            if wait.listening:
                wait.listening = False
                commands.append(Unlisten(variable))
        return commands + self._get(list(self._waits))

    def _gone(self) -> list[ValueCommand]:
        for wait in self._waits.values():
            wait.final = True
        return self._get(list(self._waits))

    def _tick(self, now: float) -> list[ValueCommand]:
        ready: list[VarId] = []
        while (due := self.due) is not None and due <= now:
            variable = heapq.heappop(self._heap)[1]
            self._waits[variable].due = None
            ready.append(variable)
        commands = self._get(ready)
        if now >= self._probe_at and any(self._waits[v].back_off >= PROBE_AFTER for v in ready):
            self._probe_at = now + PROBE_AFTER
            commands.append(Probe())
        return commands

    def _get(self, variables: Iterable[VarId | None]) -> list[ValueCommand]:
        commands: list[ValueCommand] = []
        for variable in variables:
            if variable is None or self._waits[variable].getting:
                continue
            wait = self._waits[variable]
            wait.getting, wait.due = True, None
            commands.append(Get(variable))
        return commands

    def _schedule(self, variable: VarId, wait: _Wait, due: float) -> None:
        wait.due = due
        heapq.heappush(self._heap, (due, variable))

    def _stale(self, due: float, variable: VarId) -> bool:
        wait = self._waits.get(variable)
        return wait is None or wait.due != due
