"""Sessions, folded from the log and the values: opened, filled, ended, closed, forgotten.

Laws:
- Only this core ends variables by failure or cancellation, and whoever waits for a variable of a closed session is told.
- The log and the values are two streams: an outcome may come before its session is known, however long before. What is stored
  of a session that was never opened is purged, once the log has surely nothing more to tell of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from myna.actors.messages import (
    PROTOCOL,
    Call,
    CallId,
    Cancel,
    Close,
    Declare,
    ErrorCode,
    Failure,
    LogEntry,
    Open,
    Submit,
    Tenant,
    TenantPolicy,
    Tried,
    Unwant,
    Usage,
    VarId,
    Want,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.program import outputs_of
from myna.actors.scheduler.commands import AppendEntry, Command, EndVariable, Inquire, PurgeSession
from myna.actors.scheduler.dispatch import Dispatcher
from myna.actors.scheduler.events import Ended, Garbled, Logged, Unlogged
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import CallState, Effects
from myna.actors.scheduler.policies.tenants import Share
from myna.actors.scheduler.quotas import Stake, records
from myna.actors.scheduler.state import Session, SessionKey, State

CLOSING = 2.0
"""Seconds between a session's close and the purge of what it stored, at least. What is stored refuses late writers, so that
where a worker may still write it stays for longer (`State.haunt`, `State.stopping`)."""
REFUSED = 60.0
"""Seconds for which a session that was refused is remembered, so that its submissions are told why."""
EARLY = 10.0
"""Seconds after which it is asked whether a session will ever be known of which there is an outcome, or garbage in the log."""


_UNUSED = Usage()
_VALUE = OutcomeStatus.VALUE


@dataclass(slots=True)
class _Early:
    since: float
    outcomes: list[Ended]


class Ledger:
    """See the module."""

    def __init__(self, state: State, dispatcher: Dispatcher) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._early: dict[SessionKey, _Early] = {}
        self._unanswered: list[Command] = []

    # --- the log ---

    def logged(self, event: Logged) -> None:
        """A session's log says something."""
        key, entry, now = (event.tenant, event.session), event.entry, event.now
        session = self._state.sessions.get(key)
        if isinstance(entry, Open):
            if session is None:
                self._open(key, entry, now)
        elif session is None or session.closing_at is not None:
            self._late(key, session, entry, now)
        else:
            session.last_active = now
            self._stored(session, event.size)
            self._fold(session, entry, now)

    def _fold(
        self, session: Session, entry: Declare | Submit | Want | Unwant | Cancel | Close | Tried, now: float
    ) -> None:
        graph, planner = session.graph, self._state.planner
        match entry:
            case Declare(variables=variables):
                graph.declare(VarId(v) for v in variables)
                return
            case Submit(calls=calls):
                refused = self._over_quota(session, calls, now)
                effects = graph.submit(calls) if refused is None else graph.refuse(calls, refused)
                planner.added(graph, effects.added, now)
            case Want(variables=variables, objective=objective, reader=reader):
                effects = graph.want((VarId(v) for v in variables), reader)
                planner.wanted(graph, [VarId(v) for v in variables], objective, now)
            case Unwant(variables=variables, reader=reader):
                effects = graph.unwant((VarId(v) for v in variables), reader)
            case Cancel(calls=calls, reason=reason, upstream=upstream):
                chosen = [CallId(c) for c in calls] or [c for c, n in graph.calls.items() if n.unended]
                effects = graph.cancel(chosen, reason or "cancelled by the application", upstream=upstream)
            case Close(reason=reason):
                session.closing_at = now + max(CLOSING, session.opened.keep)
                session.closed_because = reason or session.closed_because
                self._state.quotas.closed(session.key[0], session.stake)
                planner.closed(graph)
                effects = graph.close(f"the session has ended: {session.closed_because}")
            case Tried(call=name, tries=tries):
                if (call := graph.calls.get(CallId(name))) is not None:
                    call.tries = max(call.tries, tries)
                return
            case _:
                assert_never(entry)
        self._apply(session, effects, now)

    def _apply(self, session: Session, effects: Effects, now: float) -> None:
        self._state.quotas.counted(session.key[0], session.stake, session.graph.unfinished)
        self._dispatcher.apply(session, effects, now)

    def _open(self, key: SessionKey, entry: Open, now: float) -> None:
        graph = SessionGraph(
            lazy=entry.lazy, tenant=key[0], session=key[1], priority=entry.priority, objective=entry.objective
        )
        session = self._state.sessions[key] = Session(key, entry, graph, now)
        session.refused = self._state.quotas.session_refused(key[0]) if self._state.lease is not None else None
        if session.refused is not None:
            session.stake = Stake(counts=False)
            session.closing_at = now + REFUSED
            return
        session.stake = self._state.quotas.opened(key[0])
        if entry.protocol != PROTOCOL:
            self._state.quotas.closed(key[0], session.stake)
            session.closing_at = now + CLOSING
            session.closed_because = f"its client speaks protocol {entry.protocol}, this scheduler {PROTOCOL}"
        early = self._early.pop(key, None)
        for outcome in early.outcomes if early else ():
            self.ended(outcome)

    def _late(self, key: SessionKey, session: Session | None, entry: LogEntry, now: float) -> None:
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
        if session is not None and session.refused is not None:
            failure = session.refused
        out = self._unanswered if self._state.lease is None else self._state.out
        out += [EndVariable(*key, v, failure) for v in variables if v not in known or known[v].status is None]
        if session is None:  # what was just said is to be read; then it is purged
            self._early.setdefault(key, _Early(now - EARLY + CLOSING, []))

    # --- the values ---

    def ended(self, event: Ended) -> None:
        """A variable has its outcome."""
        key = (event.tenant, event.session)
        session = self._state.sessions.get(key)
        if session is None:
            early = self._early.setdefault(key, _Early(event.now, []))
            early.outcomes.append(event)
            return
        session.last_active = event.now
        self._stored(session, event.size)
        if event.status is _VALUE:
            self._used(session, event)
            usage, characters, content = event.usage, event.characters, event.content
            self._state.planner.produced(session.graph, event.variable, usage, characters, content, event.now)
        self._apply(session, session.graph.ended(event.variable, event.status, event.failure), event.now)

    def garbled(self, event: Garbled) -> None:
        """There is something in a session's log, and nobody knows what."""
        key = (event.tenant, event.session)
        if key not in self._state.sessions:
            self._early.setdefault(key, _Early(event.now, []))

    def unlogged(self, event: Unlogged) -> None:
        """The log has no more to tell of a session: if it was never opened, it never will be."""
        key = (event.tenant, event.session)
        if self._early.pop(key, None) is not None:
            self._state.out.append(PurgeSession(*key))

    # --- quotas ---

    def set_policy(self, policy: TenantPolicy, now: float) -> None:
        """The operator has said what a tenant may have."""
        self._state.quotas.set(policy, now)
        self._state.planner.accounts.set(Tenant(policy.tenant), Share(policy.weight, policy.running))
        self._dispatcher.dispatch(now)

    def _over_quota(self, session: Session, calls: Sequence[Call], now: float) -> Failure | None:
        if self._state.lease is None:  # what was logged before was accepted, or its refusal is in the stream
            return None
        return self._state.quotas.calls_refused(session.key[0], len(calls), now)

    def _stored(self, session: Session, size: int) -> None:
        too_much = self._state.quotas.stored(session.key[0], session.stake, size)
        if too_much is not None and session.refused is None and session.closing_at is None:
            session.refused = too_much
            if self._state.lease is not None:
                self._state.out.append(AppendEntry(*session.key, Close(reason=too_much.message)))

    def _used(self, session: Session, event: Ended) -> None:
        node = session.graph.variables.get(event.variable)
        if node is not None and node.producer is not None and event.usage != _UNUSED and node.status is None:
            leads = self._state.lease is not None
            quotas, call = self._state.quotas, node.producer.id
            quotas.used(session.key[0], session.stake, call, event.usage, event.now, charge=leads)

    def _forget(self, session: Session) -> None:
        used, calls = session.stake.used, session.graph.calls
        functions = {call: calls[call].function for call in used}
        parts = records(*session.key, session.opened.name, used, functions)
        self._state.quotas.forgotten(session.key[0], session.stake)
        del self._state.sessions[session.key]
        self._state.out.append(PurgeSession(*session.key, parts))

    # --- leading ---

    def take_over(self, now: float) -> None:
        """What an earlier leader may have left undone: outcomes never published, sessions never purged. All idempotent."""
        self._state.out, self._unanswered = self._unanswered + self._state.out, []
        for session in list(self._state.sessions.values()):
            session.last_active = now
            self._state.haunt(session.key, now)  # whom the earlier leader has given up, nobody knows
            if session.closing_at is not None:
                session.closing_at = now + max(CLOSING, session.opened.keep)
                reason = f"the session has ended: {session.closed_because}"
                self._apply(session, session.graph.close(reason), now)
            self._reissue(session)

    def _reissue(self, session: Session) -> None:
        variables = session.graph.variables
        for call in session.graph.calls.values():
            if call.state is CallState.ENDING and call.outcome is not None:
                self._state.out += [
                    EndVariable(*session.key, o, call.outcome) for o in call.outputs if variables[o].status is None
                ]

    # --- time ---

    def touch(self, key: SessionKey, now: float) -> None:
        """A client still holds its session."""
        session = self._state.sessions.get(key)
        if session is not None:
            session.last_active = now

    def tick(self, now: float) -> None:
        """Time has passed: sessions expire and are forgotten."""
        stopping = self._state.stopping()
        for key, session in list(self._state.sessions.items()):
            if session.closing_at is not None:
                if now >= max(session.closing_at, session.haunted_until) and key not in stopping:
                    self._forget(session)
            elif session.running == 0 and now - session.last_active > session.opened.ttl:
                reason = f"the session expired after {session.opened.ttl:g} s without activity"
                self._state.out.append(AppendEntry(*key, Close(reason=reason)))
                session.last_active = now
        for key, early in list(self._early.items()):
            if now - early.since > EARLY:
                early.since = now
                self._state.out.append(Inquire(*key))
