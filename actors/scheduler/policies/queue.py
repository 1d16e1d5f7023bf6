"""The order of ready calls that ask for the same: tenants by their shares, inside one applications by what is left of them,
inside one the critical path.

Laws:
- Of one tenant, a higher priority goes first, then a stricter need; so much is strict. Then policies decide.
- A call that can't be in time any more, as long as it is thought to take, gives way to those that can: it waits as one without a
  deadline does.
- No starvation: once a tenant's oldest ready call has waited `PATIENCE` seconds, every `TURN`th of the tenant's dispatches is
  the oldest. So a call with n older ones before it starts, after that time, within `TURN` x (n + 1) dispatches of its tenant.
- Every operation costs the logarithm of what waits. Entries are dropped when they surface stale: an entry counts while its
  number is the one that its call bears.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from myna.actors.messages import Tenant
from myna.actors.scheduler.policies.applications import AGEING, Application
from myna.actors.scheduler.policies.lengths import Lengths
from myna.actors.scheduler.policies.objectives import Urgency
from myna.actors.scheduler.policies.tenants import Account, Accounts

if TYPE_CHECKING:
    from myna.actors.scheduler.nodes import CallNode
    from myna.actors.scheduler.policies import Policies

PATIENCE = 30.0
"""Seconds after which age begins to count."""
TURN = 4
"""Of so many dispatches of a tenant one is for age, while somebody has waited too long."""
_CLASS = AGEING * PATIENCE
LANES = 8
"""Tenants that are tried when the first one's next call has no place."""

_BandKey = tuple[int, Urgency]
_NORMAL, _DEADLINE = Urgency.NORMAL, Urgency.DEADLINE
P = TypeVar("P")


class Waiting:
    """The ready calls of one application in one band, the critical path first. `rank` is its place among applications."""

    __slots__ = ("application", "band", "calls", "listed", "rank")

    def __init__(self, application: Application | None, band: _Band) -> None:
        self.application = application
        self.band = band
        self.calls: list[tuple[float, int, CallNode]] = []
        self.rank = 0.0
        self.listed = 0

    def head(self) -> CallNode | None:
        """The next call, stale ones dropped."""
        calls = self.calls
        while calls:
            _, number, call = calls[0]
            if call.queued == number:
                return call
            heapq.heappop(calls)
        return None

    def promote(self) -> None:
        """The application has less to do than before: it may go first now."""
        if self.application is not None and self.listed:
            rank = self.application.rank
            if self.rank > rank:
                self.band.list(self, rank)


class _Band:
    """The ready calls of one tenant, priority and urgency: a heap of applications. `listed` of an application is the number
    of its entry that counts."""

    __slots__ = ("_heap", "_number", "_waiting")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiting]] = []
        self._waiting: dict[Application | None, Waiting] = {}
        self._number = 0

    def push(self, call: CallNode, number: int, application: Application | None, key: float, rank: float) -> None:
        waiting = self._waiting.get(application)
        if waiting is None:
            waiting = self._waiting[application] = Waiting(application, self)
            if application is not None:
                application.waiting = waiting
            self.list(waiting, rank)
        elif rank < waiting.rank:
            self.list(waiting, rank)
        heapq.heappush(waiting.calls, (key, number, call))

    def list(self, waiting: Waiting, rank: float) -> None:
        """Give an application its place anew."""
        self._number += 1
        waiting.rank, waiting.listed = rank, self._number
        heapq.heappush(self._heap, (rank, self._number, waiting))

    def head(self) -> CallNode | None:
        heap = self._heap
        while heap:
            _, number, waiting = heap[0]
            if waiting.listed == number:
                call = waiting.head()
                if call is not None:
                    return call
                self._drop(waiting)
            heapq.heappop(heap)
        return None

    def pop(self) -> tuple[float, float, Application | None]:
        """Take the head out, which there must be. Returns its key, its application's rank, and its application."""
        waiting = self._heap[0][2]
        key, _, _ = heapq.heappop(waiting.calls)
        return key, waiting.rank, waiting.application

    def _drop(self, waiting: Waiting) -> None:
        del self._waiting[waiting.application]
        waiting.listed = 0
        if waiting.application is not None and waiting.application.waiting is waiting:
            waiting.application.waiting = None


class _Lane:
    """One tenant's ready calls."""

    __slots__ = ("_ages", "_bands", "_lengths", "_order", "_turn", "account", "tenant")

    def __init__(self, tenant: Tenant, account: Account, lengths: Lengths) -> None:
        self.tenant = tenant
        self.account = account
        self._lengths = lengths
        self._bands: dict[_BandKey, _Band] = {}
        self._order: list[_BandKey] = []
        self._ages: deque[tuple[float, int, CallNode]] = deque()
        self._turn = 0

    def push(
        self, band: _BandKey, call: CallNode, number: int, application: Application | None, key: float, rank: float
    ) -> None:
        there = self._bands.get(band)
        if there is None:
            there = self._bands[band] = _Band()
            heapq.heappush(self._order, band)
        there.push(call, number, application, key, rank)
        if not call.aged:
            call.aged = number
            self._ages.append((call.since, number, call))

    def head(self, now: float) -> CallNode | None:
        ages = self._ages
        while ages and ages[0][2].aged != ages[0][1]:
            ages.popleft()
        if not ages:
            return None
        if self._turn >= TURN - 1 and now - ages[0][0] > PATIENCE:
            return ages[0][2]
        while self._order:
            key = self._order[0]
            band = self._bands[key]
            call = band.head()
            if call is None:
                del self._bands[heapq.heappop(self._order)]
            elif key[1] is not _DEADLINE or self.in_time(call, now):
                return call
            else:
                path, rank, application = band.pop()
                self.push((key[0], _NORMAL), call, call.queued, application, path, rank)
        raise AssertionError("a call has an age and no band")

    def in_time(self, call: CallNode, now: float) -> bool:
        """Whether a call can still end when it has to."""
        deadline = None if call.need is None else call.need.deadline
        return deadline is None or now + call.work * self._lengths.pace < deadline

    def taken(self, now: float) -> None:
        """The head was dispatched."""
        late = bool(self._ages) and now - self._ages[0][0] > PATIENCE
        self._turn = (self._turn + 1) % TURN if late else 0

    def __len__(self) -> int:
        return sum(call.aged == number for _, number, call in self._ages)

    def calls(self) -> Iterator[CallNode]:
        """All that wait, the oldest first."""
        return (call for _, number, call in self._ages if call.aged == number)


