"""The workers that a scheduler knows: what they serve, how much they hold, when they were last heard.

Law: choosing a worker costs the same with one worker or a thousand. Loads live in lazy heaps: every change of a worker's load
pushes a new entry, and stale ones are dropped when they surface. `now`, the time of the newest event, is set by the core.
With `late`, a worker with prompts enough to compute is left alone until it can begin another, or one that goes before those; one
that only rests for the sake of pressing calls takes these.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import islice

from myna.actors.messages import Announce, Call, CallId, ModelCall, SessionId, Tenant, WorkerId, WorkerKind
from myna.actors.scheduler.policies.capacity import BACKLOG, SOLE_BACKLOG, Cost, Demanded, Occupancy

HeldKey = tuple[Tenant, SessionId, CallId]
_Slot = tuple[bool, str, Tenant | None]  # engine or agent: an enum's hash is slow


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call asks of a worker: the names it accepts (of models, or of one function) and, for agents, whose tenant."""

    kind: WorkerKind
    names: tuple[str, ...]
    tenant: Tenant | None
    slots: tuple[_Slot, ...] = field(init=False, repr=False, compare=False)
    """Where workers that serve it are found."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(_slots(self)))


def demand_of(call: Call, tenant: Tenant) -> Demand:
    """The demand of a call; a model call that names no model accepts any engine."""
    if isinstance(call, ModelCall):
        return _demand(True, call.models or _ANY, tenant)
    return _demand(False, (call.function,), tenant)


_ANY = ("",)


@lru_cache(maxsize=4096)
def _demand(engine: bool, names: tuple[str, ...], tenant: Tenant) -> Demand:
    """One of few: a tenant's calls mostly ask for the same. (An enum as key would be slow.)"""
    return Demand(WorkerKind.ENGINE if engine else WorkerKind.AGENT, names, tenant)


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, as announced and as it was last heard."""

    id: WorkerId
    offer: Announce
    last_heard: float
    held: dict[HeldKey, int] = field(default_factory=dict)
    """Calls dispatched to it and not ended, with their attempts."""
    guests: set[HeldKey] = field(default_factory=set)
    """Those of them that take no capacity."""
    missed: dict[HeldKey, int] = field(default_factory=dict)
    """In how many of its beats in a row a held call was missing."""
    stopping: dict[HeldKey, int] = field(default_factory=dict)
    """Calls that it was told to stop, each with the number of beats in a row that no longer named it."""
    stamp: int = 0
    slots: tuple[_Slot, ...] = ()
    """Under what it is found."""
    asleep: bool = False
    """It has as many prompts to compute as it is given ahead, or rests; looked at again at `alarm`, when it may take more."""
    alarm: float = 0.0
    costs: dict[HeldKey, Cost] = field(default_factory=dict)
    """What the held calls are thought to take of it, where that was estimated."""
    occupancy: Occupancy = field(default_factory=Occupancy)

    load: float = 0.0
    """Calls held or KV tokens, whichever is more, as a share of its capacity."""
    has_room: bool = True
    """Whether its capacity allows another call. What is kept for calls to come counts unless it runs nothing: that never shuts
    it."""
    takes: bool = False
    """Whether it takes another call whose context it has, though its memory is kept for others."""

    @property
    def free(self) -> bool:
        """Whether it takes another call now."""
        return self.has_room and not self.asleep

    @property
    def rests(self) -> bool:
        """Whether it is given no prompts for longer than those that it has take."""
        return self.asleep and self.occupancy.rest_until > self.occupancy.busy_until

    def weigh(self) -> None:
        """What it holds, or its offer, has changed."""
        offer, held = self.offer, len(self.held) - len(self.guests)
        load, memory, room = held / offer.capacity, offer.tokens, True
        if memory is not None:
            tokens = self.occupancy.tokens
            if tokens > load * memory:
                load = tokens / memory
            room = not held or tokens + self.occupancy.kept < memory
        self.load = load
        self.takes = held < offer.capacity and not offer.draining and not offer.paused
        self.has_room = self.takes and room and load < 1.0


SMALL = 64
"""Entries of a heap, stale ones with them, that are not looked through for those that count."""


class Role(IntEnum):
    """Which workers are asked for: any; those reserved for paced calls; those that take other calls; those that rest, which only
    pressing calls ask for when there are no others."""

    ANY = 0
    HOME = 1
    OPEN = 2
    RESTING = 3


_ANY_ROLE = Role.ANY
_Entry = tuple[float, int, WorkerId]
"""A worker's load (of one that rests, until when it is busy), the stamp that it bore then, and its id."""


