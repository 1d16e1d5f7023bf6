"""What runs: ready calls are given to workers, running ones are taken from them, and what follows from a graph's change is done.

Law: a call is in the planner's queue while it is ready, and in its worker's books while it runs. Nothing is dispatched before
this scheduler leads, nor in the first `SETTLE` seconds after, so that workers which already run a call can say so.
"""

from __future__ import annotations

from typing import assert_never

from myna.actors.messages import Anticipate, ModelCall, Release, Retain, Run, VarId
from myna.actors.scheduler.commands import Dispatch, EndVariable, Foresee, Keep, LetGo, WakeAt
from myna.actors.scheduler.fleet import HeldKey, Worker
from myna.actors.scheduler.nodes import READY, RUNNING, CallNode, Effects
from myna.actors.scheduler.policies.placement import Place
from myna.actors.scheduler.policies.retention import Lead, Waiver, Wish
from myna.actors.scheduler.state import Session, State

SETTLE = 1.5
"""Seconds that a new leader waits for workers to say what they already run."""


class Dispatcher:
    """See the module."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._wakes_at: float | None = None
        self.settles_at: float | None = None

    # --- what a graph's change asks for ---

    def apply(self, session: Session, effects: Effects, now: float) -> None:
        """Do what follows from a change of a session's graph."""
        planner = self._state.planner
        for call in effects.ended:
            self.release(session, call, halt=False)
        for call in effects.halted:
            self.release(session, call, halt=True)
        for call in effects.withdrawn:
            self.release(session, call, halt=True)
        freed: list[CallNode] = []
        if effects.withdrawn or effects.ending:
            for call in (*effects.withdrawn, *effects.ending):
                freed += planner.left(call)
        for call in effects.finished:
            freed += planner.ended(call)
        if effects.doomed:
            self._state.out += [EndVariable(*session.key, variable, outcome) for variable, outcome in effects.doomed]
        for call in effects.ready:
            if call.state is READY:  # and has not been ended, or withdrawn, by the same change
                self._enqueue(call, now)
        for call in freed:
            if call.state is READY:
                self._enqueue(call, call.since)
        if effects.ready or effects.ended or effects.halted or effects.withdrawn or freed:
            self.dispatch(now)

    def again(self, call: CallNode, now: float) -> None:
        """A call that ran is ready once more."""
        call.state = READY
        self._enqueue(call, now)
        self.dispatch(now)

    def _enqueue(self, call: CallNode, since: float) -> None:
        call.since = since
        call.seen |= self._state.lease is None  # an earlier leader may have run it
        self._state.planner.ready(call)

    # --- workers are given calls ---

    def dispatch(self, now: float) -> None:
        """Give out ready calls for as long as there are places."""
        state = self._state
        if state.lease is None or self.settles_at is not None or not state.planner.busy:
            return
        state.fleet.wake()
        for call, place in state.planner.choose(now):
            self._start(call, place, now)
        wakes_at = state.fleet.wake()
        if wakes_at is not None and (self._wakes_at is None or wakes_at < self._wakes_at) and state.planner.busy:
            self._wakes_at = wakes_at
            state.out.append(WakeAt(wakes_at))

    def _start(self, call: CallNode, place: Place, now: float) -> None:
        state = self._state
        assert call.spec is not None
        assert call.session is not None
        assert state.lease is not None
        attempt = state.next_attempt()
        tenant, session = call.session.tenant, call.session.id
        run = Run(
            tenant=tenant,
            session=session,
            call=call.spec,
            attempt=attempt,
            lease=state.lease,
            resume=call.seen,
            cache=self._state.cache_of(tenant, session),
            source=place.source,
            order=state.planner.order(call),
        )
        waited = now - call.since
        self.occupy(call, place.worker, attempt, now, place)
        state.out.append(Dispatch(place.worker.id, run, waited))

    def occupy(self, call: CallNode, worker: Worker, attempt: int, now: float, place: Place | None = None) -> None:
        """A call runs on a worker: dispatched to a place, or found running there."""
        assert call.session is not None
        key = (call.session.tenant, call.session.id)
        self._state.planner.started(call, worker, (*key, call.id), attempt, place, now)
        call.state, call.worker, call.attempt, call.since, call.seen = RUNNING, worker.id, attempt, now, True
        self._state.sessions[key].running += 1

    def release(self, session: Session, call: CallNode, *, halt: bool) -> None:
        """A running call runs no more on its worker, which is told to stop with `halt`."""
        if call.worker is None:
            return
        key: HeldKey = (*session.key, call.id)
        worker = self._state.fleet.workers.get(call.worker)
        self._state.planner.stopped(key)
        if worker is not None:
            self._state.fleet.drop(worker, key)
            if halt:
                self._state.halt(worker.id, key, call.attempt)
        call.worker = None
        session.running -= 1

    def advise(self, now: float) -> None:
        """Tell workers what to keep and what to begin ahead, now that all that could be dispatched has been."""
        state = self._state
        lease = state.lease
        for order in state.planner.orders(now, leading=lease is not None):
            assert lease is not None
            match order:
                case Wish(worker, id_, tenant, session, call, distance, stream):
                    retain = Retain(
                        tenant=tenant,
                        session=session,
                        id=id_,
                        call=call,
                        lease=lease,
                        distance=max(distance, 0.0),
                        cache=self._state.cache_of(tenant, session),
                        stream=stream,
                    )
                    state.out.append(Keep(worker, retain))
                case Lead(worker, call, awaits):
                    state.out.append(Foresee(worker, self._anticipated(call, awaits, lease)))
                case Waiver(worker, ids):
                    state.out.append(LetGo(worker, Release(ids=ids, lease=lease)))
                case _:
                    assert_never(order)

    def _anticipated(self, call: CallNode, awaits: VarId, lease: int) -> Anticipate:
        assert isinstance(call.spec, ModelCall)
        assert call.session is not None
        tenant, session = call.session.tenant, call.session.id
        return Anticipate(
            tenant=tenant,
            session=session,
            call=call.spec,
            awaits=awaits,
            lease=lease,
            cache=self._state.cache_of(tenant, session),
            order=self._state.planner.order(call),
        )

    # --- time ---

    def settle(self, now: float) -> None:
        """From now on, wait for workers to say what they run."""
        self.settles_at = now + SETTLE

    def wake(self, now: float) -> None:
        """The time that was asked for has come."""
        self._wakes_at = None
        self.dispatch(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.settles_at is not None and now >= self.settles_at:
            self.settles_at = None
            self.dispatch(now)
        if self._wakes_at is not None and now >= self._wakes_at:
            self.wake(now)
