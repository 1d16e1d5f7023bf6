"""Metrics of the gateway's requests, as ASGI middleware. The paths are those of the routes, not of requests."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myna.actors.telemetry.worker_meters import SECONDS

_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


class RequestMeters:
    """What all requests of a process count into."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "myna_gateway_requests", "Requests answered.", ["method", "path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "myna_gateway_request_seconds",
            "From a request's arrival to the end of its answer, streams included.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "myna_gateway_first_byte_seconds",
            "From a request's arrival to the first piece of its answer's body.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.open = Gauge("myna_gateway_open_requests", "Requests that are being answered.", registry=registry)

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app`, metered."""
        return _Metered(app, self)


class _Metered:
    def __init__(self, app: ASGIApp, meters: RequestMeters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, first = time.perf_counter(), 499, 0.0  # 499: who asked has left without an answer

        async def sent(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not first and message.get("body"):
                first = time.perf_counter()
            await send(message)

        self._meters.open.inc()
        try:
            await self._app(scope, receive, sent)
        finally:
            self._meters.open.dec()
            self._count(scope, status, began, first)

    def _count(self, scope: Scope, status: int, began: float, first: float) -> None:
        route, method = scope.get("route"), scope["method"]
        path = route.path if isinstance(route, Route) else "none"
        self._meters.requests.labels(method if method in _METHODS else "other", path, str(status)).inc()
        self._meters.seconds.labels(path).observe(time.perf_counter() - began)
        if first:
            self._meters.first.labels(path).observe(first - began)
