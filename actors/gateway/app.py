"""The endpoints put together as one ASGI application: who may ask, and how often."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from myna.actors.gateway import openapi, parrot, problems, window
from myna.actors.gateway.http import Endpoint, Operation
from myna.actors.gateway.keys import Caller, Keys
from myna.actors.gateway.limits import Limits
from myna.actors.gateway.openai import replies
from myna.actors.gateway.paths import ENDPOINTS
from myna.actors.gateway.problems import Problem
from myna.actors.gateway.tenancy import Tenancy
from myna.actors.messages import Tenant
from myna.actors.subjects import token

TENANT_HEADER = "myna-tenant"
"""By which an operator names the tenant whose sessions he looks at."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Rules:
    """How an application serves. `local`: without keys, only programs of this machine are served, and no web pages."""

    keys: Keys
    max_body: int
    timeout: float
    origins: tuple[str, ...] = ()
    local: bool = True


@dataclass(slots=True)
class Gate:
    """Who asks, and whether he may now."""

    rules: Rules
    tenancy: Callable[[Tenant], Tenancy]
    known: Callable[[], Iterator[Tenant]]
    limits: Limits = field(default_factory=Limits)

    def admit(self, request: Request, parsed: Any) -> tuple[Caller, Tenancy]:
        """The caller and its tenant's sessions. Raises `Problem` 401, 403, 429."""
        if self.rules.local and not self.rules.keys.needed:
            _only_from_here(request)
        caller = self._caller(request, parsed)
        tenant = _tenant_seen(request, caller)
        seconds = self.limits.take(f"{caller.tenant}/{caller.name}", caller.rate, time.monotonic())
        if seconds is not None:
            message = f"more than {caller.rate:g} requests a minute: try again in {seconds:.1f} s"
            raise problems.too_often(message, seconds)
        return caller, self.tenancy(tenant)

    def _caller(self, request: Request, parsed: Any) -> Caller:
        keys = self.rules.keys
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            key = request.headers.get("api-key", "") or str(getattr(parsed, "api_key", ""))
        caller = keys.find(key.strip())
        if caller is None and not key:
            caller = self._of_session(request, parsed)
        if caller is None:
            what = "this API key is not known" if key else "an API key is needed: Authorization: Bearer KEY"
            raise Problem(401, "invalid_api_key", what, headers={"www-authenticate": "Bearer"})
        return caller

    def _of_session(self, request: Request, parsed: Any) -> Caller | None:
        """Parrot's clients show their key once; from then on the session's number is their pass."""
        number = getattr(parsed, "session_id", None)
        if number is None and (text := request.path_params.get("session_id", "")).isdecimal() and len(text) < 20:
            number = int(text)
        if not isinstance(number, int):
            return None
        tenant = parrot.tenant_of(number, self.known())
        return None if tenant is None else Caller(tenant, f"session {number}")


def _tenant_seen(request: Request, caller: Caller) -> Tenant:
    """Whose sessions are asked for: the caller's own; an operator may look at another's. Raises `Problem`,
    `InvalidName`."""
    named = request.headers.get(TENANT_HEADER)
    if named is None or named == caller.tenant:
        return caller.tenant
    if not caller.operator or request.method != "GET":
        raise Problem(403, "not_allowed", "only an operator may look at another tenant's sessions, and only look")
    return Tenant(token(named, "tenant"))


def _only_from_here(request: Request) -> None:
    """Who listens on loopback without keys trusts this machine's programs, not the pages that a browser here shows: these reach
    loopback too, by a name of their own (DNS rebinding) or from another origin."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    origin = request.headers.get("origin")
    if host not in _LOOPBACK or (origin is not None and urlsplit(origin).hostname not in _LOOPBACK):
        message = "without API keys only programs of this machine are served; MYNA_GATEWAY_KEYS names a table of keys"
        raise Problem(403, "not_local", message)


def build(gate: Gate, ready: Callable[[], bool]) -> ASGIApp:
    """The application. `ready` says whether requests can be served now."""

    async def document(_request: Request) -> Response:
        return JSONResponse(_described())

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readiness(_request: Request) -> Response:
        is_ready = ready()
        return JSONResponse({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)

    routes: list[BaseRoute] = [
        Route("/healthz", health),
        Route("/readyz", readiness),
        Route("/openapi.json", document),
        *window.routes(),
        *(_route(endpoint, gate) for endpoint in ENDPOINTS),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=gate.rules.origins,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["authorization", "content-type", "last-event-id"],
    )
    middleware = [cors] if gate.rules.origins else []
    return Starlette(routes=routes, middleware=middleware, exception_handlers={404: _nowhere, 405: _nowhere})


def _route(endpoint: Endpoint, gate: Gate) -> Route:
    operation = Operation(endpoint, gate.admit, gate.rules.max_body, gate.rules.timeout)
    name = f"{endpoint.method} {endpoint.path}"
    return Route(endpoint.path, operation, methods=[endpoint.method], name=name)


@functools.cache
def _described() -> dict[str, Any]:
    return openapi.document(ENDPOINTS)


async def _nowhere(request: Request, error: Exception) -> Response:
    """An unknown path is told in the form that most clients here expect."""
    status = getattr(error, "status_code", 404)
    what = "no such path" if status == 404 else "this path takes another method"
    problem = Problem(status, "not_found" if status == 404 else "method_not_allowed", f"{what}: {request.url.path}")
    return JSONResponse(replies.error(problem), status, headers=getattr(error, "headers", None))
