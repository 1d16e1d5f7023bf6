"""The workers that a scheduler knows: what they serve, how much they hold, when they were last heard.

Law: choosing a worker costs the same with one worker or a thousand. Loads live in lazy heaps: every change of a worker's load
pushes a new entry, and stale ones are dropped when they surface.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from myna.actors.messages import Announce, Call, CallId, ModelCall, SessionId, Tenant, WorkerId, WorkerKind

HeldKey = tuple[Tenant, SessionId, CallId]


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call asks of a worker: the names it accepts (of models, or of one function) and, for agents, whose tenant."""

    kind: WorkerKind
    names: tuple[str, ...]
    tenant: Tenant | None


def demand_of(call: Call, tenant: Tenant) -> Demand:
    """The demand of a call; a model call that names no model accepts any engine."""
    if isinstance(call, ModelCall):
        return Demand(WorkerKind.ENGINE, call.models or ("",), tenant)
    return Demand(WorkerKind.AGENT, (call.function,), tenant)


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, as announced and as it was last heard."""

    id: WorkerId
    offer: Announce
    last_heard: float
    held: dict[HeldKey, int] = field(default_factory=dict)
    """Calls dispatched to it and not ended, with their attempts."""
    stamp: int = 0

    @property
    def load(self) -> float:
        """Calls held, as a share of its capacity."""
        return len(self.held) / self.offer.capacity

    @property
    def free(self) -> bool:
        """Whether it takes another call."""
        return len(self.held) < self.offer.capacity and not self.offer.draining


_Slot = tuple[WorkerKind, str, Tenant | None]


class Fleet:
    """All workers, by what they serve."""

    def __init__(self) -> None:
        self.workers: dict[WorkerId, Worker] = {}
        self._heaps: dict[_Slot, list[tuple[float, int, WorkerId]]] = {}
        self._serving: dict[_Slot, int] = {}
        self._stamp = 0

    def announce(self, offer: Announce, now: float) -> Worker:
        """A worker presents itself, for the first time or anew; what it holds stays."""
        worker = self.workers.get(WorkerId(offer.worker))
        if worker is None:
            worker = self.workers[WorkerId(offer.worker)] = Worker(WorkerId(offer.worker), offer, now)
        else:
            self._count(worker, -1)
            worker.offer = offer
        worker.last_heard = now
        self._count(worker, 1)
        self._push(worker)
        return worker

    def remove(self, worker_id: WorkerId) -> Worker | None:
        """A worker is gone."""
        worker = self.workers.pop(worker_id, None)
        if worker is not None:
            self._count(worker, -1)
        return worker

    def hold(self, worker: Worker, key: HeldKey, attempt: int) -> None:
        """A call was dispatched to the worker, or found running there."""
        worker.held[key] = attempt
        self._push(worker)

    def drop(self, worker: Worker, key: HeldKey) -> None:
        """A call has ended on the worker."""
        if worker.held.pop(key, None) is not None:
            self._push(worker)

    def choose(self, demand: Demand) -> Worker | None:
        """The least loaded worker that serves the demand and takes another call."""
        best: Worker | None = None
        for slot in _slots(demand):
            worker = self._top(slot)
            if worker is not None and (best is None or worker.load < best.load):
                best = worker
        return best

    def serves(self, demand: Demand) -> bool:
        """Whether anybody serves the demand at all, busy or not."""
        return any(self._serving.get(slot, 0) for slot in _slots(demand))

    def served(self, kind: WorkerKind) -> list[str]:
        """The names that workers of this kind serve, for messages to people."""
        return sorted({name for k, name, _ in self._serving if k is kind and name})

    def _top(self, slot: _Slot) -> Worker | None:
        heap = self._heaps.get(slot, [])
        while heap:
            _, stamp, worker_id = heap[0]
            worker = self.workers.get(worker_id)
            if worker is not None and worker.stamp == stamp and worker.free:
                return worker
            heapq.heappop(heap)
        return None

    def _push(self, worker: Worker) -> None:
        self._stamp += 1
        worker.stamp = self._stamp
        if worker.free:
            for slot in _offered(worker.offer):
                heap = self._heaps.setdefault(slot, [])
                heapq.heappush(heap, (worker.load, worker.stamp, worker.id))
                if len(heap) > 64 + 4 * self._serving[slot]:
                    self._compact(slot)

    def _compact(self, slot: _Slot) -> None:
        """Drop stale entries that never surface. Amortised over the pushes that made them."""
        heap = self._heaps[slot]
        heap[:] = [e for e in heap if (w := self.workers.get(e[2])) is not None and w.stamp == e[1]]
        heapq.heapify(heap)

    def _count(self, worker: Worker, change: int) -> None:
        for slot in _offered(worker.offer):
            left = self._serving.get(slot, 0) + change
            if left:
                self._serving[slot] = left
            else:
                self._serving.pop(slot, None)
                self._heaps.pop(slot, None)

    def check(self) -> None:
        """Raise AssertionError if the books contradict each other."""
        counts: dict[_Slot, int] = {}
        for worker in self.workers.values():
            for slot in _offered(worker.offer):
                counts[slot] = counts.get(slot, 0) + 1
                listed = any(entry[1] == worker.stamp for entry in self._heaps.get(slot, ()))
                assert listed or not worker.free, f"{worker.id} is free, but not to be found"
        assert counts == self._serving, f"{counts} != {self._serving}"


def _offered(offer: Announce) -> Iterator[_Slot]:
    tenant = None if offer.tenant is None else Tenant(offer.tenant)
    names: Iterable[str] = dict.fromkeys(offer.serves)
    for name in names:
        yield offer.kind, name, tenant
    if offer.kind is WorkerKind.ENGINE and "" not in offer.serves:
        yield offer.kind, "", tenant


def _slots(demand: Demand) -> Iterator[_Slot]:
    for name in demand.names:
        yield demand.kind, name, None
        if demand.tenant is not None:
            yield demand.kind, name, demand.tenant
