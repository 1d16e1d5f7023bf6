"""Why a call runs where and when it does, or what it waits for, in sentences for people.

Law: nothing is computed ahead for this but what a dispatch notes of itself; the rest is read off the state when somebody asks.
"""

from __future__ import annotations

from typing import assert_never

from myna.actors.messages import CallReasons
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.fleet import Demand, Fleet, demand_of
from myna.actors.scheduler.graph import SessionGraph
from myna.actors.scheduler.nodes import CallNode, CallState
from myna.actors.scheduler.planner import Planner
from myna.actors.scheduler.policies.lines import is_parked

MOST = 20
"""Calls of the same id, in different sessions, that are explained at once."""
_SHOWN = 5


def explain(
    call: CallNode, graph: SessionGraph, fleet: Fleet, planner: Planner, now: float, *, alone: bool = False
) -> CallReasons:
    """One call, explained. `alone`: to its tenant, who is not told what others do."""
    return CallReasons(
        tenant=graph.tenant,
        session=graph.id,
        call=call.id,
        function=call.function,
        state=call.state.value,
        worker=call.worker or "",
        seconds=round(now - call.since, 3) if call.state in (CallState.READY, CallState.RUNNING) else None,
        reasons=tuple(_reasons(call, graph, fleet, planner, now, alone=alone)),
    )


def _reasons(
    call: CallNode, graph: SessionGraph, fleet: Fleet, planner: Planner, now: float, *, alone: bool
) -> list[str]:
    match call.state:
        case CallState.WAITING:
            return [*_inputs(call, graph), *_kept(call, planner)]
        case CallState.READY:
            leader = planner.follows(call)
            if leader is not None:
                return [_follows(leader), *_need(call)]
            queue = _queue(call, graph, fleet, planner, alone=alone)
            return [*queue, *_kept(call, planner), *_need(call), *_late(call, planner, now)]
        case CallState.RUNNING:
            return [*_place(call), *_need(call)]
        case CallState.ENDING:
            what = "" if call.outcome is None else f": {getattr(call.outcome, 'message', '') or call.outcome!r}"
            return [f"its failure or cancellation is being published{what}", *_place(call)]
        case CallState.ENDED:
            ends = {o: graph.variables[o].status for o in call.outputs}
            return [*(f"output {o!r} ended in a {s.value}" for o, s in ends.items() if s), *_place(call)]
        case _:
            assert_never(call.state)


def _inputs(call: CallNode, graph: SessionGraph) -> list[str]:
    missing = [graph.variables[v] for v in call.inputs if graph.variables[v].status is not OutcomeStatus.VALUE]
    reasons = []
    for variable in missing[:_SHOWN]:
        producer = variable.producer
        if producer is None:
            reasons.append(f"input {variable.id!r} has not been set yet")
        else:
            reasons.append(f"input {variable.id!r} comes from call {producer.id!r}, which is {producer.state.value}")
    if len(missing) > _SHOWN:
        reasons.append(f"and {len(missing) - _SHOWN} more inputs have no value yet")
    if not call.wanted:
        reasons.append("its session is lazy, and nobody has asked for its result")
    return reasons


def _follows(leader: CallNode) -> str:
    where = f" of session {leader.session.id!r}" if leader.session is not None else ""
    return f"it takes the results of call {leader.id!r}{where}, which is identical and is {leader.state.value}"


def _kept(call: CallNode, planner: Planner) -> list[str]:
    found = planner.kept_for(call)
    return [f"worker {w!r} keeps {tokens:.0f} tokens that its prompt begins with" for w, tokens in found[:_SHOWN]]


def _queue(call: CallNode, graph: SessionGraph, fleet: Fleet, planner: Planner, *, alone: bool) -> list[str]:
    assert call.spec is not None
    demand = demand_of(call.spec, graph.tenant)
    reasons = [] if alone else _workers(demand, fleet)
    if not alone and is_parked(call):
        reasons.append("workers keep their memory for contexts under way: it waits until its own has room to stay")
    account = planner.accounts.of(graph.tenant)
    if account.full:
        reasons.append(f"tenant {graph.tenant!r} runs {account.running} calls, as many as its quota allows")
    if not alone:
        older = sum(c.since < call.since for c in planner.waiting())
        reasons.append(f"{planner.queued} calls are ready, {older} of them for longer")
    if call.application is not None and planner.policies.applications:
        work = call.application.root().work
        reasons.append(f"its application has about {work:.0f} tokens of work left, {call.path:.0f} on the way after it")
    return reasons


def _workers(demand: Demand, fleet: Fleet) -> list[str]:
    serving = [w for w in fleet.workers.values() if fleet.answers(w, demand)]
    if not serving:
        names = " or ".join(repr(n) for n in demand.names if n) or "any model"
        return [f"no {demand.kind.value} serves {names}"]
    counts = {
        "are draining": sum(w.offer.draining for w in serving),
        "take no calls for now": sum(bool(w.offer.paused) for w in serving),
        "are full": sum(not w.has_room and not w.offer.draining and not w.offer.paused for w in serving),
        "have prompts enough to compute": sum(w.asleep and w.has_room and not w.rests for w in serving),
        "rest from prompts for the sake of calls that run there": sum(w.rests and w.has_room for w in serving),
        "are reserved for calls whose tokens are waited for": sum(fleet.is_home(w) for w in serving),
    }
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    paused = [f"worker {w.id!r} takes no calls for now: {w.offer.paused}" for w in serving if w.offer.paused]
    return [f"{len(serving)} {demand.kind.value}s serve it" + (f": {told}" if told else ""), *paused[:3]]


def _place(call: CallNode) -> list[str]:
    placed = call.placed
    if placed is None:
        return []
    prefix = f"; {placed.matched:.0f} of about {placed.prompt:.0f} prompt tokens were thought to be there"
    tries = [f"{call.tries} attempt{'s have' if call.tries > 1 else ' has'} failed"] if call.tries else []
    return [
        f"worker {placed.worker!r} was chosen because {placed.because}{prefix if placed.prompt else ''}",
        f"it had been ready for {placed.waited:.3f} s then",
        *tries,
    ]


def _need(call: CallNode) -> list[str]:
    need = call.need
    if need is None:
        return ["nobody has said what its result is needed for"]
    told = [f"it is needed for {need.urgency.name.lower()} work"]
    if need.wide:
        told.append("it is one of a group that finishes together")
    if need.deadline is not None:
        told.append(f"it has to end by {need.deadline:.3f} on the scheduler's clock")
    return told


def _late(call: CallNode, planner: Planner, now: float) -> list[str]:
    if call.need is None or call.need.deadline is None or now + call.work * planner.lengths.pace < call.need.deadline:
        return []
    return ["it can't be in time any more, so that calls that can go first"]
