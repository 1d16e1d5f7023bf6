"""What a scheduler tells those who ask: what it sees, and why a call is where it is. Read off the state, changing nothing."""

from __future__ import annotations

from myna.actors.messages import (
    CallId,
    CallView,
    Explanation,
    GraphRequest,
    GraphView,
    SessionId,
    SessionStatus,
    Status,
    Tenant,
    VariableView,
    Why,
    WorkerStatus,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler import explain, names
from myna.actors.scheduler.fleet import Worker
from myna.actors.scheduler.nodes import CallNode, CallState
from myna.actors.scheduler.state import Session, State


def status(state: State, now: float, rejected: int, tenant: Tenant | None = None) -> Status:
    """Who leads, the workers, the open sessions, and how many ready calls wait. `rejected`: messages not understood.

    A tenant is told of what is its own, and of the engines what they serve: not what others keep them busy with.
    """
    sessions = tuple(
        _session(s)
        for key, s in state.sessions.items()
        if s.closing_at is None and (tenant is None or key[0] == tenant)
    )
    workers = [w for w in state.fleet.workers.values() if tenant is None or w.offer.tenant in (None, tenant)]
    return Status(
        scheduler=state.name,
        lease=state.lease or 0,
        workers=tuple(_worker(w, now, tenant) for w in workers),
        sessions=sessions,
        queued=state.planner.queued if tenant is None else sum(s.ready for s in sessions),
        rejected=rejected if tenant is None else 0,
        tenants=state.quotas.status(now, tenant),
    )


def why(state: State, question: Why, now: float, tenant: Tenant | None = None) -> Explanation:
    """Every call of that id, explained; so many at most as `explain.MOST`. A tenant asks for its own."""
    found = []
    for key, session in state.sessions.items():
        call = session.graph.calls.get(CallId(question.call)) if tenant in (None, key[0]) else None
        if call is not None and question.session in (None, key[1]):
            found.append(
                explain.explain(call, session.graph, state.fleet, state.planner, now, alone=tenant is not None)
            )
            if len(found) == explain.MOST:
                break
    return Explanation(calls=tuple(found))


MOST_VIEWED = 20_000
"""Calls of a graph that are shown: what fits into one message."""


def graph(state: State, question: GraphRequest, now: float, tenant: Tenant | None = None) -> GraphView:
    """A session's graph as it stands. A tenant asks for its own; the operator names one, or gets the first of that id."""
    for (owner, name), session in state.sessions.items():
        if name == question.session and owner == (tenant or question.tenant or owner) and session.closing_at is None:
            return _graph(session, now)
    return GraphView(session=SessionId(question.session), found=False)


def _graph(session: Session, now: float) -> GraphView:
    calls = list(session.graph.calls.values())
    shown = calls[:MOST_VIEWED]
    inputs: dict[CallNode, list[str]] = {}  # read off the variables: a call that has ended knows its own no more
    for variable in session.graph.variables.values():
        for consumer in variable.consumers:
            inputs.setdefault(consumer, []).append(variable.id)
    variables = list(session.graph.variables.values())[: 2 * MOST_VIEWED]
    return GraphView(
        session=session.key[1],
        name=session.opened.name[:200],
        calls=tuple(_call(call, inputs.get(call, []), now) for call in shown),
        variables=tuple(
            VariableView(
                id=v.id,
                state="pending" if v.status is None else v.status.value,
                producer=v.producer.id if v.producer is not None else "",
            )
            for v in variables
        ),
        left_out=len(calls) - len(shown),
    )


def _call(call: CallNode, inputs: list[str], now: float) -> CallView:
    return CallView(
        id=call.id,
        function=call.function[:200],
        state=call.state.value,
        inputs=tuple(inputs),
        outputs=tuple(call.outputs),
        worker=call.worker or "",
        produced=call.produced,
        seconds=round(now - call.since, 3) if call.state in (CallState.READY, CallState.RUNNING) else None,
    )


def _worker(worker: Worker, now: float, tenant: Tenant | None) -> WorkerStatus:
    return WorkerStatus(
        worker=names.parts(worker.id)[1],
        kind=worker.offer.kind,
        serves=worker.offer.serves,
        capacity=worker.offer.capacity,
        running=sum(tenant in (None, key[0]) for key in worker.held),
        draining=worker.offer.draining,
        silent_seconds=round(now - worker.last_heard, 3),
        tenant=worker.offer.tenant,
        paused=worker.offer.paused,
    )


def _session(session: Session) -> SessionStatus:
    counts = dict.fromkeys(CallState, 0)
    for call in session.graph.calls.values():
        counts[call.state] += 1
    variables = session.graph.variables.values()
    failed = {v.producer.id for v in variables if v.status is OutcomeStatus.FAILURE and v.producer is not None}
    return SessionStatus(
        tenant=session.key[0],
        session=session.key[1],
        name=session.opened.name[:200],
        calls=len(session.graph.calls),
        waiting=counts[CallState.WAITING],
        ready=counts[CallState.READY],
        running=counts[CallState.RUNNING],
        done=counts[CallState.ENDED],
        failed=len(failed),
    )
