"""What a call is needed for, deduced backwards from what is awaited.

Law: the strictest of several needs wins, and a need never weakens while its call lives. A call that nobody has said anything
about has no need (None), and is served as `NORMAL`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from myna.actors.messages import Objective, ObjectiveKind

if TYPE_CHECKING:
    from myna.actors.scheduler.graph import SessionGraph
    from myna.actors.scheduler.nodes import CallNode


class Urgency(IntEnum):
    """Classes of need, the most urgent first."""

    INTERACTIVE = 0  # somebody waits for every token: latency, ttft, tpot
    DEADLINE = 1
    NORMAL = 2
    BATCH = 3  # throughput


@dataclass(frozen=True, slots=True)
class Need:
    """What a call is needed for. `deadline`: when it must have ended, by the scheduler's clock. `tpot`: seconds a token at most.
    `wide`: it feeds its consumer together with siblings, so that the time of all counts and not that of each."""

    urgency: Urgency
    deadline: float | None = None
    tpot: float | None = None
    wide: bool = False

    @property
    def paced(self) -> bool:
        """Whether each of its tokens must come soon, so that its engine must not be too full."""
        return self.urgency is Urgency.INTERACTIVE and not self.wide

    @property
    def pressing(self) -> bool:
        """Whether its own end is waited for, or has to come in time: not that of a group."""
        return self.awaited and not self.wide

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for what it is needed for."""
        return self.urgency <= Urgency.DEADLINE

    @property
    def patient(self) -> bool:
        """Whether it can be kept away from engines that run paced work."""
        return self.urgency is Urgency.BATCH


_INTERACTIVE = Need(Urgency.INTERACTIVE)
_BATCH = Need(Urgency.BATCH)


def need_of(objective: Objective | None, now: float) -> Need | None:
    """What an objective asks of the call that makes the result; `now` is the moment of asking."""
    if objective is None:
        return None
    match objective.kind:
        case ObjectiveKind.THROUGHPUT:
            return _BATCH
        case ObjectiveKind.DEADLINE if objective.seconds is not None:
            return Need(Urgency.DEADLINE, deadline=now + objective.seconds)
        case ObjectiveKind.TPOT if objective.seconds is not None:
            return Need(Urgency.INTERACTIVE, tpot=objective.seconds)
        case ObjectiveKind.LATENCY | ObjectiveKind.TTFT | ObjectiveKind.TPOT | ObjectiveKind.DEADLINE:
            return _INTERACTIVE


def strictest(a: Need | None, b: Need | None) -> Need | None:
    """Both needs in one."""
    if a is None or b is None or a == b:
        return a or b
    merged = Need(
        min(a.urgency, b.urgency),
        _least(a.deadline, b.deadline),
        _least(a.tpot, b.tpot),
        a.wide and b.wide,
    )
    return a if merged == a else merged


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def upstream(need: Need, seconds: float, *, grouped: bool) -> Need:
    """What a call with `need`, which itself takes `seconds`, asks of those that make its inputs: they must end before it can
    begin. Each token's time matters no more; with `grouped`, no single one's end either."""
    if need.deadline is None and need.tpot is None and need.wide == grouped:
        return need
    deadline = None if need.deadline is None else need.deadline - seconds
    return Need(need.urgency, deadline, None, grouped)


def spread(graph: SessionGraph, calls: Iterable[CallNode], need: Need, pace: float, *, groups: bool) -> list[CallNode]:
    """Give a need to calls and to all that they need, backwards. Returns those whose need has changed. `pace`: seconds a unit
    of work."""
    changed: list[CallNode] = []
    wishes = deque((call, need) for call in calls)
    while wishes:
        call, wish = wishes.popleft()
        merged = strictest(call.need, wish)
        if merged is call.need or merged is None or not call.unended or call.outcome is not None:
            continue  # one with an outcome is ending: of a cycle there is always one such, so this comes to an end
        call.need = merged
        changed.append(call)
        producers = graph.producers(call)
        if producers:
            above = upstream(merged, call.work * pace, grouped=groups and len(producers) > 1)
            wishes += [(p, above) for p in producers]
    return changed
