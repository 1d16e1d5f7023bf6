"""Attempts, as workers tell of them: adopted, taken for lost, tried again, given up.

Laws:
- A call is finished when the values' stream has an outcome for each of its outputs, whatever workers say.
- A call is given up only after its retries, whoever led meanwhile: tries are written into the log. A worker's refusal costs none.
- While the bus is not there, silence proves nothing about workers.
"""

from __future__ import annotations

from typing import Final, assert_never

from msgspec import structs

from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Beat,
    CallId,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    Leave,
    Running,
    SessionId,
    Tenant,
    Tried,
    WorkerId,
    WorkerKind,
)
from myna.actors.scheduler.commands import AppendEntry
from myna.actors.scheduler.dispatch import Dispatcher
from myna.actors.scheduler.events import Tick
from myna.actors.scheduler.fleet import Demand, HeldKey, Worker
from myna.actors.scheduler.nodes import CallNode, CallState
from myna.actors.scheduler.planner import was_copied
from myna.actors.scheduler.state import Session, State

SUSPECT = 2.4
"""Seconds of silence after which a worker is given up. It beats once a second."""
LOST_BEATS = 2
"""Beats without a call that was dispatched to the worker, after which the dispatch is taken for lost."""
STOPPED_BEATS = 2
"""Beats without a call that the worker was told to stop, after which it has stopped: the first may be older than the order."""
MOST_OVERTAKEN = 20
"""Attempts of one call that may be overtaken by another without costing a try; each time the other has got further."""
UNSERVED = 60.0
"""Seconds that a ready call waits for a worker that serves it to appear at all."""

_STARTED: Final = EventKind.STARTED
_FINISHED: Final = EventKind.FINISHED


