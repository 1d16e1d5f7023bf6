"""All ready calls, in a queue for each kind of worker that they ask for; and of engines three: calls that go on, new ones, and
parked ones.

Laws:
- A call that goes on with a context for which room is kept goes before new ones, which would take that room.
- A call whose context has no room to stay keeps none waiting that need no such room.
- No starvation: a queue that others went before for `PATIENCE` seconds is served first at every `TURN`th dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from myna.actors.messages import ModelCall, WorkerKind
from myna.actors.scheduler.fleet import Demand, Fleet
from myna.actors.scheduler.policies.placement import Place
from myna.actors.scheduler.policies.queue import PATIENCE, TURN, ReadyQueue, leave

if TYPE_CHECKING:
    from myna.actors.scheduler.nodes import CallNode

Order = Literal[0, 1, 2]
"""Which calls go first: those that go on with a context which room is kept for, new ones, those that wait for room to stay. (A
number: an enum's hash is slow.)"""
RESUMES: Order = 0
NEW: Order = 1
PARKED: Order = 2
_LATER = {RESUMES: (NEW, PARKED), NEW: (PARKED,), PARKED: ()}
"""Those that an order goes before."""

_Asks = tuple[Order, bool, tuple[str, ...]]
"""An `Order`; whether of engines or of agents (an enum's hash is slow); names."""

_Find = Callable[["CallNode", bool], Place | None]
"""Of a call; whether it is its tenant's turn."""

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

    def push(self, call: CallNode, now: float, order: Order) -> None:
        """A call is ready, or its place has changed."""
        assert call.spec is not None
        assert call.session is not None
        asks = _asks(call, order)
        if call.queued and call.asks != asks:
            leave(call)  # the queue that it waited in
        call.asks = asks
        line = self._lines.get(asks)
        if line is None:
            line = self._lines[asks] = _Line(asks, self._make(), now)
        line.queue.push(call, call.session.tenant, call.spec.priority + call.session.priority, now)

    def park(self, call: CallNode, now: float) -> None:
        """A call has no room to stay: it waits behind those that have."""
        if not is_parked(call):
            self.push(call, now, PARKED)

    def choose(self, fleet: Fleet, place: _Find, now: float) -> Iterator[tuple[CallNode, Place]]:
        """Calls that may be dispatched now, each with its place. The caller starts each before it asks for the next."""
        lines = list(self._lines.values())
        if len(lines) > 1:
            lines.sort(key=_order)
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
        order, engine, names = line.asks
        line.passed, line.since = 0, now
        for later in _LATER[order]:
            if (other := self._lines.get((later, engine, names))) is not None:
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


def is_parked(call: CallNode) -> bool:
    """Whether a waiting call is put behind others, for want of room to stay."""
    return call.asks is not None and call.asks[0] == PARKED


def _asks(call: CallNode, order: Order) -> _Asks:
    spec = call.spec
    if isinstance(spec, ModelCall):
        return order, True, spec.models or _ANY
    return NEW, False, (call.function,)


def _order(line: _Line) -> int:
    return line.asks[0]


def _next(line: _Line, place: _Find, now: float) -> tuple[CallNode, Place] | None:
    found = line.queue.choose(now, place)
    if found is not None:
        call = found[0]
        assert call.session is not None
        line.queue.take(call, call.session.tenant, now)
    return found
