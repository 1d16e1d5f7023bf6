"""How much an engine is given: as much as the strictest objective that it serves allows, and no earlier than it can begin.

Laws:
- An engine that runs paced work (somebody waits for each token) takes other work only while its mean step stays within the
  bound: `STRETCH` times its step alone, by its own measured step times, or the `tpot` that was asked for. No more engines are
  reserved so than paced work is a part of all work. Where no other engine serves the same, the bound is `SOLE` times its step
  alone, for there is nowhere else to go, and that only while paced calls run there; and one call of other work is always
  allowed, so that nothing waits for ever. What is not measured yet limits nothing.
- A prompt is handed over when the engine can begin it within `BACKLOG` seconds, where nobody else serves the same by the order
  of those that wait there. Until then it waits here, where a more urgent one may still pass it.
- Interference: a step that computes prompts takes several times as long as one that only draws tokens. Beside more than `MANY`
  pressing calls (whose own end is waited for) that go before it, a prompt of another call is followed by a rest, the longer the
  more those are: each of them would be delayed, for one call that goes after them. How many calls are delayed for one needs no
  unit of any machine. While an engine rests, it takes pressing calls: the rest is theirs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping

from msgspec import Struct

from myna.actors.scheduler.policies.backlog import Backlog
from myna.actors.scheduler.policies.steps import StepModel

STRETCH = 1.06
"""How much longer than alone a token may take beside others where somebody waits for it."""
SOLE = 4.0
"""The same, on an engine beside which no other serves the same. Less would keep the others waiting for long, and gain the paced
ones little: there are hardly ever moments without any of them to put other work into."""
HOLD = 30.0
"""Seconds for which an engine stays reserved after its last paced call: conversations go on."""
HALF_LIFE = 20.0
"""Seconds."""
BACKLOG = 0.25
"""Seconds of prompts not yet computed that an engine may have; with so many it is given no more until half of them are done."""
SOLE_BACKLOG = 0.5
"""The same of an engine beside which no other serves the same: no better place can come up, and it keeps the order itself."""
MANY = 12
"""Pressing calls on an engine beside which prompts are taken as they come: fewer would leave its steps too empty."""
CALM = 2.0
"""For so many more of them, prompts of other calls are taken at half the rate, for twice as many at a third, and so on."""
AWAITED = 3.0
"""So many times as many, for prompts of a group that somebody waits for."""


class Cost(Struct, frozen=True, gc=False):
    """What a call takes of an engine: KV tokens held, prompt tokens to compute, tokens to generate. `order`: its place among the
    prompts that wait there, the least first."""

    tokens: float
    prefill: float
    output: float
    paced: bool = False
    tpot: float | None = None
    pressing: bool = False
    order: float = 0.0
    awaited: bool = False

    @property
    def pressure(self) -> float:
        """Prompt tokens computed for each token generated: what it adds to the mean step, beside its own token."""
        return self.prefill / self.output if self.output > 1.0 else self.prefill


class Demanded:
    """How much work became ready of late, paced and patient, each halved every `HALF_LIFE` seconds: the part of the engines
    that is reserved for paced work is its part of the work."""

    __slots__ = ("_at", "_paced", "_patient")

    def __init__(self) -> None:
        self._at = 0.0
        self._paced = 0.0
        self._patient = 0.0

    def add(self, work: float, now: float, *, patient: bool) -> None:
        """A call became ready."""
        if now > self._at:
            left = 0.5 ** ((now - self._at) / HALF_LIFE)
            self._paced, self._patient, self._at = self._paced * left, self._patient * left, now
        if patient:
            self._patient += work
        else:
            self._paced += work

    def homes(self, workers: int) -> int:
        """How many of so many workers may be reserved: at least one, and not the last one while other work comes too."""
        total = self._paced + self._patient
        if self._patient < 0.01 * total or not total:
            return workers
        return max(1, min(workers - 1, round(workers * self._paced / total)))


class Occupancy:
    """What one engine holds, by the scheduler's own estimates."""

    __slots__ = (
        "_backlog",
        "_bounds",
        "_pressing",
        "busy_until",
        "home_until",
        "kept",
        "other",
        "paced",
        "pressure",
        "prompts",
        "rest_until",
        "steps",
        "tokens",
    )

    def __init__(self) -> None:
        self.steps = StepModel()
        self.tokens = 0.0
        self.kept = 0.0
        self.prompts = 0.0
        self.pressure = 0.0
        self.paced = 0
        self.other = 0
        self.home_until = 0.0
        self.busy_until = 0.0
        self.rest_until = 0.0
        self._bounds: list[float] = []
        self._backlog = Backlog()
        self._pressing: list[float] = []
        """The orders of its pressing calls."""

    def add(self, cost: Cost, now: float) -> None:
        """A call is dispatched to the engine."""
        self.tokens += cost.tokens
        self.prompts += cost.prefill
        self.pressure += cost.pressure
        if self.steps.measured:
            seconds = cost.prefill * self.steps.prompt_seconds
            self.busy_until = max(self.busy_until, now) + seconds
            self._backlog.add(cost.order, seconds, now)
            if self._pressing and not cost.pressing:
                before = bisect_right(self._pressing, cost.order)
                rest = 1.0 + max(0.0, before - MANY) / (CALM * AWAITED if cost.awaited else CALM)
                self.rest_until = max(self.rest_until, now) + seconds * rest
        if cost.pressing:
            insort(self._pressing, cost.order)
        if cost.paced:
            self.paced += 1
            if cost.tpot is not None:
                self._bounds.append(cost.tpot)
        else:
            self.other += 1

    def remove(self, cost: Cost, now: float) -> None:
        """A call has ended on the engine."""
        if cost.pressing:
            del self._pressing[bisect_left(self._pressing, cost.order)]
        if cost.paced:
            self.paced -= 1
            self.home_until = now + HOLD
            if cost.tpot is not None:
                self._bounds.remove(cost.tpot)
        else:
            self.other -= 1
        if self.paced or self.other:
            tokens, prompts, pressure = (
                self.tokens - cost.tokens,
                self.prompts - cost.prefill,
                self.pressure - cost.pressure,
            )
            # Sums of estimates may end a little below nothing. (`max` costs more than all the rest here.)
            self.tokens = tokens if tokens > 0.0 else 0.0
            self.prompts = prompts if prompts > 0.0 else 0.0
            self.pressure = pressure if pressure > 0.0 else 0.0
        else:
            self.tokens = self.prompts = self.pressure = 0.0
            self.busy_until = self.rest_until = now
            self._backlog.clear(now)

    def hear(self, load: Mapping[str, float], now: float) -> None:
        """What the engine tells in a beat. The prompts that wait there correct what was thought of its backlog."""
        self.steps.hear(load)
        waiting = load.get("waiting")
        if waiting is not None and self.steps.measured:
            mean = self.prompts / max(self.paced + self.other, 1)
            self.busy_until = now + waiting * mean * self.steps.prompt_seconds
            if not waiting:
                self._backlog.clear(now)

    @property
    def taken_until(self) -> float:
        """Until when it has prompts enough: until those that it has are computed, and pressing calls have had their time."""
        return self.busy_until if self.busy_until > self.rest_until else self.rest_until

    def backlog(self, now: float) -> float:
        """Seconds until it can begin another prompt."""
        return max(0.0, self.taken_until - now)

    def begins(self, order: float, now: float, *, pressing: bool) -> float:
        """Seconds until it can begin a prompt with this order, which may go before some that wait. What is not `pressing` lets
        pressing calls have their time first."""
        before = self._backlog.before(order, now)
        return before if pressing else max(before, self.rest_until - now)

    def step(self, cost: Cost | None = None) -> float:
        """Its mean step with what it holds, and with `cost` too."""
        drawn = self.paced + self.other + (cost is not None)
        return self.steps.step(max(drawn, 1), self.pressure + (cost.pressure if cost else 0.0))

    def bound(self, *, sole: bool = False) -> float:
        """The longest mean step that its paced work allows."""
        return min(self._bounds) if self._bounds else (SOLE if sole else STRETCH) * self.steps.alone

    def opens(self, pressure: float, *, sole: bool) -> bool:
        """Whether, being reserved, it takes one more call of other work, which commonly has so much `pressure`. `sole`: nobody
        else serves the same."""
        if (sole and not (self.paced and self.other)) or not self.steps.measured:
            return True
        return self.step(Cost(0.0, pressure, 1.0)) <= self.bound(sole=sole)

    def check(self) -> None:
        """Raise AssertionError if the books can't be."""
        assert self.paced >= 0, self.paced
        assert self._pressing == sorted(self._pressing), self._pressing
        assert len(self._pressing) <= self.paced + self.other
        assert self.other >= 0, self.other
        assert self.tokens >= 0, self.tokens
        assert self.kept >= 0, self.kept
        assert len(self._bounds) <= self.paced
