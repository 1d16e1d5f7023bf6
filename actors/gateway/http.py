"""Requests and answers. An endpoint says what it takes and gives as types; checking, errors and documentation follow from them.

Laws:
- A body is read up to its limit and checked before anything else is done; what is wrong with it is told with its place.
- When the client leaves, what was done for it is cancelled at once.
- An event stream that fails before its first event is an ordinary error, with its status.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from myna.actors import logs
from myna.actors.gateway import problems
from myna.actors.gateway.keys import Caller
from myna.actors.gateway.problems import Problem
from myna.actors.gateway.tenancy import Tenancy

T = TypeVar("T")

HEADERS_WITHIN = 10.0
"""Seconds after which an event stream's headers are sent, though it has no event yet."""
STILL_THERE = 15.0
"""Seconds of silence after which an event stream says that it is still there."""
MOST_BUFFERED = 64
"""Events that are kept for a client that reads slowly, before its stream is read no further. The engine isn't held up by that:
its text is kept by the streams."""

# msgspec 0.22 may crash when the interpreter, in its last collection, frees classes that hold each other (a fault in
# `StructInfo_dealloc`, which frees a type twice). What is frozen isn't collected, and the process ends a moment later anyway.
atexit.register(gc.freeze)

_log = structlog.get_logger(__name__)
_encoder = msgspec.json.Encoder()

Tell = Callable[[Problem], Any]
"""A problem in the form of one API: data that becomes JSON."""


@dataclass(frozen=True, slots=True)
class Json:
    """An answer in one piece."""

    data: Any
    status: int = 200


@dataclass(frozen=True, slots=True)
class Events:
    """An answer as server-sent events, each given as its bytes; `fail` makes the last event of a stream that fails midway. `held`
    is what the stream needs: it is left when the stream has ended, or its client."""

    pieces: AsyncGenerator[bytes, None]
    fail: Callable[[Problem], bytes]
    held: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)


Answer = Json | Events


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request that was understood. `body` is of the endpoint's type."""

    caller: Caller
    tenancy: Tenancy
    path: Mapping[str, str]
    query: Any
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Incoming], Awaitable[Answer]]
Admit = Callable[[Request, Any], tuple[Caller, Tenancy]]
"""Who asks, from headers and body. Raises `Problem`."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. `body`, `query` and `answer` are msgspec types; `streams`: it may answer with events. `lenient`: the query
    is also taken from a JSON body, for clients that send one with GET and DELETE."""

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    tell: Tell
    body: Any = None
    query: Any = None
    answer: Any = None
    status: int = 200
    streams: bool = False
    lenient: bool = False


def sse(data: Any, *, event: str | None = None, id: str | None = None) -> bytes:
    """One server-sent event; `data` becomes JSON, bytes stay as they are."""
    lines = [f"event: {event}\n".encode()] if event is not None else []
    if id is not None:
        lines.append(f"id: {id}\n".encode())
    body = data if isinstance(data, bytes) else _encoder.encode(data)
    return b"".join([*lines, b"data: ", body, b"\n\n"])


