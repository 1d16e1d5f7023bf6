"""Traces: one for each session, with a span for each call and, inside it, its queue, prefill and decode.

The scheduler says with each dispatch which span the call belongs to, and how long it has waited; its worker writes the spans when
the attempt has ended, from the times that the value carries. So the cores know nothing of traces, and a span that is not
recorded costs nothing.

Law: at most `PACE` calls a second are recorded of sessions that no client's trace asks for, in whole sessions: what an operator
sees of a busy cluster is a sample, and its price is bounded. Where OpenTelemetry's own variables name a sampler, it decides.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from myna.actors.messages import (
    Close,
    Event,
    EventKind,
    LogEntry,
    Open,
    Run,
    SessionId,
    StreamStatus,
    Tenant,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.commands import Command
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.telemetry import context
from myna.actors.telemetry.context import Context
from myna.actors.telemetry.spans import Key, Span, Spans
from myna.actors.worker.backend import Insight, Offer, RunKey

PACE = 5.0
"""Calls a second, in the long run, that are recorded unasked."""
BURST = 500.0
"""Calls that may be recorded at once after a quiet time."""
MOST = 50_000
"""Sessions, or attempts, of which something is kept."""

_SCOPE = InstrumentationScope("myna")
_RECORDED = TraceFlags(TraceFlags.SAMPLED)
_OK, _FAILED = Status(StatusCode.UNSET), StatusCode.ERROR

Attributes = Mapping[str, str | int | float]


class Writer:
    """Hands finished spans to a processor, as `resource`'s."""

    def __init__(self, processor: SpanProcessor, resource: Resource) -> None:
        self._processor = processor
        self._resource = resource

    def write(
        self,
        name: str,
        here: Context,
        parent: int | None,
        began: float,
        ended: float,
        attributes: Attributes | None = None,
        *,
        failed: str | None = None,
        serves: bool = False,
    ) -> None:
        """One span; times in seconds since the epoch. `failed`: why it did; `serves`: it answers another process."""
        self._processor.on_end(
            ReadableSpan(
                name,
                context=_known(here.trace, here.span),
                parent=None if parent is None else _known(here.trace, parent, remote=True),
                resource=self._resource,
                attributes=dict(attributes or {}),
                kind=SpanKind.SERVER if serves else SpanKind.INTERNAL,
                instrumentation_scope=_SCOPE,
                status=_OK if failed is None else Status(_FAILED, failed),
                start_time=int(began * 1e9),
                end_time=int(max(began, ended) * 1e9),
            )
        )


def _known(trace: int, span: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace, span, is_remote=remote, trace_flags=_RECORDED)


@dataclass(frozen=True, slots=True)
class _Asked:
    here: Context
    parent: int
    began: float


