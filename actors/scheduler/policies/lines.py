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
    from myna.actors.scheduler.graph import CallNode

_Asks = tuple[bool, bool, tuple[str, ...]]
"""Whether calls are new, or go on with a context that waits for them; of engines or of agents (an enum's hash is slow); names."""

_ANY = ("",)


class _Line:
    """A queue; since when others have gone before it, and at how many dispatches in a row."""

    __slots__ = ("asks", "passed", "queue", "since")

    def __init__(self, asks: _Asks, queue: ReadyQueue, now: float) -> None:
        self.asks = asks
        self.queue = queue
        self.since = now
        self.passed = 0

    def rank(self, now: float) -> tuple[bool, bool]:
        """Its place among others, the least first."""
        due = self.passed >= TURN - 1 and now - self.since > PATIENCE
        return not due, self.asks[0]


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

    def choose(self, fleet: Fleet, place: Callable[[CallNode], Place | None], now: float) -> Iterator[tuple[CallNode, Place]]:
        """Calls that may be dispatched now, each with its place. The caller starts each before it asks for the next."""
        if len(self._lines) == 1:
            for line in list(self._lines.values()):
                while fleet.takers and (found := self._next(line, place, now)) is not None:
                    yield found
            return
        while fleet.takers:
            for line in sorted(self._lines.values(), key=lambda line: line.rank(now)):
                found = self._next(line, place, now)
                if found is not None:
                    self._served(line, now)
                    yield found
                    break
            else:
                return

    def _next(
        self, line: _Line, place: Callable[[CallNode], Place | None], now: float
    ) -> tuple[CallNode, Place] | None:
        found = line.queue.choose(now, place)
        if found is None:
            if line.queue.empty:
                del self._lines[line.asks]
            return None
        call = found[0]
        assert call.session is not None
        line.queue.take(call, call.session.tenant, now)
        return found

    def _served(self, line: _Line, now: float) -> None:
        """A call of this queue is dispatched: those that it went before have been passed once more."""
        if not line.asks[0]:
            for other in self._lines.values():
                other.passed += other.asks[0] and other.asks[1:] == line.asks[1:]
        elif line.passed < TURN - 1:
            line.since = now  # its turn came by itself
        line.passed = 0

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

    @property
    def any(self) -> bool:
        """Whether any call may wait."""
        return bool(self._lines)

    def __len__(self) -> int:
        return sum(len(line.queue) for line in self._lines.values())


def _asks(call: CallNode, *, resumes: bool) -> _Asks:
    spec = call.spec
    if isinstance(spec, ModelCall):
        return not resumes, True, spec.models or _ANY
    return True, False, (call.function,)
