"""Contexts that will be read again: conversations and agents' loops, whose next call continues what the last one left.

Law: room that a conversation will need when it goes on is not given to others, so that more of them never begin than an engine
can remember, and computing prompts again never crowds out the work. How often calls of a function are continued, and how soon,
is learned; what does not come back in time is given up, so nothing waits for it for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from msgspec import Struct

from myna.actors.messages import Tenant, WorkerId
from myna.actors.scheduler.policies.prefixes import Chain

LIKELY = 0.5
"""Share of a function's calls that must be continued for their contexts to be kept room for."""
RARELY = 0.05
"""Share below which they are not kept at all."""
KNOWN = 20
"""Contexts after which a function's habit is known."""
TIMES = 3.0
"""A context is waited for so many times as long as its function's usually take to come back."""
SHORTEST, LONGEST = 1.0, 60.0
"""Seconds that one is waited for, at least and at most."""
FUNCTIONS = 10_000
"""Functions that are remembered."""
_WEIGHT = 0.1

Key = tuple[Tenant, str]
Room = Callable[[WorkerId, float], None]
"""Told of a change of the tokens that are kept on a worker."""


class Habit:
    """What calls of one function do: the share that is continued, and the mean seconds until then."""

    __slots__ = ("gap", "returns", "seen")

    def __init__(self) -> None:
        self.returns = 0.0
        self.gap = SHORTEST
        self.seen = 0

    @property
    def patience(self) -> float:
        """Seconds that a context is waited for."""
        return min(max(TIMES * self.gap, SHORTEST), LONGEST)


class _Left(Struct, gc=False):
    """A context as a call left it."""

    key: Key
    worker: WorkerId
    tokens: float
    kept: float
    at: float
    until: float


class Residents:
    """All contexts that may come back."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._habits: dict[Key, Habit] = {}
        self._left: dict[int, _Left] = {}
        self._alarms: list[tuple[float, int]] = []

    def left(self, chain: Chain, key: Key, worker: WorkerId, own: float, now: float) -> None:
        """A call has ended on a worker. `own`: tokens of its context that are not constants."""
        habit = self._habits.get(key)
        if habit is None:
            if len(self._habits) >= FUNCTIONS:
                del self._habits[next(iter(self._habits))]
            habit = self._habits[key] = Habit()
        name = chain.boundaries[-1].name
        if name in self._left:
            return
        until = now + habit.patience
        kept = own if habit.returns >= LIKELY else 0.0
        self._left[name] = _Left(key, worker, own, kept, now, until)
        heapq.heappush(self._alarms, (until, name))
        if kept:
            self._room(worker, kept)

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return bool(self._left)

    def where(self, chain: Chain) -> WorkerId | None:
        """The worker that has the context which a call continues."""
        if self._left:
            for boundary in reversed(chain.boundaries[: chain.prompt]):
                left = self._left.get(boundary.name)
                if left is not None:
                    return left.worker
        return None

    def began(self, chain: Chain, now: float) -> None:
        """A call begins: if it continues a context, that one is waited for no more."""
        if not self._left:
            return
        for boundary in reversed(chain.boundaries[: chain.prompt]):
            left = self._left.pop(boundary.name, None)
            if left is not None:
                habit = self._habits.get(left.key)
                if habit is not None:
                    habit.seen += 1
                    habit.returns += _WEIGHT * (1.0 - habit.returns)
                    habit.gap += _WEIGHT * (now - left.at - habit.gap)
                if left.kept:
                    self._room(left.worker, -left.kept)
                return

    def returns(self, key: Key) -> tuple[float, float] | None:
        """In how many seconds calls of a function are commonly continued, and for how many that is worth waiting: none, where
        they hardly ever are. None, where little is known."""
        habit = self._habits.get(key)
        if habit is None or habit.seen < KNOWN:
            return None
        return habit.gap, habit.patience if habit.returns > RARELY else 0.0

    def lost(self, worker: WorkerId) -> None:
        """A worker is gone, and what it had."""
        for name in [n for n, left in self._left.items() if left.worker == worker]:
            del self._left[name]

    def expire(self, now: float) -> None:
        """Contexts that have not come back in time."""
        alarms = self._alarms
        while alarms and alarms[0][0] <= now:
            until, name = heapq.heappop(alarms)
            left = self._left.get(name)
            if left is None or left.until != until:
                continue
            del self._left[name]
            habit = self._habits.get(left.key)
            if habit is not None:
                habit.seen += 1
                habit.returns -= _WEIGHT * habit.returns
            if left.kept:
                self._room(left.worker, -left.kept)
