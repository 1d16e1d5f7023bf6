"""The connection to one endpoint, through the `openai` package: requests out, checked events in.

Laws:
- Everything has an end: reaching the endpoint, the first piece, each further piece, and the bytes of an answer are bounded.
- Nothing is tried again here: what failed is told with its kind, and whoever asked decides.
- The key is in no error and no log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx2
import msgspec
import openai

from myna.actors.config import ConfigError
from myna.actors.endpoints.headers import exhausted, retry_after
from myna.actors.endpoints.pieces import Filtered, Malformed
from myna.actors.endpoints.requests import Request
from myna.actors.endpoints.settings import Endpoint
from myna.actors.messages import ErrorCode, Failure
from myna.actors.telemetry import context

SMALL = 1 << 20
"""Bytes that any answer may have, an error too."""
EVENT = 8192
"""Bytes that an answer may have for each token, more than an event with twenty alternatives takes."""

_room: ContextVar[int] = ContextVar("room", default=SMALL)
"""Bytes that the answer to the request which this task makes may have."""


class Fault(StrEnum):
    """Whose fault it is that a request failed, and what follows."""

    LIMITED = "limited"  # one too many: later, or elsewhere
    ABSENT = "absent"  # nobody there who would take it: elsewhere, or later
    BROKEN = "broken"  # configured so that it can't succeed: elsewhere
    FAILED = "failed"  # it took the request, and failed: another try may succeed
    REJECTED = "rejected"  # the request itself can't be right


class Trouble(Exception):
    """A request that failed. `after`: seconds after which the endpoint says to come again."""

    def __init__(
        self, fault: Fault, message: str, *, code: ErrorCode = ErrorCode.ENGINE_ERROR, after: float | None = None
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.after = after
        retryable = fault is not Fault.REJECTED
        self.failure = Failure(code=code, message=message, retryable=retryable, retry_after=after)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer as it comes: its events, as JSON. `exhausted`: seconds for which the endpoint allows no more, if it says so."""

    events: AsyncIterator[Any]
    exhausted: float | None


class _Bounded(httpx2.AsyncByteStream):
    """An answer's bytes, up to a bound."""

    def __init__(self, stream: httpx2.AsyncByteStream, room: int) -> None:
        self._stream = stream
        self._room = room

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._stream:
            self._room -= len(data)
            if self._room < 0:
                raise Malformed("its answer has far more bytes than what was asked for can take")
            yield data

    async def aclose(self) -> None:
        """Close what it reads from."""
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream, _room.get())