class Operation:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint, admit: Admit, most_bytes: int, most_seconds: float) -> None:
        self._endpoint = endpoint
        self._admit = admit
        self._most = most_bytes
        self._seconds = most_seconds
        self._body = msgspec.json.Decoder(endpoint.body) if endpoint.body is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = _Exchange(send)
        try:
            incoming = await self._understand(Request(scope, receive))
            logs.ABOUT.set((incoming.tenancy.tenant, incoming.path.get("session")))  # a request has a task of its own
            async with _watched(receive), asyncio.timeout(self._seconds):
                await self._serve(incoming, exchange)
        except _Left:
            return
        except Exception as error:
            problem = self._problem(error)
            if not exchange.begun:
                await exchange.answer(problem.status, self._endpoint.tell(problem), problem.headers)
            elif not exchange.ended:
                await exchange.end(exchange.fail(problem))

    async def _serve(self, incoming: Incoming, exchange: _Exchange) -> None:
        answer = await self._endpoint.handler(incoming)
        if isinstance(answer, Json):
            await exchange.answer(answer.status, answer.data)
        else:
            async with answer.held:
                await exchange.stream(answer)

    def _problem(self, error: Exception) -> Problem:
        if type(error) is TimeoutError:  # not one that means something: ours
            return Problem(408, "timed_out", f"there was no result within {self._seconds:g} s")
        problem = problems.of_error(error)
        if problem is None:
            _log.error("request_failed", path=self._endpoint.path, exc_info=error)
            problem = problems.fault()
        elif (failure := problem.failure) is not None:  # its code alone: its text may quote a value
            with logs.about(*logs.ABOUT.get()[:2], failure.call, None, failure.variable):
                _log.info("call_failed", path=self._endpoint.path, status=problem.status, code=failure.code)
        return problem

    async def _understand(self, request: Request) -> Incoming:
        raw = await read(request, self._most)
        endpoint = self._endpoint
        body = _decode(self._body, raw) if self._body is not None else None
        query = None
        if endpoint.query is not None:
            given: dict[str, Any] = dict(request.query_params)
            if endpoint.lenient and raw:
                more: dict[str, Any] = _decode(_OBJECT, raw)
                given |= more
            query = _convert(given, endpoint.query)
        caller, tenancy = self._admit(request, query if body is None else body)
        return Incoming(caller, tenancy, request.path_params, query, body, request.headers)


_OBJECT = msgspec.json.Decoder(dict[str, Any])


async def read(request: Request, most: int) -> bytes:
    """The body. Raises `Problem` beyond `most` bytes."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Problem:
    return Problem(413, "too_large", f"the request's body is larger than {most} bytes")


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _wrong(error) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise problems.invalid(f"the body is not valid JSON: {error}") from None


def _convert(given: Mapping[str, Any], type_: Any) -> Any:
    try:
        return msgspec.convert(given, type_, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise _wrong(error) from None


def _wrong(error: Exception) -> Problem:
    """The place that msgspec writes as `$.messages[0].role` is the parameter that is wrong."""
    place = str(error).partition(" - at `")[2]
    return problems.invalid(str(error), place.strip("`").removeprefix("$.") or None, "invalid_value")


class _Left(Exception):
    """The client is gone."""


@contextlib.asynccontextmanager
async def _watched(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client leaves, and raise `_Left` then."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left or task.uncancel() > 0:
            raise
        raise _Left from None
    except OSError:  # a write to somebody who is gone
        raise _Left from None
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


class _Exchange:
    """One answer on its way."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.ended = False
        self.fail: Callable[[Problem], bytes] = lambda _: b""

    async def answer(self, status: int, data: Any, headers: Mapping[str, str] | None = None) -> None:
        body = _encoder.encode(data)
        told = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._begin(status, told)
        await self.end(body)

    async def stream(self, events: Events) -> None:
        """Send events as they come. A pump reads them ahead, so that a slow client is felt here and nowhere else. Raises what the
        events raise."""
        self.fail = events.fail
        ready: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_BUFFERED)

        async def pump() -> None:
            async with contextlib.aclosing(events.pieces) as pieces:
                async for piece in pieces:
                    await ready.put(piece)

        pumping = asyncio.ensure_future(pump())
        pumping.add_done_callback(lambda _: _wake(ready))
        try:
            while (piece := await self._next(ready, pumping)) is not None:
                if not self.begun:
                    await self._begin(200, _EVENT_STREAM)
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            pumping.result()
            if not self.begun:
                await self._begin(200, _EVENT_STREAM)
            await self.end(b"")
        finally:
            pumping.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pumping

    async def _next(self, ready: asyncio.Queue[bytes | None], pumping: asyncio.Future[None]) -> bytes | None:
        """The next piece; a comment after a long silence; None at the end."""
        if ready.empty() and pumping.done():
            return None
        try:
            async with asyncio.timeout(STILL_THERE if self.begun else HEADERS_WITHIN):
                piece = await ready.get()
        except TimeoutError:
            return b": still there\n\n"
        return piece

    async def end(self, body: bytes) -> None:
        """The last bytes."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.begun = True
        encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


def _wake(ready: asyncio.Queue[bytes | None]) -> None:
    """The end of a stream wakes its reader; a full queue has something to read anyway."""
    with contextlib.suppress(asyncio.QueueFull):
        ready.put_nowait(None)


_EVENT_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
