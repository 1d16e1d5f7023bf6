"""The gateway's part in a caller's trace, as ASGI middleware: a request that names a span belongs to it.

Law: the header of a request is passed on whether this gateway records spans or not. A request that names none begins no trace
here: the sessions that it opens have theirs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myna.actors.telemetry import context
from myna.actors.telemetry.context import CURRENT, TRACEPARENT, Context

if TYPE_CHECKING:
    from myna.actors.telemetry.traces import Writer

_HEADER = TRACEPARENT.encode()


class RequestTraces:
    """Wraps `app`. `writer`: of the spans, where they are recorded."""

    def __init__(self, app: ASGIApp, writer: Writer | None) -> None:
        self._app = app
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request as the wrapped application does."""
        parent = _named(scope) if scope["type"] == "http" else None
        if parent is None:
            await self._app(scope, receive, send)
        elif self._writer is None or not parent.recorded:
            await self._inside(parent, scope, receive, send)
        else:
            await self._record(self._writer, parent, scope, receive, send)

    async def _inside(self, span: Context, scope: Scope, receive: Receive, send: Send) -> None:
        token = CURRENT.set(span)
        try:
            await self._app(scope, receive, send)
        finally:
            CURRENT.reset(token)

    async def _record(self, writer: Writer, parent: Context, scope: Scope, receive: Receive, send: Send) -> None:
        here, began, status = parent.inside(), time.time(), 499  # 499: who asked has left without an answer

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._inside(here, scope, receive, sent)
        finally:
            route, method = scope.get("route"), scope["method"]
            path = route.path if isinstance(route, Route) else "none"
            attributes = {"http.request.method": method, "http.route": path, "http.response.status_code": status}
            failed = str(status) if status >= 500 else None
            name = f"{method} {path}"
            writer.write(name, here, parent.span, began, time.time(), attributes, failed=failed, serves=True)


def _named(scope: Scope) -> Context | None:
    for name, value in scope["headers"]:
        if name == _HEADER:
            return context.incoming({TRACEPARENT: value.decode("latin-1")})
    return None
