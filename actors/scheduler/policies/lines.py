"""All ready calls, in a queue for each kind of worker that they ask for; and of engines two: calls that go on, and new ones.

Laws:
- A call that goes on with a context for which room is kept goes before new ones, which would take that room.
- No starvation: a queue that others went before for `PATIENCE` seconds is served first at every `TURN`th dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from myna.actors.messages import ModelCall, WorkerKind
from myna.actors.scheduler.fleet import Demand, Fleet
from myna.actors.scheduler.policies.placement import Place
from myna.actors.scheduler.policies.queue import PATIENCE, TURN, ReadyQueue

if TYPE_CHECKING:
    from myna.actors.scheduler.nodes import CallNode

_Asks = tuple[bool, bool, tuple[str, ...]]
"""Whether calls are new, or go on with a context that waits for them; of engines or of agents (an enum's hash is slow); names."""

_Find = Callable[["CallNode"], Place | None]

_ANY = ("",)


class _Line:
    """A queue; since when others have gone before it, and at how many dispatches in a row."""

    __slots__ = ("asks", "passed", "queue", "since")

    def __init__(self, asks: _Asks, queue: ReadyQueue, now: float) -> None:
        self.asks = asks
        self.queue = queue
        self.since = now
        self.passed = 0

    def due(self, now: float) -> bool:
        """Whether others have gone before it often enough."""
        return self.passed >= TURN - 1 and now - self.since > PATIENCE


class Lines:
    """See the module. `make` makes a queue."""

    def __init__(self, make: Callable[[], ReadyQueue]) -> None:
        self._make = make
        self._lines: dict[_Asks, _Line] = {}

    def push(self, call: CallNode, now: float, *, resumes: bool) -> None:
        """A call is ready, or its place has changed. `resumes`: it goes on with a context that room is kept for."""
        assert call.spec is not None
        assert call.session is not None
        asks = _asks(call, resumes=resumes)
        line = self._lines.get(asks)
        if line is None:
            line = self._lines[asks] = _Line(asks, self._make(), now)
        line.queue.push(call, call.session.tenant, call.spec.priority + call.session.priority, now)

    def choose(self, fleet: Fleet, place: _Find, now: float) -> Iterator[tuple[CallNode, Place]]:
        """Calls that may be dispatched now, each with its place. The caller starts each before it asks for the next."""
        lines = list(self._lines.values())
        if len(lines) > 1:
            lines.sort(key=_newness)
            for line in lines:
                if line.due(now) and (found := _next(line, place, now)) is not None:
                    line.passed = 0
                    yield found
        for line in lines:
            while fleet.takers and (found := _next(line, place, now)) is not None:
                if len(lines) > 1:
                    self._served(line, now)
                yield found
            if line.queue.empty:
                del self._lines[line.asks]
            if not fleet.takers:
                return

    def _served(self, line: _Line, now: float) -> None:
        """A call is dispatched from a queue whose turn it was."""
        new, engine, names = line.asks
        if new:
            line.passed, line.since = 0, now
        elif (other := self._lines.get((True, engine, names))) is not None:
            other.passed += 1

    def calls(self) -> Iterator[CallNode]:
        """All that wait."""
        for line in self._lines.values():
            yield from line.queue.calls()

    def unserved(self, fleet: Fleet) -> list[tuple[Demand, CallNode]]:
        """Ready calls that nobody serves, busy or not, with what they ask for."""
        found: list[tuple[Demand, CallNode]] = []
        for (_, engine, names), line in self._lines.items():
            for tenant in line.queue.tenants():
                demand = Demand(WorkerKind.ENGINE if engine else WorkerKind.AGENT, names, tenant)
                if not fleet.serves(demand):
                    found += [(demand, c) for c in line.queue.calls() if c.session and c.session.tenant == tenant]
        return found

    def __bool__(self) -> bool:
        """Whether any call may wait."""
        return bool(self._lines)

    def __len__(self) -> int:
        return sum(len(line.queue) for line in self._lines.values())


def _asks(call: CallNode, *, resumes: bool) -> _Asks:
    spec = call.spec
    if isinstance(spec, ModelCall):
        return not resumes, True, spec.models or _ANY
    return True, False, (call.function,)


def _newness(line: _Line) -> bool:
    return line.asks[0]


def _next(line: _Line, place: _Find, now: float) -> tuple[CallNode, Place] | None:
    found = line.queue.choose(now, place)
    if found is not None:
        call = found[0]
        assert call.session is not None
        line.queue.take(call, call.session.tenant, now)
    return found