class Client:
    """One endpoint's connections. To be closed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._key = ""
        waits = (endpoint.connect_seconds, endpoint.first_seconds)
        # Our own clocks bound what comes; these bound what `openai` does before that.
        self._timeout = httpx2.Timeout(waits[1], connect=waits[0])
        self._http = openai.DefaultAsyncHttpxClient(
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=endpoint.concurrency),
            event_hooks={"response": [_bound]},
            headers={"accept-encoding": "identity"},  # a small answer must not become a huge one
            follow_redirects=False,  # the key is for this endpoint alone
        )
        self._openai = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key="none",
            max_retries=0,
            timeout=self._timeout,
            http_client=self._http,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._openai.close()

    async def models(self) -> tuple[str, ...]:
        """The names of the models that are there; none from a server that has no list. Raises `Trouble`."""
        try:
            self._key = self._endpoint.key()  # it may have been changed
        except ConfigError as error:
            raise Trouble(Fault.BROKEN, str(error)) from None
        self._openai.api_key = self._key or "none"
        seconds = self._endpoint.connect_seconds
        try:
            async with asyncio.timeout(2 * seconds):
                page: Any = await self._openai.get("/models", cast_to=object, options={"timeout": seconds})
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 500, 501):  # there is somebody; whether he works, calls will tell
                return ()
            raise self._trouble(error) from None
        except Exception as error:
            raise self._trouble(error) from None
        try:
            return tuple(model.id for model in msgspec.convert(page, _Models).data)
        except msgspec.ValidationError:
            return ()

    @asynccontextmanager
    async def answer(self, request: Request) -> AsyncIterator[Stream]:
        """A request's answer, while the block lasts. Entering, reading, and what the block finds wrong there, raise `Trouble`."""
        _room.set(SMALL + EVENT * request.limit * len(request.variables))
        stream = await self._ask(request)
        events = self._events(stream)
        try:
            yield Stream(events, exhausted(stream.response.headers))
        except (Malformed, Filtered) as error:
            raise self._trouble(error) from None
        finally:
            await events.aclose()
            await stream.close()

    async def _ask(self, request: Request) -> openai.AsyncStream[object]:
        try:
            async with asyncio.timeout(self._endpoint.first_seconds):
                return await self._openai.post(
                    request.path,
                    cast_to=object,
                    body=request.body,
                    options={"headers": context.outgoing() or {}},  # vLLM and others go on with the trace
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
        except Exception as error:
            raise self._trouble(error, request) from None

    async def _events(self, stream: openai.AsyncStream[object]) -> AsyncGenerator[Any, None]:
        wait, first = self._endpoint.first_seconds, True
        try:
            while True:
                async with asyncio.timeout(wait):
                    event = await anext(stream, None)
                if event is None:
                    return
                if first:
                    wait, first = self._endpoint.idle_seconds, False
                yield event
        except Exception as error:
            raise self._trouble(error, begun=True) from None

    # --- what went wrong ---

    def _trouble(self, error: Exception, request: Request | None = None, *, begun: bool = False) -> Trouble:
        match error:
            case Trouble():
                return error
            case openai.APIStatusError():
                return self._of_status(error, request)
            case TimeoutError() | openai.APITimeoutError():
                waited = self._endpoint.idle_seconds if begun else self._endpoint.first_seconds
                return Trouble(Fault.FAILED, self._say(f"it hangs: nothing came for {waited:g} s"))
            case openai.APIConnectionError() if isinstance(error.__cause__, Malformed):
                return Trouble(Fault.FAILED, self._say(str(error.__cause__)))
            case openai.APIConnectionError():
                if begun:
                    return Trouble(Fault.FAILED, self._say("the connection was cut in the middle of an answer"))
                return Trouble(Fault.ABSENT, self._say("it can't be reached"))
            case openai.APIError():
                return Trouble(Fault.FAILED, self._say(f"it failed in the middle of an answer: {error.message}"))
            case Filtered():
                return Trouble(Fault.REJECTED, self._say(str(error)))
            case Malformed():
                return Trouble(Fault.FAILED, self._say(str(error)))
            case ValueError() | RecursionError() | TypeError() | AttributeError():  # what parsing nonsense raises
                return Trouble(Fault.FAILED, self._say("what it sends is no stream of events in JSON"))
            case _:
                raise error

    def _of_status(self, error: openai.APIStatusError, request: Request | None) -> Trouble:
        status, after = error.status_code, retry_after(error.response.headers, time.time())
        said = self._say(f"it answers {status}: {error.message}")
        code = str(error.code or error.type or "")
        if status == 429 and code not in ("insufficient_quota", "billing_hard_limit_reached"):
            return Trouble(Fault.LIMITED, said, after=after or exhausted(error.response.headers))
        if status in (401, 402, 403, 429):
            return Trouble(Fault.BROKEN, said)
        if status == 404:
            if request is not None and not request.chat and "model" not in f"{code} {error.message}":
                hint = 'give the prompt roles, or set `plain = "user"` for this endpoint'
                return Trouble(
                    Fault.REJECTED, self._say(f"it has no /completions: {hint}"), code=ErrorCode.INVALID_CALL
                )
            return Trouble(Fault.BROKEN, said)
        if status in (408, 409, 425, 502, 503, 504, 529):
            return Trouble(Fault.ABSENT, said, after=after)
        if status >= 500 or status < 400:
            return Trouble(Fault.FAILED, said, after=after)
        too_long = (
            code == "context_length_exceeded" or "context length" in error.message or "context window" in error.message
        )
        return Trouble(Fault.REJECTED, said, code=ErrorCode.PROMPT_TOO_LONG if too_long else ErrorCode.INVALID_CALL)

    def _say(self, message: str) -> str:
        """A sentence about this endpoint, without its key."""
        shown = message if len(message) <= 500 else f"{message[:500]}..."
        if self._key:
            shown = shown.replace(self._key, "(key)")
        return f"endpoint {self._endpoint.name!r}: {shown}"


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]