class Fleet:
    """All workers, by what they serve."""

    def __init__(self, *, late: bool = False) -> None:
        self._late = late
        self.demanded = Demanded()
        self._pressure = 0.0
        self.workers: dict[WorkerId, Worker] = {}
        self.takers = 0
        """Workers that take another call at all: while there are none, no place need be looked for."""
        self.now = 0.0
        self._heaps: list[dict[_Slot, list[_Entry]]] = [{} for _ in Role]
        self._serving: dict[_Slot, int] = {}
        self._stamp = 0
        self._homes: dict[WorkerId, None] = {}
        self._asleep: list[tuple[float, WorkerId]] = []
        self._turn = 0

    def announce(self, offer: Announce, now: float) -> Worker:
        """A worker presents itself, for the first time or anew; what it holds stays."""
        worker = self.workers.get(WorkerId(offer.worker))
        if worker is None:
            worker = self.workers[WorkerId(offer.worker)] = Worker(WorkerId(offer.worker), offer, now)
        else:
            self._count(worker, -1)
            worker.offer = offer
        worker.slots = tuple(_offered(offer))
        worker.last_heard = now
        self._count(worker, 1)
        self._push(worker)
        return worker

    def remove(self, worker_id: WorkerId) -> Worker | None:
        """A worker is gone."""
        worker = self.workers.pop(worker_id, None)
        if worker is not None:
            self._count(worker, -1)
            self.takers -= worker.takes
            self._homes.pop(worker_id, None)
        return worker

    def hold(
        self, worker: Worker, key: HeldKey, attempt: int, cost: Cost | None = None, *, guest: bool = False
    ) -> None:
        """A call was dispatched to the worker, or found running there. A `guest` takes no capacity."""
        worker.held[key] = attempt
        if guest:
            worker.guests.add(key)
        if cost is not None:
            worker.costs[key] = cost
            worker.occupancy.add(cost, self.now)
            if not cost.paced:
                self._pressure += 0.05 * (cost.pressure - self._pressure)
            if self._late:
                ahead = worker.occupancy.taken_until - self.now
                if worker.asleep or (
                    ahead > BACKLOG and ahead > self._most(worker)
                ):  # the first comparison is the cheap one
                    worker.asleep = True
                    self._set_alarm(worker)
        self._push(worker)

    def drop(self, worker: Worker, key: HeldKey) -> None:
        """A call has ended on the worker."""
        if worker.held.pop(key, None) is not None:
            if worker.missed:
                worker.missed.pop(key, None)
            if worker.guests:
                worker.guests.discard(key)
            cost = worker.costs.pop(key, None)
            if cost is not None:
                worker.occupancy.remove(cost, self.now)
            if worker.asleep:
                self._rouse(worker)
            self._push(worker)

    def keep(self, worker_id: WorkerId, tokens: float) -> None:
        """So many tokens are kept free on a worker for calls to come."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.occupancy.kept = tokens
            self._push(worker)

    def refresh(self, worker: Worker) -> None:
        """What its place among others depends on may have changed with time."""
        if self._rouse(worker) or worker.asleep or worker.id in self._homes:
            self._push(worker)

    def _rouse(self, worker: Worker) -> bool:
        """Whether the worker slept and can be given more prompts again. Its entry among the sleepers goes stale."""
        if worker.asleep and worker.occupancy.backlog(self.now) <= self._most(worker) / 2 + 1e-9:
            worker.asleep = False
            return True
        return False

    def opens(self, worker: Worker) -> bool:
        """Whether a worker that is reserved for paced calls takes another call too."""
        return worker.occupancy.opens(self._pressure, sole=self._sole(worker))

    def _sole(self, worker: Worker) -> bool:
        """Whether nobody else serves something that this worker does."""
        return any(self._serving.get(slot) == 1 for slot in worker.slots)

    def _most(self, worker: Worker) -> float:
        """Seconds of prompts that it may have."""
        return BACKLOG if len(self.workers) > 1 and not self._sole(worker) else SOLE_BACKLOG

    def is_home(self, worker: Worker) -> bool:
        """Whether the worker is reserved for paced calls."""
        return worker.id in self._homes

    def some_homes(self, most: int) -> Iterator[Worker]:
        """Workers that are reserved for paced calls; the first of them, if there are many."""
        return (self.workers[w] for w in islice(self._homes, most))

    @property
    def homes(self) -> int:
        """Workers that are reserved for paced calls."""
        return len(self._homes)

    def wake(self) -> float | None:
        """Workers that can be given more prompts now are. Returns when the next one can, None if none waits for that."""
        while self._asleep:
            at, worker_id = self._asleep[0]
            worker = self.workers.get(worker_id)
            if worker is None or worker.alarm != at or not worker.asleep:
                heapq.heappop(self._asleep)  # stale
            elif at > self.now:
                return at
            else:
                heapq.heappop(self._asleep)
                if self._rouse(worker):
                    self._push(worker)
                else:
                    self._set_alarm(worker)
        return None

    def _set_alarm(self, worker: Worker) -> None:
        occupancy, half = worker.occupancy, self._most(worker) / 2
        rests_from = occupancy.busy_until - half
        worker.alarm = rests_from if rests_from > self.now else occupancy.taken_until - half
        heapq.heappush(self._asleep, (worker.alarm, worker.id))

    def choose(self, demand: Demand, role: Role = Role.ANY) -> Worker | None:
        """The least loaded worker that serves the demand and takes another call."""
        best: Worker | None = None
        heaps = self._heaps[role]
        for slot in demand.slots:
            heap = heaps.get(slot)
            if heap:
                worker = self._top(heap)
                if worker is not None and (best is None or worker.load < best.load):
                    best = worker
        return best

    def resting(self, demand: Demand) -> Worker | None:
        """A worker that serves the demand and only rests, the one with the fewest prompts to compute."""
        heaps = self._heaps[Role.RESTING]
        tops = [self._top(heap, resting=True) for slot in demand.slots if (heap := heaps.get(slot))]
        able = [w for w in tops if w is not None and w.occupancy.busy_until - self.now <= self._most(w) / 2]
        return min(able, key=lambda worker: worker.load, default=None)

    def overtaking(self, demand: Demand, order: float, *, pressing: bool) -> Worker | None:
        """A worker that has prompts enough, if nobody else serves the same and it can begin a call with this order soon, which
        goes before others that wait there. (Where others do, one of them is free sooner, and the order of tenants counts.)"""
        if not self._asleep:
            return None
        worker = self.workers.get(self._asleep[0][1])
        if worker is None or not worker.asleep or not worker.has_room or not self.answers(worker, demand):
            return None
        if not self._sole(worker):
            return None
        soon = worker.occupancy.begins(order, self.now, pressing=pressing) <= self._most(worker) / 2
        return worker if soon else None

    def any(self, demand: Demand) -> Worker | None:
        """A worker that serves the demand and takes orders, however busy."""
        return next((w for w in self.workers.values() if not w.offer.draining and self.answers(w, demand)), None)

    def in_turn(self, demand: Demand) -> Worker | None:
        """The next worker in turn that serves the demand and has room. For comparison: it costs what the fleet is large."""
        workers = list(self.workers.values())
        for n in range(len(workers)):
            worker = workers[(self._turn + n) % len(workers)]
            if worker.free and self.answers(worker, demand):
                self._turn += n + 1
                return worker
        return None

    def answers(self, worker: Worker, demand: Demand) -> bool:
        """Whether this worker serves the demand."""
        offer = worker.offer
        if offer.kind is not demand.kind or (offer.tenant is not None and offer.tenant != demand.tenant):
            return False
        serves, any_engine = offer.serves, offer.kind is WorkerKind.ENGINE and not offer.named_only
        return any(name in serves or (any_engine and not name) for name in demand.names)

    def serves(self, demand: Demand) -> bool:
        """Whether anybody serves the demand at all, busy or not."""
        return any(self._serving.get(slot, 0) for slot in demand.slots)

    def served(self, kind: WorkerKind) -> list[str]:
        """The names that workers of this kind serve, for messages to people."""
        engine = kind is WorkerKind.ENGINE
        return sorted({name for e, name, _ in self._serving if e is engine and name})

    def _top(self, heap: list[_Entry], *, resting: bool = False) -> Worker | None:
        while heap:
            _, stamp, worker_id = heap[0]
            worker = self.workers.get(worker_id)
            if worker is not None and worker.stamp == stamp and worker.has_room and worker.asleep is resting:
                return worker
            heapq.heappop(heap)
        return None

    def _push(self, worker: Worker) -> None:
        self._stamp += 1
        worker.stamp = self._stamp
        took = worker.takes
        worker.weigh()
        self.takers += worker.takes - took
        occupancy = worker.occupancy
        home = occupancy.paced > 0 or self.now < occupancy.home_until
        if home or self._homes:
            home = self._reserve(worker, home)
        if not worker.has_room:
            return
        if worker.asleep:
            if worker.rests:
                self._enter(worker, Role.RESTING, occupancy.busy_until)
            return
        self._enter(worker, _ANY_ROLE, worker.load)
        if self._homes:
            if home:
                self._enter(worker, Role.HOME, worker.load)
            if not home or self.opens(worker):
                self._enter(worker, Role.OPEN, worker.load)

    def _reserve(self, worker: Worker, home: bool) -> bool:
        """Whether a worker that would be reserved for paced calls is: there may be too many already, or too many by now."""
        was = worker.id in self._homes
        home = home and len(self._homes) - was < self.demanded.homes(len(self.workers))
        if home != was:
            self._set_home(worker, home)
        return home

    def _set_home(self, worker: Worker, home: bool) -> None:
        """A worker is reserved for paced calls, or no more. The heaps of roles are kept only while there is such a one."""
        if not home:
            del self._homes[worker.id]
            return
        self._homes[worker.id] = None
        if len(self._homes) == 1:
            for other in self.workers.values():
                if other is not worker and other.free:
                    self._enter(other, Role.OPEN, other.load)

    def _enter(self, worker: Worker, role: Role, key: float) -> None:
        entry = (key, worker.stamp, worker.id)
        heaps = self._heaps[role]
        for slot in worker.slots:
            heap = heaps.get(slot)
            if heap is None:
                heap = heaps[slot] = []
            heapq.heappush(heap, entry)
            if len(heap) > SMALL and len(heap) > SMALL + 4 * self._serving[slot]:
                self._compact(heap)

    def _compact(self, heap: list[_Entry]) -> None:
        """Drop stale entries that never surface. Amortised over the pushes that made them."""
        heap[:] = [e for e in heap if (w := self.workers.get(e[2])) is not None and w.stamp == e[1]]
        heapq.heapify(heap)

    def _count(self, worker: Worker, change: int) -> None:
        for slot in _offered(worker.offer):
            left = self._serving.get(slot, 0) + change
            if left:
                self._serving[slot] = left
            else:
                self._serving.pop(slot, None)
                for heaps in self._heaps:
                    heaps.pop(slot, None)

    def check(self) -> None:
        """Raise AssertionError if the books contradict each other."""
        counts: dict[_Slot, int] = {}
        for worker in self.workers.values():
            for slot in _offered(worker.offer):
                counts[slot] = counts.get(slot, 0) + 1
                listed = any(entry[1] == worker.stamp for entry in self._heaps[Role.ANY].get(slot, ()))
                assert listed or not worker.free, f"{worker.id} is free, but not to be found"
            worker.occupancy.check()
            assert worker.missed.keys() <= worker.held.keys(), f"{worker.id} misses calls that it does not hold"
            assert worker.guests <= worker.held.keys(), f"{worker.id} has guests that it does not hold"
            assert worker.costs.keys() <= worker.held.keys(), f"{worker.id} bears costs of calls that it does not hold"
            assert worker.occupancy.paced + worker.occupancy.other == len(worker.costs), f"{worker.id} miscounts"
            alarm = (worker.alarm, worker.id)
            assert not worker.asleep or alarm in self._asleep, f"{worker.id} sleeps for ever"
        assert self.takers == sum(w.takes for w in self.workers.values()), "workers that take calls are miscounted"
        assert counts == self._serving, f"{counts} != {self._serving}"
        assert self._homes.keys() <= self.workers.keys()


def _offered(offer: Announce) -> Iterator[_Slot]:
    tenant = None if offer.tenant is None else Tenant(offer.tenant)
    names: Iterable[str] = dict.fromkeys(offer.serves)
    engine = offer.kind is WorkerKind.ENGINE
    for name in names:
        yield engine, name, tenant
    if engine and "" not in offer.serves and not offer.named_only:
        yield engine, "", tenant


def _slots(demand: Demand) -> Iterator[_Slot]:
    engine = demand.kind is WorkerKind.ENGINE
    for name in demand.names:
        yield engine, name, None
        if demand.tenant is not None:
            yield engine, name, demand.tenant
