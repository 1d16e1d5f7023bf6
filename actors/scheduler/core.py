"""The scheduler as a pure function: `handle(event) -> commands`. No asyncio, no bus, no clock, no randomness.

Laws:
- A call is finished when the values' stream has an outcome for each of its outputs, whatever workers say.
- Only this core ends variables by failure or cancellation, and a call is given up only after its retries.
- Until `Led`, events rebuild state and cause no command; after it, calls that were ready before wait `SETTLE` seconds,
  so that workers which already run them can say so and are believed (adopted).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from msgspec import structs

from myna.actors.messages import (
    PROTOCOL,
    Announce,
    Attempt,
    Beat,
    CallId,
    Cancel,
    Close,
    Declare,
    ErrorCode,
    Event,
    EventKind,
    Explanation,
    Failure,
    Hello,
    Leave,
    LogEntry,
    Open,
    Run,
    Running,
    SessionId,
    SessionStatus,
    Status,
    Stop,
    Submit,
    Tenant,
    VarId,
    Want,
    Why,
    WorkerId,
    WorkerStatus,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.program import outputs_of
from myna.actors.scheduler import explain
from myna.actors.scheduler.commands import (
    AppendClose,
    Command,
    Dispatch,
    EndVariable,
    Halt,
    PurgeSession,
    SayHello,
    WakeAt,
)
from myna.actors.scheduler.events import Ended, Heard, Led, Logged, SchedulerEvent, Tick, Touched, Wake
from myna.actors.scheduler.fleet import Demand, Fleet, HeldKey, Worker
from myna.actors.scheduler.graph import CallNode, CallState, Effects, SessionGraph
from myna.actors.scheduler.planner import Planner
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.placement import Place

SUSPECT = 2.5
"""Seconds of silence after which a worker is given up. It beats once a second."""
SETTLE = 1.5
"""Seconds that a new leader waits for workers to say what they already run."""
LOST_BEATS = 2
"""Beats without a call that was dispatched to the worker, after which the dispatch is taken for lost."""
UNSERVED = 60.0
"""Seconds that a ready call waits for a worker that serves it to appear at all."""
CLOSING = 2.0
"""Seconds between a session's close and the purge of what it stored, for readers and late writers."""
EARLY = 10.0
"""Seconds that an outcome may come before its session is known: the log and the values are two streams."""


@dataclass(slots=True, eq=False)
class Session:
    """A session and the calls of it that run."""

    tenant: Tenant
    id: SessionId
    opened: Open
    graph: SessionGraph
    last_active: float
    running: int = 0
    closing_at: float | None = None
    closed_because: str = "it was closed"


SessionKey = tuple[Tenant, SessionId]


@dataclass(slots=True)
class _Early:
    since: float
    outcomes: list[Ended]