def leave(call: CallNode) -> None:
    """A call waits no more: its entries count no more, and are dropped when they surface."""
    call.queued = call.aged = 0


def order_of(call: CallNode) -> float:
    """The same order as one number, the least first, for calls that have left the queue: a class of urgency is worth `PATIENCE`
    seconds of age, so that nobody starves by it."""
    application = call.application
    if application is None:
        return 0.0
    if application.parent is not None:
        application = application.root()
    rank = application.rank
    return rank if call.need is None else rank + _CLASS * (call.need.urgency - _NORMAL)


class ReadyQueue:
    """All ready calls that ask for the same kind and names. `numbers`: those of its entries; queues between which calls change
    have them in common."""

    def __init__(
        self, policies: Policies, accounts: Accounts, lengths: Lengths, numbers: Iterator[int] | None = None
    ) -> None:
        self._policies = policies
        self._lengths = lengths
        self._accounts = accounts
        self._lanes: dict[Tenant, _Lane] = {}
        self._heap: list[tuple[float, int, _Lane]] = []
        self._numbers = itertools.count(1) if numbers is None else numbers

    def push(self, call: CallNode, tenant: Tenant, priority: int, now: float) -> None:
        """A call is ready; or what decides its place has changed, and it is put there anew."""
        owner = tenant if self._policies.fairness else _ALL
        lane = self._lanes.get(owner)
        if lane is None:
            lane = self._add_lane(owner)
        number = call.queued = next(self._numbers)
        need = call.need
        urgency = _NORMAL
        if need is not None:
            urgency = need.urgency
            if urgency is _DEADLINE and not lane.in_time(call, now):
                urgency = _NORMAL
        application, key, rank = None, float(number), 0.0
        if self._policies.applications and call.application is not None:
            application, key = call.application, -call.path
            if application.parent is not None:
                application = application.root()
            rank = application.rank
        lane.push((-priority, urgency), call, number, application, key, rank)

    def choose(self, now: float, place: Callable[[CallNode, bool], P | None]) -> tuple[CallNode, P] | None:
        """The next call that `place` finds a place for, and the place: the first tenant's next call, else another tenant's.
        `place` is told whether it is that tenant's turn."""
        passed: list[_Lane] = []
        try:
            while len(passed) < LANES:
                lane = self._next_lane()
                if lane is None:
                    return None
                call = lane.head(now)
                if call is None:
                    del self._lanes[lane.tenant]
                    heapq.heappop(self._heap)
                    continue
                number = call.queued
                found = None if self._policies.fairness and lane.account.full else place(call, not passed)
                if found is not None:
                    return call, found
                if call.queued != number:
                    continue  # `place` has put it elsewhere
                passed.append(lane)
                heapq.heappop(self._heap)
            return None
        finally:
            for lane in passed:
                self._list(lane)

    def take(self, call: CallNode, tenant: Tenant, now: float) -> None:
        """A call is dispatched."""
        leave(call)
        self._lanes[tenant if self._policies.fairness else _ALL].taken(now)

    def tenants(self) -> set[Tenant]:
        """Whose calls wait."""
        if self._policies.fairness:
            return set(self._lanes)
        return {call.session.tenant for call in self.calls() if call.session is not None}

    def calls(self) -> Iterator[CallNode]:
        """All that wait."""
        for lane in self._lanes.values():
            yield from lane.calls()

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def empty(self) -> bool:
        """Whether nobody waits. (To count costs what waits; this does not.)"""
        return not self._lanes

    def _add_lane(self, tenant: Tenant) -> _Lane:
        account = self._accounts.of(tenant)
        self._accounts.wake(account)
        lane = self._lanes[tenant] = _Lane(tenant, account, self._lengths)
        self._list(lane)
        return lane

    def _list(self, lane: _Lane) -> None:
        heapq.heappush(self._heap, (lane.account.served, next(self._numbers), lane))

    def _next_lane(self) -> _Lane | None:
        """The tenant that has been served least. What it was served since it was listed is looked up when it surfaces."""
        heap = self._heap
        while heap:
            served, _, lane = heap[0]
            if served >= lane.account.served:
                return lane
            heapq.heapreplace(heap, (lane.account.served, next(self._numbers), lane))
        return None


_ALL = Tenant("*")
