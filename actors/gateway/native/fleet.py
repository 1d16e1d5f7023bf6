"""What engines do, over HTTP: their batches over time, the calls at them, the prefixes that are shared; queue and tenants.

Law: a tenant is told what is its own. What others keep an engine busy with, and how full it is, is for the operator.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from myna.actors import messages as wire
from myna.actors.gateway.http import Answer, Incoming, Json
from myna.actors.messages import WorkerKind
from myna.actors.watch.history import EngineView


class Looking(Struct):
    """`since`: of the history, what was noted after this time (seconds since the epoch), as told by `at` of an answer."""

    since: Annotated[float, Meta(ge=0)] = 0.0


class CallAt(Struct):
    """A call at an engine, since a time; see `phase`: reading, queued, prefill, decode, storing. `prefix`: the last of the
    engine's prefixes that it uses; `first`: when its first token came."""

    tenant: str
    session: str
    call: str
    function: str
    phase: str
    since: float
    produced: int
    tokens: int
    computed: int
    cached: int
    prefix: int | None
    first: float | None


class CallEnded(Struct):
    """A call that has ended at an engine: received, its inputs read, first and last token; seconds since the epoch."""

    tenant: str
    session: str
    call: str
    function: str
    received: float
    began: float
    first: float
    ended: float
    prompt: int
    cached: int
    output: int


class StepsTaken(Struct):
    """An engine's steps within a moment: seconds that they took, tokens drawn, prompt tokens computed; what ran and waited, and
    KV pages in use, after the last."""

    at: float
    seconds: float
    steps: int
    drawn: int
    prefilled: int
    running: int
    waiting: int
    pages: int


class PrefixShown(Struct):
    """Tokens `begin` to `begin + tokens` of prompts that begin alike, kept once: found `hits` times, in use by `holders` now."""

    id: int
    parent: int | None
    cache: str
    begin: int
    tokens: int
    hits: int
    holders: int
    text: str


class EngineShown(Struct):
    """One engine. `load`: its own figures, for the operator."""

    worker: str
    serves: list[str]
    capacity: int
    load: dict[str, float]
    calls: list[CallAt]
    spans: list[CallEnded]
    steps: list[StepsTaken]
    prefixes: list[PrefixShown]
    left_out: int


class WorkerShown(Struct):
    """A worker as the scheduler sees it."""

    worker: str
    kind: str
    serves: list[str]
    capacity: int
    running: int
    draining: bool
    silent: float


class TenantShown(Struct):
    """A tenant: open sessions, calls in flight, bytes stored; tokens used since the oldest record that is kept."""

    tenant: str
    sessions: int
    calls: int
    bytes: int
    prompt: int
    cached: int
    output: int


class SessionSeen(Struct):
    """An open session, and its calls by state. `failed`: of those that are done."""

    tenant: str
    session: str
    name: str
    calls: int
    waiting: int
    ready: int
    running: int
    done: int
    failed: int


class Fleet(Struct):
    """What is seen now. `operator`: whether of everybody, or of one tenant; `queued`: ready calls that no worker has been
    given yet; those in an engine's queue are among its calls."""

    at: float
    operator: bool
    tenant: str
    scheduler: str
    queued: int
    workers: list[WorkerShown]
    engines: list[EngineShown]
    sessions: list[SessionSeen]
    tenants: list[TenantShown]


async def look(incoming: Incoming) -> Answer:
    """What engines do, and what waits."""
    tenancy, operator = incoming.tenancy, incoming.caller.operator
    asked: Looking = incoming.query
    status = await (tenancy.overview() if operator else tenancy.status())
    engines = tenancy.history.engines(tenant=None if operator else tenancy.tenant, since=asked.since)
    return Json(
        Fleet(
            at=max((e.at for e in engines), default=time.time()),
            operator=operator,
            tenant=tenancy.tenant,
            scheduler=status.scheduler,
            queued=status.queued,
            workers=[_worker(w) for w in status.workers],
            engines=[_engine(e) for e in engines],
            sessions=[
                SessionSeen(s.tenant, s.session, s.name, s.calls, s.waiting, s.ready, s.running, s.done, s.failed)
                for s in status.sessions
            ],
            tenants=[_tenant(t) for t in status.tenants],
        )
    )


def _worker(w: wire.WorkerStatus) -> WorkerShown:
    kind = WorkerKind(w.kind).value
    return WorkerShown(w.worker, kind, list(w.serves), w.capacity, w.running, w.draining, w.silent_seconds)


def _tenant(t: wire.TenantStatus) -> TenantShown:
    used = (t.used.prompt_tokens, t.used.cached_tokens, t.used.output_tokens)
    return TenantShown(t.tenant, t.sessions, t.calls, t.bytes, *used)


def _engine(e: EngineView) -> EngineShown:
    return EngineShown(
        worker=e.worker,
        serves=list(e.serves),
        capacity=e.capacity,
        load=e.load,
        calls=[msgspec.convert(c, CallAt, from_attributes=True) for c in e.calls],
        spans=[_ended(s) for s in e.spans],
        steps=[msgspec.convert(s, StepsTaken, from_attributes=True) for s in e.steps],
        prefixes=[msgspec.convert(p, PrefixShown, from_attributes=True) for p in e.prefixes],
        left_out=e.left_out,
    )


def _ended(s: wire.SpanSight) -> CallEnded:
    used = (s.usage.prompt_tokens, s.usage.cached_tokens, s.usage.output_tokens)
    return CallEnded(s.tenant, s.session, s.call, s.function, s.received, s.began, s.first, s.ended, *used)