class SchedulerCore:
    """State and decisions of one scheduler."""

    def __init__(self, policies: Policies | None = None) -> None:
        self.lease: int | None = None
        self.name = ""
        self.sessions: dict[SessionKey, Session] = {}
        policies = policies or Policies()
        self.fleet = Fleet(late=policies.capacity)
        self.planner = Planner(policies, self.fleet)
        self._early: dict[SessionKey, _Early] = {}
        self._missed: dict[tuple[WorkerId, HeldKey], int] = {}
        self._attempts = 0
        self._wakes_at: float | None = None
        self._settles_at: float | None = None
        self._greet = False
        self._unanswered: list[Command] = []
        self._last_tick: float | None = None
        self._was_healthy = True
        self._out: list[Command] = []

    # --- the mailbox ---

    def handle(self, event: SchedulerEvent) -> list[Command]:
        """Apply one event; returns what is to be done, in order. Before `Led` this is nothing."""
        self.fleet.now = event.now
        match event:
            case Led():
                self._lead(event)
            case Logged():
                self._logged(event)
            case Ended():
                self._ended(event)
            case Heard():
                self._heard(event)
            case Touched():
                self._touch((event.tenant, event.session), event.now)
            case Tick():
                self._tick(event)
            case Wake():
                self._wakes_at = None
                self._dispatch(event.now)
            case _:
                assert_never(event)
        out, self._out = self._out, []
        return out if self.lease is not None else []

    # --- leading ---

    def _lead(self, event: Led) -> None:
        self.lease, self.name = event.lease, event.scheduler
        self._out, self._unanswered = self._unanswered, []
        self._say_hello()
        for session in self.sessions.values():
            session.last_active = event.now
        if any(s.graph.unfinished for s in self.sessions.values()):
            self._settles_at = event.now + SETTLE
        self._redo(event.now)

    def _say_hello(self) -> None:
        if self.lease is not None:
            self._out.append(SayHello(Hello(protocol=PROTOCOL, scheduler=self.name, lease=self.lease)))

    def _redo(self, now: float) -> None:
        """What an earlier leader may have left undone: outcomes never published, sessions never purged. All idempotent."""
        for key, session in list(self.sessions.items()):
            if session.closing_at is not None:
                session.closing_at = now + CLOSING
                self._apply(session, session.graph.close(f"the session has ended: {session.closed_because}"), now)
            for call in session.graph.calls.values():
                if call.state is CallState.ENDING:
                    self._reissue(key, session, call)

    def _reissue(self, key: SessionKey, session: Session, call: CallNode) -> None:
        outcome = call.outcome
        if outcome is not None:
            for output in call.outputs:
                if session.graph.variables[output].status is None:
                    self._out.append(EndVariable(*key, output, outcome))

    # --- the log ---

    def _logged(self, event: Logged) -> None:
        key = (event.tenant, event.session)
        session = self.sessions.get(key)
        if isinstance(event.entry, Open):
            if session is None:
                self._open(key, event.entry, event.now)
            return
        if session is None or session.closing_at is not None:
            self._late(key, session, event.entry)
            return
        session.last_active = event.now
        graph = session.graph
        match event.entry:
            case Declare(variables=variables):
                graph.declare(VarId(v) for v in variables)
            case Submit(calls=calls):
                effects = graph.submit(calls)
                self.planner.added(graph, effects.added, event.now)
                self._apply(session, effects, event.now)
            case Want(variables=variables, objective=objective):
                effects = graph.want(VarId(v) for v in variables)
                self.planner.wanted(graph, (VarId(v) for v in variables), objective, event.now)
                self._apply(session, effects, event.now)
            case Cancel(calls=calls, reason=reason):
                chosen = [CallId(c) for c in calls] or [c for c, n in graph.calls.items() if n.unended]
                self._apply(session, graph.cancel(chosen, reason or "cancelled by the application"), event.now)
            case Close(reason=reason):
                session.closing_at = event.now + CLOSING
                session.closed_because = reason or session.closed_because
                self._apply(session, graph.close(f"the session has ended: {session.closed_because}"), event.now)
            case _:
                assert_never(event.entry)

    def _open(self, key: SessionKey, entry: Open, now: float) -> None:
        graph = SessionGraph(lazy=entry.lazy, tenant=key[0], session=key[1], priority=entry.priority)
        session = self.sessions[key] = Session(*key, entry, graph, now)
        if entry.protocol != PROTOCOL:
            session.closing_at = now + CLOSING
            session.closed_because = f"its client speaks protocol {entry.protocol}, this scheduler {PROTOCOL}"
        early = self._early.pop(key, None)
        for outcome in early.outcomes if early else ():
            self._ended(outcome)

    def _late(self, key: SessionKey, session: Session | None, entry: LogEntry) -> None:
        """An entry for a session that is closed, or never was: whoever waits for its variables is told."""
        match entry:
            case Submit(calls=calls):
                variables = [v for call in calls for v in outputs_of(call)]
            case Want(variables=wanted) | Declare(variables=wanted):
                variables = [VarId(v) for v in wanted]
            case _:
                variables = []
        known = session.graph.variables if session else {}
        why = session.closed_because if session else "it was closed long ago, or never opened"
        failure = Failure(code=ErrorCode.SESSION_CLOSED, message=f"session {key[1]!r} takes no more calls: {why}")
        out = self._unanswered if self.lease is None else self._out
        out += [EndVariable(*key, v, failure) for v in variables if v not in known or known[v].status is None]
        if session is None:
            out.append(PurgeSession(*key))

    # --- the values ---

    def _ended(self, event: Ended) -> None:
        key = (event.tenant, event.session)
        session = self.sessions.get(key)
        if session is None:
            early = self._early.setdefault(key, _Early(event.now, []))
            early.outcomes.append(event)
            return
        session.last_active = event.now
        if event.status is OutcomeStatus.VALUE:
            usage, characters, content = event.usage, event.characters, event.content
            self.planner.produced(session.graph, event.variable, usage, characters, content, event.now)
        self._apply(session, session.graph.ended(event.variable, event.status, event.failure), event.now)

    def _apply(self, session: Session, effects: Effects, now: float) -> None:
        key = (session.tenant, session.id)
        for call in effects.ended:
            self._release(session, call, halt=False)
        for call in effects.halted:
            self._release(session, call, halt=True)
        for call in effects.finished:
            self.planner.ended(call)
        self._out += [EndVariable(*key, variable, outcome) for variable, outcome in effects.doomed]
        for call in effects.ready:
            self._enqueue(call, now)
        if effects.ready or effects.ended or effects.halted:
            self._dispatch(now)

    # --- dispatch ---

    def _enqueue(self, call: CallNode, now: float) -> None:
        call.since = now
        call.seen |= self.lease is None  # an earlier leader may have run it
        self.planner.ready(call)

    def _dispatch(self, now: float) -> None:
        if self.lease is None or self._settles_at is not None:
            return
        self.fleet.wake()
        for call, place in self.planner.choose(now):
            self._start(call, place, now)
        wakes_at = self.fleet.wake()
        if wakes_at is not None and (self._wakes_at is None or wakes_at < self._wakes_at) and self.planner.busy:
            self._wakes_at = wakes_at
            self._out.append(WakeAt(wakes_at))

    def _start(self, call: CallNode, place: Place, now: float) -> None:
        assert call.spec is not None
        assert call.session is not None
        assert self.lease is not None
        key = (call.session.tenant, call.session.id)
        attempt = self._next_attempt()
        self._attempts += 1
        run = Run(
            tenant=key[0],
            session=key[1],
            call=call.spec,
            attempt=attempt,
            lease=self.lease,
            resume=call.seen,
        )
        self._occupy(call, place.worker, attempt, now, place)
        self._out.append(Dispatch(place.worker.id, run))

    def _next_attempt(self) -> Attempt:
        return Attempt(((self.lease or 0) << 20) + self._attempts + 1)

    def _occupy(self, call: CallNode, worker: Worker, attempt: int, now: float, place: Place | None = None) -> None:
        assert call.session is not None
        key = (call.session.tenant, call.session.id)
        self.planner.started(call, worker, (*key, call.id), attempt, place, now)
        call.state, call.worker, call.attempt, call.since, call.seen = CallState.RUNNING, worker.id, attempt, now, True
        self.sessions[key].running += 1

    def _release(self, session: Session, call: CallNode, *, halt: bool) -> None:
        """A running call runs no more on its worker."""
        if call.worker is None:
            return
        key: HeldKey = (session.tenant, session.id, call.id)
        worker = self.fleet.workers.get(call.worker)
        self._missed.pop((call.worker, key), None)
        self.planner.stopped(key)
        if worker is not None:
            self.fleet.drop(worker, key)
            if halt and self.lease is not None:
                stop = Stop(tenant=key[0], session=key[1], call=key[2], attempt=call.attempt, lease=self.lease)
                self._out.append(Halt(worker.id, stop))
        call.worker = None
        session.running -= 1

    # --- workers ---

    def _heard(self, event: Heard) -> None:
        message = event.message
        match message:
            case Announce():
                self._announced(message, event.now)
            case Beat():
                self._beat(message, event.now)
            case Event():
                self._progress(message, event.now)
            case Leave():
                self._gone(WorkerId(message.worker), message.incarnation, "it has left", event.now)
            case _:
                assert_never(message)

    def _announced(self, offer: Announce, now: float) -> None:
        if offer.protocol != PROTOCOL:
            return
        known = self.fleet.workers.get(WorkerId(offer.worker))
        if known is not None and known.offer.incarnation != offer.incarnation:
            self._lose(known, "it was restarted", now)
        worker = self.fleet.announce(offer, now)
        self._reconcile(worker, offer.running, now, fresh=True)
        self._dispatch(now)

    def _beat(self, beat: Beat, now: float) -> None:
        worker = self.fleet.workers.get(WorkerId(beat.worker))
        if worker is None or worker.offer.incarnation != beat.incarnation:
            self._greet = True
            return
        worker.last_heard = now
        self.planner.heard(worker, beat)
        self._reconcile(worker, beat.running, now, fresh=False)
        self._dispatch(now)

    def _reconcile(self, worker: Worker, running: tuple[Running, ...], now: float, *, fresh: bool) -> None:
        """Compare what the worker says it runs with what we believe: adopt, stop, or take for lost."""
        there: dict[HeldKey, int] = {
            (Tenant(r.tenant), SessionId(r.session), CallId(r.call)): r.attempt for r in running
        }
        for key, attempt in there.items():
            self._missed.pop((worker.id, key), None)
            if worker.held.get(key) != attempt:
                self._adopt_or_stop(worker, key, attempt, now)
        for key, attempt in list(worker.held.items()):
            if key not in there and not fresh:
                missed = self._missed.get((worker.id, key), 0) + 1
                self._missed[worker.id, key] = missed
                if missed > LOST_BEATS:
                    self._retry(key, attempt, self._lost(worker, "it never began, or forgot, the call"), now)

    def _adopt_or_stop(self, worker: Worker, key: HeldKey, attempt: int, now: float) -> None:
        session = self.sessions.get((key[0], key[1]))
        call = session.graph.calls.get(key[2]) if session else None
        if (
            call is not None
            and call.state in (CallState.WAITING, CallState.READY)
            and call.missing == 0
            and call.wanted
        ):
            self._occupy(call, worker, attempt, now)
        elif call is not None and call.state is CallState.RUNNING and call.attempt < attempt < self._next_attempt():
            assert session is not None  # an older attempt was adopted first; only the newer one can still publish
            self._release(session, call, halt=True)
            self._occupy(call, worker, attempt, now)
        elif self.lease is not None and (
            call is None or call.state is not CallState.RUNNING or call.attempt != attempt
        ):
            stop = Stop(tenant=key[0], session=key[1], call=key[2], attempt=attempt, lease=self.lease)
            self._out.append(Halt(worker.id, stop))

    def _progress(self, event: Event, now: float) -> None:
        key: HeldKey = (Tenant(event.tenant), SessionId(event.session), CallId(event.call))
        worker = self.fleet.workers.get(WorkerId(event.worker))
        if worker is not None:
            worker.last_heard = now
        match event.kind:
            case EventKind.STARTED | EventKind.FINISHED:
                pass  # the values' stream says when a call has ended
            case EventKind.FAILED:
                failure = event.failure or Failure(code=ErrorCode.ENGINE_ERROR, message="the worker gave no reason")
                self._retry(key, event.attempt, failure, now)
            case EventKind.REFUSED:
                self._refused(key, event.attempt, now)
            case _:
                assert_never(event.kind)

    def _running_call(self, key: HeldKey, attempt: int) -> tuple[Session, CallNode] | None:
        session = self.sessions.get((key[0], key[1]))
        call = session.graph.calls.get(key[2]) if session else None
        if session is None or call is None or call.state is not CallState.RUNNING or call.attempt != attempt:
            return None
        return session, call

    def _refused(self, key: HeldKey, attempt: int, now: float) -> None:
        """The worker never began: no try is counted. It gets no more calls until it has announced itself again."""
        found = self._running_call(key, attempt)
        if found is None:
            return
        session, call = found
        worker = self.fleet.workers.get(call.worker) if call.worker else None
        self._release(session, call, halt=False)
        if worker is not None:
            self.fleet.announce(structs.replace(worker.offer, draining=True), now)
            self._greet = True
        call.state = CallState.READY
        self._enqueue(call, now)
        self._dispatch(now)

    def _retry(self, key: HeldKey, attempt: int, failure: Failure, now: float) -> None:
        """An attempt failed: try again, or give the call up with the reason."""
        found = self._running_call(key, attempt)
        if found is None:
            return
        session, call = found
        assert call.spec is not None
        self._release(session, call, halt=False)
        call.tries += 1
        if failure.retryable and call.tries <= call.spec.retries:
            call.state = CallState.READY
            self._enqueue(call, now)
            self._dispatch(now)
        else:
            self._apply(session, session.graph.fail(call, _attributed(failure, call)), now)

    def _lost(self, worker: Worker, why: str) -> Failure:
        return Failure(code=ErrorCode.WORKER_LOST, message=f"worker {worker.id!r} was lost: {why}", retryable=True)

    def _lose(self, worker: Worker, why: str, now: float) -> None:
        self.fleet.remove(worker.id)
        self.planner.lost(worker.id)
        for key, attempt in list(worker.held.items()):
            self._missed.pop((worker.id, key), None)
            self._retry(key, attempt, self._lost(worker, why), now)

    def _gone(self, worker_id: WorkerId, incarnation: str, why: str, now: float) -> None:
        worker = self.fleet.workers.get(worker_id)
        if worker is not None and worker.offer.incarnation == incarnation:
            self._lose(worker, why, now)

    # --- time ---

    def _touch(self, key: SessionKey, now: float) -> None:
        session = self.sessions.get(key)
        if session is not None:
            session.last_active = now

    def _tick(self, event: Tick) -> None:
        now = event.now
        slept = self._last_tick is not None and now - self._last_tick > SUSPECT / 2
        if not event.healthy or not self._was_healthy or slept:
            for worker in self.fleet.workers.values():  # we were deaf: silence proves nothing
                worker.last_heard = now
        self._was_healthy, self._last_tick = event.healthy, now
        if self._greet:  # not at once: a worker that refuses for ever must not make us spin
            self._greet = False
            self._say_hello()
        for worker in list(self.fleet.workers.values()):
            if now - worker.last_heard > SUSPECT:
                self._lose(worker, f"silent for {now - worker.last_heard:.1f} s", now)
        if self._settles_at is not None and now >= self._settles_at:
            self._settles_at = None
            self._dispatch(now)
        if self._wakes_at is not None and now >= self._wakes_at:
            self._wakes_at = None
            self._dispatch(now)
        self._give_up_unserved(now)
        self._expire(now)

    def _give_up_unserved(self, now: float) -> None:
        for demand, call in self.planner.unserved():
            if now - call.since > UNSERVED and call.session is not None:
                session = self.sessions[call.session.tenant, call.session.id]
                self._apply(session, session.graph.fail(call, self._unserved(demand, call)), now)

    def _unserved(self, demand: Demand, call: CallNode) -> Failure:
        wanted = " or ".join(repr(name) for name in demand.names if name) or "any model"
        there = ", ".join(self.fleet.served(demand.kind)) or "nothing"
        message = f"no {demand.kind.value} serves {wanted}; {demand.kind.value}s here serve {there}"
        return Failure(code=ErrorCode.NO_WORKER, message=message, call=call.id, function=call.function, retryable=True)

    def _expire(self, now: float) -> None:
        for key, session in list(self.sessions.items()):
            if session.closing_at is not None:
                if now >= session.closing_at:
                    self._forget(key, session)
            elif session.running == 0 and now - session.last_active > session.opened.ttl:
                reason = f"the session expired after {session.opened.ttl:g} s without activity"
                self._out.append(AppendClose(*key, Close(reason=reason)))
                session.last_active = now
        for key, early in list(self._early.items()):
            if now - early.since > EARLY:
                del self._early[key]
                self._out.append(PurgeSession(*key))

    def _forget(self, key: SessionKey, session: Session) -> None:
        del self.sessions[key]
        self._out.append(PurgeSession(*key))

    # --- questions ---

    def status(self, now: float, rejected: int = 0) -> Status:
        """What this scheduler sees."""
        workers = tuple(
            WorkerStatus(
                worker=w.id,
                kind=w.offer.kind,
                serves=w.offer.serves,
                capacity=w.offer.capacity,
                running=len(w.held),
                draining=w.offer.draining,
                silent_seconds=round(now - w.last_heard, 3),
            )
            for w in self.fleet.workers.values()
        )
        queued = self.planner.queued
        sessions = tuple(_session_status(s) for s in self.sessions.values() if s.closing_at is None)
        return Status(
            scheduler=self.name,
            lease=self.lease or 0,
            workers=workers,
            sessions=sessions,
            queued=queued,
            rejected=rejected,
        )

    def why(self, question: Why, now: float) -> Explanation:
        """Why a call runs where and when it does, or what it waits for."""
        found = []
        for key, session in self.sessions.items():
            call = session.graph.calls.get(CallId(question.call))
            if call is not None and question.session in (None, key[1]):
                found.append(explain.explain(call, session.graph, self.fleet, self.planner, now))
                if len(found) == explain.MOST:
                    break
        return Explanation(calls=tuple(found))

    def check(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        self.fleet.check()
        held = {(w.id, key): attempt for w in self.fleet.workers.values() for key, attempt in w.held.items()}
        queued = {id(call) for call in self.planner.waiting()}
        self.planner.check()
        for key, session in self.sessions.items():
            session.graph.check()
            running = 0
            for call in session.graph.calls.values():
                if call.state is CallState.RUNNING:
                    running += 1
                    assert call.worker is not None
                    attempt = held.pop((call.worker, (*key, call.id)), None)
                    assert attempt == call.attempt, f"{call.id} runs on {call.worker}, which does not hold it"
                if call.state is CallState.READY:
                    assert id(call) in queued, f"{call.id} is ready and in no queue"
            assert running == session.running, f"{key}: {session.running} running counted, {running} found"
        assert not held, f"workers hold calls that do not run: {held}"


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
    )


def _session_status(session: Session) -> SessionStatus:
    counts = dict.fromkeys(CallState, 0)
    for call in session.graph.calls.values():
        counts[call.state] += 1
    return SessionStatus(
        tenant=session.tenant,
        session=session.id,
        name=session.opened.name[:200],
        calls=len(session.graph.calls),
        waiting=counts[CallState.WAITING],
        ready=counts[CallState.READY],
        running=counts[CallState.RUNNING],
        done=counts[CallState.ENDED],
    )