class Attempts:
    """See the module."""

    def __init__(self, state: State, dispatcher: Dispatcher) -> None:
        self._state = state
        self._fleet = state.fleet
        self._dispatcher = dispatcher
        self._last_tick: float | None = None
        self._was_healthy = True

    # --- what workers say ---

    def heard(self, message: Announce | Beat | Event | Leave, now: float) -> None:
        """A worker spoke."""
        match message:
            case Event():  # the most frequent first
                self._progress(message, now)
            case Beat():
                self._beat(message, now)
            case Announce():
                self._announced(message, now)
            case Leave():
                self._left(message, now)
            case _:
                assert_never(message)

    def _announced(self, offer: Announce, now: float) -> None:
        if offer.protocol != PROTOCOL:
            other = f"it speaks protocol {offer.protocol}, this scheduler {PROTOCOL}: bring both to one version"
            offer = structs.replace(offer, paused=other)
        known = self._fleet.workers.get(WorkerId(offer.worker))
        if known is not None and known.offer.incarnation != offer.incarnation:
            self._lose(known, "it was restarted", now)
        worker = self._fleet.announce(offer, now)
        self._reconcile(worker, offer.running, now, fresh=True)
        self._dispatcher.dispatch(now)

    def _beat(self, beat: Beat, now: float) -> None:
        worker = self._fleet.workers.get(WorkerId(beat.worker))
        if worker is None or worker.offer.incarnation != beat.incarnation:
            self._state.greets = True
            return
        worker.last_heard = now
        self._state.planner.heard(worker, beat)
        self._reconcile(worker, beat.running, now, fresh=False)
        self._dispatcher.dispatch(now)

    def _progress(self, event: Event, now: float) -> None:
        worker = self._fleet.workers.get(WorkerId(event.worker))
        if worker is not None:
            worker.last_heard = now
        if event.kind is _FINISHED or event.kind is _STARTED:
            return  # the values' stream says when a call has ended
        key: HeldKey = (Tenant(event.tenant), SessionId(event.session), CallId(event.call))
        match event.kind:
            case EventKind.FAILED:
                failure = event.failure or Failure(code=ErrorCode.ENGINE_ERROR, message="the worker gave no reason")
                self._retry(key, event.attempt, failure, now, final=event.final)
            case EventKind.REFUSED:
                self._refused(key, event.attempt, now)
            case EventKind.OVERTAKEN:
                self._overtaken(key, event.attempt, now)
            case _:
                assert_never(event.kind)

    def _left(self, leave: Leave, now: float) -> None:
        worker = self._fleet.workers.get(WorkerId(leave.worker))
        if worker is None or worker.offer.incarnation != leave.incarnation:
            return
        if leave.reason:
            self._lose(worker, leave.reason[:1000], now)
            return
        self._fleet.remove(worker.id)
        self._state.planner.lost(worker.id)
        for key, attempt in list(worker.held.items()):
            self._again(key, attempt, now)  # handed over: that costs no try

    # --- what a worker holds, and what we believe ---

    def _reconcile(self, worker: Worker, running: tuple[Running, ...], now: float, *, fresh: bool) -> None:
        """Compare what the worker says it runs with what we believe: adopt, stop, or take for lost."""
        there: dict[HeldKey, int] = {
            (Tenant(r.tenant), SessionId(r.session), CallId(r.call)): r.attempt for r in running
        }
        for key, attempt in there.items():
            worker.missed.pop(key, None)
            if worker.held.get(key) != attempt:
                self._adopt_or_stop(worker, key, attempt, now)
        if fresh:
            return
        for key, beats in list(worker.stopping.items()):
            worker.stopping[key] = 0 if key in there else beats + 1
            if worker.stopping[key] == STOPPED_BEATS:
                del worker.stopping[key]
        for key, attempt in list(worker.held.items()):
            if key not in there:
                worker.missed[key] = worker.missed.get(key, 0) + 1
                if worker.missed[key] > LOST_BEATS:
                    self._state.haunt(key[:2], now)  # the order may come yet
                    self._retry(key, attempt, _lost(worker, "it never began, or forgot, the call"), now)

    def _adopt_or_stop(self, worker: Worker, key: HeldKey, attempt: int, now: float) -> None:
        found = self._state.find(key)
        if found is not None and _may_run(found[1]):
            self._dispatcher.occupy(found[1], worker, attempt, now)
        elif found is None or found[1].state is not CallState.RUNNING:
            self._state.halt(worker.id, key, attempt)
        elif found[1].attempt < attempt < self._state.coming_attempt():
            # An older attempt was adopted first; only the newer one can still publish.
            self._dispatcher.release(*found, halt=True)
            self._dispatcher.occupy(found[1], worker, attempt, now)
        elif found[1].attempt != attempt:
            self._state.halt(worker.id, key, attempt)

    # --- again, or given up ---

    def _running(self, key: HeldKey, attempt: int) -> tuple[Session, CallNode] | None:
        found = self._state.find(key)
        if found is None or found[1].state is not CallState.RUNNING or found[1].attempt != attempt:
            return None
        return found

    def _refused(self, key: HeldKey, attempt: int, now: float) -> None:
        """The worker never began: no try is counted. It gets no more calls until it has announced itself again."""
        found = self._running(key, attempt)
        if found is None:
            return
        session, call = found
        worker = self._fleet.workers.get(call.worker) if call.worker else None
        self._dispatcher.release(session, call, halt=False)
        if worker is not None:
            self._fleet.announce(structs.replace(worker.offer, draining=True), now)
            self._state.greets = True
        self._dispatcher.again(call, now)

    def _again(self, key: HeldKey, attempt: int, now: float) -> None:
        """An attempt has ended through no fault of the call or of its worker."""
        found = self._running(key, attempt)
        if found is not None:
            self._dispatcher.release(*found, halt=False)
            self._dispatcher.again(found[1], now)

    def _overtaken(self, key: HeldKey, attempt: int, now: float) -> None:
        """An earlier attempt lived on, and published: the next one goes on from there."""
        found = self._running(key, attempt)
        if found is None:
            return
        found[1].overtaken += 1
        if found[1].overtaken <= MOST_OVERTAKEN:
            self._again(key, attempt, now)
        else:
            message = "others keep publishing its chunks: every attempt finds its next one taken"
            self._retry(key, attempt, Failure(code=ErrorCode.WORKER_LOST, message=message, retryable=True), now)

    def _retry(self, key: HeldKey, attempt: int, failure: Failure, now: float, *, final: bool = False) -> None:
        """An attempt failed: try again, or give the call up with the reason."""
        found = self._running(key, attempt)
        if found is None:
            return
        session, call = found
        assert call.spec is not None
        self._dispatcher.release(session, call, halt=False)
        if was_copied(call):  # what it was to take over can't be had: it is computed
            self._state.planner.copy_failed(call)
            self._dispatcher.again(call, now)
            return
        call.tries += 1
        if failure.retryable and not final and call.tries <= call.spec.retries:
            self._state.out.append(AppendEntry(*session.key, Tried(call=call.id, tries=call.tries)))
            self._dispatcher.again(call, now)
        else:
            if failure.retryable and call.tries > 1:
                failure = structs.replace(failure, message=f"given up after {call.tries} attempts: {failure.message}")
            self._dispatcher.apply(session, session.graph.fail(call, _attributed(failure, call)), now)

    def _lose(self, worker: Worker, why: str, now: float) -> None:
        self._fleet.remove(worker.id)
        self._state.planner.lost(worker.id)
        for key in (*worker.held, *worker.stopping):
            self._state.haunt(key[:2], now)
        for key, attempt in list(worker.held.items()):
            self._retry(key, attempt, _lost(worker, why), now)

    # --- time ---

    def tick(self, event: Tick) -> None:
        """Time has passed: the silent are given up, and calls that nobody serves."""
        now = event.now
        slept = self._last_tick is not None and now - self._last_tick > SUSPECT / 2
        if not event.healthy or not self._was_healthy or slept:
            for worker in self._fleet.workers.values():  # we were deaf: silence proves nothing
                worker.last_heard = now
        self._was_healthy, self._last_tick = event.healthy, now
        for worker in list(self._fleet.workers.values()):
            if now - worker.last_heard > SUSPECT:
                self._lose(worker, f"silent for {now - worker.last_heard:.1f} s", now)
        self._give_up_unserved(now)

    def _give_up_unserved(self, now: float) -> None:
        for demand, call in self._state.planner.unserved():
            if now - call.since > UNSERVED and call.session is not None:
                session = self._state.sessions[call.session.tenant, call.session.id]
                self._dispatcher.apply(session, session.graph.fail(call, self._unserved(demand, call)), now)

    def _unserved(self, demand: Demand, call: CallNode) -> Failure:
        wanted = " or ".join(repr(name) for name in demand.names if name) or "any model"
        there = ", ".join(self._fleet.served(demand.kind)) or "nothing"
        message = f"no {demand.kind.value} serves {wanted}; {demand.kind.value}s here serve {there}"
        away = [w.offer.paused for w in self._fleet.workers.values() if w.offer.paused and not w.offer.serves]
        if away and demand.kind is WorkerKind.ENGINE:
            message = f"{message}; of one that serves nothing for now: {away[0]}"
        return Failure(code=ErrorCode.NO_WORKER, message=message, call=call.id, function=call.function, retryable=True)


def _may_run(call: CallNode) -> bool:
    """Whether a call waits for nothing but a worker, so that one which runs it already may go on."""
    return call.state in (CallState.WAITING, CallState.READY) and call.missing == 0 and call.wanted


def _lost(worker: Worker, why: str) -> Failure:
    return Failure(code=ErrorCode.WORKER_LOST, message=f"worker {worker.id!r} was lost: {why}", retryable=True)


def _attributed(failure: Failure, call: CallNode) -> Failure:
    """The failure, naming the call where it began: this one, unless its worker (an agent that made calls) names another."""
    return Failure(
        code=failure.code,
        message=failure.message,
        call=failure.call or call.id,
        function=failure.function if failure.call else call.function,
        variable=failure.variable,
        retryable=failure.retryable,
        attempt=call.attempt,
        retry_after=failure.retry_after,
    )
