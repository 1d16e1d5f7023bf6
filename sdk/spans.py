"""A session as a span of the application's own trace, where the application traces with OpenTelemetry.

Law: OpenTelemetry is used if the application has loaded it, and never loaded for its sake.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from myna.actors.telemetry.context import TRACEPARENT, Context

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class SessionSpan:
    """Begun with the session, as a child of the span that is current there. `headers` tell the cluster of it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        where = span.get_span_context()
        self.headers: Mapping[str, str] = {TRACEPARENT: Context(where.trace_id, where.span_id).header}

    def end(self) -> None:
        """The session has ended."""
        self._span.end()


def begin(name: str, session: str) -> SessionSpan | None:
    """The span of a session that begins now; None where the application records no trace."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    attributes = {"myna.session": session}
    span: Span = api.get_tracer("myna").start_span(f"session {name}".strip(), attributes=attributes)
    if span.is_recording() and span.get_span_context().trace_flags.sampled:
        return SessionSpan(span)
    span.end()
    return None