class WorkerTraces:
    """Writes the spans of a worker's attempts."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._asked: dict[Key, _Asked] = {}
        self._spans = Spans()

    def asked(self, run: Run, headers: Mapping[str, str]) -> None:
        """An attempt is recorded where the dispatch names a span."""
        parent = context.incoming(headers) if headers else None
        if parent is None or not parent.recorded:
            context.CURRENT.set(None)
            return
        if len(self._asked) >= MOST:
            del self._asked[next(iter(self._asked))]
        key = (run.tenant, run.session, run.call.id, run.attempt)
        here = parent.inside()
        context.CURRENT.set(here)  # for what the attempt does; the next order says anew
        self._asked[key] = _Asked(here, parent.span, time.time() - context.waited(headers))

    def made(self, key: RunKey, function: str, value: Value) -> None:
        """An output is whole."""
        if key in self._asked:
            self._spans.made(key, function, value)

    def told(self, event: Event) -> None:
        """Write the spans of an attempt that has ended."""
        if event.kind is EventKind.STARTED or not self._asked:
            return
        key = (event.tenant, event.session, event.call, event.attempt)
        asked = self._asked.pop(key, None)
        if asked is not None:
            self._write(event, asked, self._spans.take(key))

    def _write(self, event: Event, asked: _Asked, span: Span | None) -> None:
        here = asked.here
        ended = time.time() if span is None else span.ended
        attributes: dict[str, str | int | float] = {
            "myna.tenant": event.tenant,
            "myna.session": event.session,
            "myna.call": event.call,
            "myna.attempt": event.attempt,
            "myna.worker": event.worker,
            "myna.outcome": event.kind.value,
            "gen_ai.usage.input_tokens": event.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": event.usage.output_tokens,
            "myna.cached_tokens": event.usage.cached_tokens,
        }
        failed = None
        if event.kind is not EventKind.FINISHED:
            # Its code alone: its text may quote a value.
            failed = event.kind.value if event.failure is None else event.failure.code.value
        name = f"call {span.function}" if span is not None and span.function else "call"
        self._writer.write(name, here, asked.parent, asked.began, ended, attributes, failed=failed, serves=True)
        if span is not None:
            for part, began, until in (
                ("queue", asked.began, span.began),
                ("prefill", span.began, span.first),
                ("decode", span.first, span.ended),
            ):
                self._writer.write(part, here.inside(), here.span, began, until)

    def looked(self, worker: WorkerId, offer: Offer, running: int, load: Mapping[str, float], insight: Insight) -> None:
        """Of no concern to a trace."""


@dataclass(slots=True)
class _Session:
    opened: float
    parent: Context | None
    own: Context | None = None
    recorded: bool | None = None


class SchedulerTraces:
    """Says which calls are recorded, and writes the span of a session that has a trace of its own."""

    def __init__(self, writer: Writer, sampler: Sampler | None = None) -> None:
        """`sampler` decides in place of the law's pace, which sessions are recorded that no client traces."""
        self._writer = writer
        self._sampler = sampler
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._room = BURST
        self._filled = time.monotonic()

    def headers(self, run: Run, waited: float) -> Mapping[str, str] | None:
        """What a dispatch says of its trace; None where it is not recorded."""
        session = self._sessions.get((run.tenant, run.session))
        if session is None:
            return None
        parent = session.parent
        if parent is None:
            if session.recorded is False or not self._records(session, run):
                return None
            parent = session.own = session.own or context.of_session(run.tenant, run.session)
        elif not parent.recorded:
            return None
        return {context.TRACEPARENT: parent.header, context.WAITED: f"{max(waited, 0.0):.6f}"}

    def _records(self, session: _Session, run: Run) -> bool:
        """Whether one more call of a session is recorded: for a session's first call it is decided, and holds for all."""
        if self._sampler is not None:
            if session.recorded is None:
                trace = context.of_session(run.tenant, run.session).trace
                decision = self._sampler.should_sample(None, trace, "session").decision
                session.recorded = decision is Decision.RECORD_AND_SAMPLE
            return session.recorded
        now = time.monotonic()
        self._room = min(BURST, self._room + PACE * (now - self._filled))
        self._filled = now
        if session.recorded is None:
            session.recorded = self._room >= 1.0
        if session.recorded:
            self._room -= 1.0
        return session.recorded

    def logged(
        self, tenant: Tenant, session: SessionId, entry: LogEntry, at: float, headers: Mapping[str, str], *, leads: bool
    ) -> None:
        """A session begins, in whose trace; or it ends."""
        key = (tenant, session)
        match entry:
            case Open() if len(self._sessions) < MOST:
                self._sessions.setdefault(key, _Session(at, context.incoming(headers)))
            case Close():
                known = self._sessions.pop(key, None)
                if known is not None and known.recorded and leads:
                    here = context.of_session(tenant, session)
                    attributes = {"myna.tenant": str(tenant), "myna.session": str(session)}
                    self._writer.write("session", here, None, known.opened, at, attributes)
            case _:
                pass

    def ended(self, tenant: Tenant, session: SessionId, variable: VarId, status: OutcomeStatus, at: float) -> None:
        """Told by the call's worker."""

    def commanded(self, command: Command) -> None:
        """Told by the call's worker."""

    def ticked(self, core: SchedulerCore, rejected: int, streams: Sequence[StreamStatus]) -> None:
        """Of no concern to a trace."""
