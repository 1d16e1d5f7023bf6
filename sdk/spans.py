"""A session as a span of the application's own trace, where the application traces with OpenTelemetry.

Law: OpenTelemetry is used if the application has loaded it, and never loaded for its sake. A process that has not, but was told
of a span by whoever asked it (a gateway, an agent), passes that on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from myna.actors.telemetry import context
from myna.actors.telemetry.context import TRACEPARENT, Context

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class SessionSpan:
    """What a session is part of. `headers` tell the cluster of it; `span`, if it is the application's, ends with the session."""

    def __init__(self, headers: Mapping[str, str], span: Span | None = None) -> None:
        self.headers = headers
        self._span = span

    def end(self) -> None:
        """The session has ended."""
        if self._span is not None:
            self._span.end()


def begin(name: str, session: str) -> SessionSpan | None:
    """The span of a session that begins now, as a child of the one that is current; None where there is no trace."""
    api = sys.modules.get("opentelemetry.trace")
    if api is not None:
        attributes = {"myna.session": session}
        span: Span = api.get_tracer("myna").start_span(f"session {name}".strip(), attributes=attributes)
        where = span.get_span_context()
        if where.is_valid:  # also of a trace that nobody keeps: then the cluster keeps nothing of it either
            here = Context(where.trace_id, where.span_id, bool(where.trace_flags.sampled))
            return SessionSpan({TRACEPARENT: here.header}, span)
    headers = context.outgoing()
    return None if headers is None else SessionSpan(headers)


@contextlib.contextmanager
def of_call() -> Iterator[None]:
    """Inside the block, what the application traces with OpenTelemetry belongs to the native call that runs here."""
    api, here = sys.modules.get("opentelemetry.trace"), context.CURRENT.get()
    if api is None or here is None:
        yield
        return
    flags = api.TraceFlags(api.TraceFlags.SAMPLED if here.recorded else api.TraceFlags.DEFAULT)
    where = api.SpanContext(here.trace, here.span, is_remote=True, trace_flags=flags)
    with api.use_span(api.NonRecordingSpan(where)):
        yield
