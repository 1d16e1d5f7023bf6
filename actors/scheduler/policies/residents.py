"""Contexts that will be read again: conversations and agents' loops, whose next call continues what the last one left.

Law: room that a conversation will need when it goes on is not given to others, so that more of them never begin than an engine
can remember, and computing prompts again never crowds out the work. How often calls of a function are continued, and how soon,
is learned; what does not come back in time is given up, so nothing waits for it for ever. A prefix that several of them begin
with counts once. When they grow until they fill too much of an engine, some are parked, the smallest first: all of them would
drive each other out in turn, and each of them be computed again at each turn.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Hashable
from itertools import islice

from msgspec import Struct, field

from myna.actors.messages import Tenant, WorkerId
from myna.actors.scheduler.policies.prefixes import Boundary, Chain

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
SHARE = 0.85
"""Share of a worker's memory that is kept for contexts at most. The rest is for the calls that run."""
OVERDUE, LENT = 2.0, 0.1
"""Seconds that a call waits, at least, for room that its context can stay in, before it comes in without; and the share of a
worker's time that prompts of such calls may take, so that those for which room is kept lose little by them."""
LOOKED_AT = 64
"""Contexts, those that have waited longest, of which the smallest is parked."""
FUNCTIONS = 10_000
"""Functions that are remembered."""
_WEIGHT = 0.1

Key = tuple[Tenant, str]
Room = Callable[[WorkerId, float], None]
"""Told how many tokens are kept on a worker now."""


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


class _Context(Struct, gc=False):
    """A context as a call left it: what it begins with and may share with others, and tokens that are its own."""

    key: Key
    worker: WorkerId
    head: Boundary
    own: float
    kept: bool
    at: float
    until: float

    @property
    def tokens(self) -> float:
        """All of it."""
        return self.head.tokens + self.own


class _Kept(Struct):
    """What is kept on one worker: tokens, the heads with the number of contexts that begin so, and the contexts that no call
    goes on with just now. `let_in`: until when no call comes in for whose context there is no room."""

    tokens: float = 0.0
    heads: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, _Context] = field(default_factory=dict)
    let_in: float = float("-inf")


class Residents:
    """All contexts that may come back, and those that calls go on with: the cost of such a call is what it adds."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._habits: dict[Key, Habit] = {}
        self._left: dict[int, _Context] = {}
        self._running: dict[Hashable, _Context] = {}
        self._kept: dict[WorkerId, _Kept] = {}
        self._alarms: list[tuple[float, int]] = []

    def left(
        self, call: Hashable, chain: Chain, head: Boundary, key: Key, worker: WorkerId, memory: float | None, now: float
    ) -> None:
        """A call has ended on a worker that can hold so many tokens. `head`: what its context begins with and others may too."""
        self.ended(call)
        habit = self._habits.get(key)
        if habit is None:
            if len(self._habits) >= FUNCTIONS:
                del self._habits[next(iter(self._habits))]
            habit = self._habits[key] = Habit()
        name = chain.boundaries[-1].name
        if name in self._left:
            return
        until = now + habit.patience
        context = _Context(key, worker, head, chain.total - head.tokens, habit.returns >= LIKELY, now, until)
        self._left[name] = context
        heapq.heappush(self._alarms, (until, name))
        if context.kept:
            kept = self._keep(context)
            kept.waiting[name] = context
            if memory is not None:
                self._park(kept, SHARE * memory)

    def ended(self, call: Hashable) -> None:
        """A call has ended, or runs no more: what it went on with is not kept for it."""
        if self._running:
            context = self._running.pop(call, None)
            if context is not None:
                self._release(context)

    def _park(self, kept: _Kept, most: float) -> None:
        """Give up what is too much: those that cost least to compute again. They stay the smallest while others go on."""
        waiting = kept.waiting
        while kept.tokens > most and len(waiting) > 1:
            name = min(islice(waiting, LOOKED_AT), key=lambda n: waiting[n].tokens)
            del self._left[name]
            self._release(waiting.pop(name))

    def _keep(self, context: _Context) -> _Kept:
        kept = self._kept.get(context.worker)
        if kept is None:
            kept = self._kept[context.worker] = _Kept()
        name = context.head.name
        readers = kept.heads.get(name, 0)
        kept.heads[name] = readers + 1
        self._change(kept, context.worker, context.own if readers else context.tokens)
        return kept

    def _release(self, context: _Context) -> None:
        kept = self._kept[context.worker]
        name = context.head.name
        readers = kept.heads.pop(name) - 1
        if readers:
            kept.heads[name] = readers
        self._change(kept, context.worker, -context.own if readers else -context.tokens)

    def _change(self, kept: _Kept, worker: WorkerId, tokens: float) -> None:
        kept.tokens = max(0.0, kept.tokens + tokens) if kept.heads else 0.0
        self._room(worker, kept.tokens)

    def stays(self, key: Key) -> bool:
        """Whether room would be kept for what a call of this function leaves."""
        habit = self._habits.get(key)
        return habit is not None and habit.returns >= LIKELY

    def overdue(self, worker: WorkerId, since: float, now: float) -> bool:
        """Whether a call that has been ready since then need wait no longer for room that its context can stay in."""
        kept = self._kept.get(worker)
        return now - since > OVERDUE and (kept is None or now > kept.let_in)

    def let_in(self, worker: WorkerId, until: float) -> None:
        """Such a call goes there, and no other until then."""
        kept = self._kept.get(worker)
        if kept is not None:
            kept.let_in = until

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

    def began(self, call: Hashable, chain: Chain, now: float) -> None:
        """A call begins: if it continues a context, that one is waited for no more, and stays kept until the call ends."""
        self.ended(call)  # it may have been tried before
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
                    del self._kept[left.worker].waiting[boundary.name]
                    self._running[call] = left
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
        for call in [c for c, context in self._running.items() if context.worker == worker]:
            del self._running[call]
        if self._kept.pop(worker, None) is not None:
            self._room(worker, 0.0)

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
                del self._kept[left.worker].waiting[name]
                self._release(left)

    def check(self) -> None:
        """Raise AssertionError if the books contradict each other."""
        tokens, counts = dict.fromkeys(self._kept, 0.0), Counter[WorkerId]()
        heads = set[tuple[WorkerId, int]]()
        for context in (*(c for c in self._left.values() if c.kept), *self._running.values()):
            new = (context.worker, context.head.name) not in heads
            heads.add((context.worker, context.head.name))
            tokens[context.worker] += context.tokens if new else context.own
            counts[context.worker] += 1
        for worker, kept in self._kept.items():
            assert abs(kept.tokens - tokens[worker]) < 1e-6 * (1 + tokens[worker]), f"{worker} miscounts what is kept"
            assert sum(kept.heads.values()) == counts[worker], f"{worker} miscounts the contexts that are kept"
            waiting = {n: c for n, c in self._left.items() if c.kept and c.worker == worker}
            assert kept.waiting == waiting, f"{worker} keeps others than those that are waited for"
