"""Sessions over HTTP: opened, listed, looked at, closed; and what runs in them, cancelled or explained."""

from __future__ import annotations

from myna.actors import messages as wire
from myna.actors.gateway import problems
from myna.actors.gateway.http import Answer, Incoming, Json
from myna.actors.gateway.native.schemas import (
    CallShown,
    Cancelling,
    Graph,
    Nothing,
    OpenSession,
    Reasons,
    SessionList,
    SessionMade,
    SessionShown,
    shown,
)
from myna.actors.subjects import token


async def open_session(incoming: Incoming) -> Answer:
    """Open a session."""
    spec: OpenSession = incoming.body
    session = await incoming.tenancy.open(spec.name, lazy=spec.lazy, ttl=spec.ttl, priority=spec.priority)
    return Json(SessionMade(session), 201)


async def close_session(incoming: Incoming) -> Answer:
    """End a session: what is unfinished is cancelled, and all is forgotten."""
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        await incoming.tenancy.end(session.id, "closed over HTTP")
    return Json(Nothing())


async def cancel(incoming: Incoming) -> Answer:
    """Cancel calls, and all that needs them."""
    spec: Cancelling = incoming.body
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        calls = dict.fromkeys(spec.calls)
        if spec.variables:
            graph = await incoming.tenancy.graph(session.id)
            makers = {v.id: v.producer for v in graph.variables}
            for variable in spec.variables:
                if not makers.get(variable):
                    raise problems.invalid(f"no call makes the variable {variable!r}", "variables")
                calls[makers[variable]] = None
        await incoming.tenancy.say(session.id, wire.Cancel(calls=tuple(calls), reason=spec.reason))
    return Json(Nothing())


async def list_sessions(incoming: Incoming) -> Answer:
    """The open sessions of the tenant."""
    seen = (await incoming.tenancy.status()).sessions
    mine = [s for s in seen if s.tenant == incoming.tenancy.tenant]
    listed = [SessionShown(s.session, s.name, s.calls, s.waiting, s.ready, s.running, s.done) for s in mine]
    return Json(SessionList(listed))


async def graph(incoming: Incoming) -> Answer:
    """The graph of a session as it stands."""
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        seen = await incoming.tenancy.graph(session.id)
    calls = [
        CallShown(c.id, c.function, c.state, list(c.inputs), list(c.outputs), c.worker or None, c.produced, c.seconds)
        for c in seen.calls
    ]
    return Json(Graph(seen.session, seen.name, calls, shown(seen), seen.left_out))


async def why(incoming: Incoming) -> Answer:
    """Why a call is where it is."""
    call = token(incoming.path["call"], "call")
    async with incoming.tenancy.session(incoming.path["session"]) as session:
        seen = await incoming.tenancy.why(session.id, call)
    if not seen.calls:
        raise problems.Problem(404, "no_such_call", f"session {session.id!r} has no call {call!r}")
    found = seen.calls[0]
    return Json(Reasons(found.call, found.state, found.worker or None, found.seconds, list(found.reasons)))
