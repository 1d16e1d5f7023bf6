"""How applications of the chaos benchmark reach the system: through the SDK, or over HTTP through whichever gateway answers.

Law: over HTTP every request may be sent twice. The client chooses the variables' names, so that a submission that comes again
makes nothing twice, and a stream that breaks is gone on with from the characters that were read.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Protocol

import httpx

import myna
from myna import Input, Output
from myna.actors.messages import Value
from myna.sdk.client import Client
from myna.sdk.session import Session
from myna.sdk.variable import Variable

AGENT = "chaos-digest"
RETRIES = 50
SOON = 0.2
"""Seconds until another gateway is tried."""
WAIT = 5.0
"""Seconds for which one request over HTTP waits for a value."""
TTL = 600.0


@myna.function(retries=RETRIES)
def write_words(parts: Input, word: Annotated[str, Output()]) -> None:
    """{{parts}}{{word}}"""


@myna.agent(name=AGENT, concurrency=32, retries=RETRIES)
def digest(parts: list[Value]) -> str:
    """A text that tells exactly what went into it."""
    return digest_of([part.text for part in parts])


def digest_of(parts: list[str]) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


class Course(Protocol):
    """One application's session. Variables are named by their ids."""

    @property
    def id(self) -> str:
        """The session's."""
        ...

    async def words(self, inputs: Sequence[str], tokens: int) -> str:
        """A call of the modelled engines; returns its variable."""
        ...

    async def digest(self, inputs: Sequence[str]) -> str:
        """A call of the agents; returns its variable."""
        ...

    async def get(self, variable: str) -> str:
        """A variable's text."""
        ...

    async def stream(self, variable: str) -> str:
        """A variable's text as a reader of its stream saw it."""
        ...


class Way(Protocol):
    """A way into the system."""

    def course(self) -> AbstractAsyncContextManager[Course]:
        """A session, open for the time of the block."""
        ...


# --- the SDK ----------------------------------------------------------------------------------------------------------


class _SdkCourse:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._made: dict[str, Variable] = {}

    @property
    def id(self) -> str:
        return self._session.id

    def _keep(self, variable: Variable) -> str:
        self._made[variable.id] = variable
        return variable.id

    async def words(self, inputs: Sequence[str], tokens: int) -> str:
        given = [self._made[i] for i in inputs]
        return self._keep(write_words(given or "begin", word=Output(max_tokens=tokens), session=self._session))

    async def digest(self, inputs: Sequence[str]) -> str:
        return self._keep(digest(parts=[self._made[i] for i in inputs], session=self._session))

    async def get(self, variable: str) -> str:
        return await self._made[variable].get()

    async def stream(self, variable: str) -> str:
        return "".join([piece async for piece in self._made[variable].stream()])


class Sdk:
    """Through the SDK, over a connection of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @asynccontextmanager
    async def course(self) -> AsyncIterator[Course]:
        async with self._client.session("chaos", ttl=TTL) as session:
            yield _SdkCourse(session)


# --- HTTP -------------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """A gateway said that a request is wrong."""


class _HttpCourse:
    def __init__(self, front: Http, id_: str) -> None:
        self.id = id_
        self._front = front
        self._path = f"/myna/v1/sessions/{id_}"

    async def _call(self, call: dict[str, Any]) -> str:
        variable = f"v-{secrets.token_hex(8)}"
        (output,) = call["outputs"].values()
        output["variable"] = variable
        await self._front.ask("POST", f"{self._path}/calls", json={"calls": [{**call, "retries": RETRIES}]})
        return variable

    async def words(self, inputs: Sequence[str], tokens: int) -> str:
        output = {"word": {"sampling": {"max_tokens": tokens}}}
        if not inputs:
            return await self._call({"prompt": "begin{{word}}", "outputs": output})
        given = {"parts": {"variables": list(inputs)}}
        return await self._call({"prompt": "{{parts}}{{word}}", "inputs": given, "outputs": output})

    async def digest(self, inputs: Sequence[str]) -> str:
        given = {"parts": {"variables": list(inputs)}}
        return await self._call({"native": AGENT, "inputs": given, "outputs": {"text": {}}})

    async def get(self, variable: str) -> str:
        while True:
            path = f"{self._path}/variables/{variable}?timeout={WAIT:g}"
            told: dict[str, Any] = (await self._front.ask("GET", path)).json()
            match told["state"]:
                case "value":
                    return str(told["text"])
                case "pending":
                    pass
                case _:
                    raise Refused(f"{variable} has {told['state']}: {told['message']}")

    async def stream(self, variable: str) -> str:
        text = ""
        while True:
            try:
                async for event, data in self._front.events(f"{self._path}/variables/{variable}/stream", len(text)):
                    if event == "end":
                        return text
                    if event == "text":
                        assert data["offset"] == len(text), f"{variable}: {data} does not follow {len(text)} characters"
                        text += data["text"]
            except httpx.TransportError:
                pass
            await asyncio.sleep(SOON)


class Http:
    """Over HTTP, through any of the gateways at `urls`."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self._urls = urls
        self._random = random.Random(f"http {seed}")
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(2 * WAIT, connect=2.0, pool=None))

    @asynccontextmanager
    async def course(self) -> AsyncIterator[Course]:
        made = await self.ask("POST", "/myna/v1/sessions", json={"name": "chaos-http", "ttl": TTL})
        course = _HttpCourse(self, made.json()["session"])
        yield course
        await self.ask("DELETE", f"/myna/v1/sessions/{course.id}", gone=True)

    async def ask(self, method: str, path: str, *, gone: bool = False, **content: Any) -> httpx.Response:
        """Ask one gateway after another until one answers; `gone`: that there is nothing is an answer. Raises `Refused`."""
        while True:
            try:
                answer = await self._http.request(method, self._random.choice(self._urls) + path, **content)
                if answer.is_success or (gone and answer.status_code == 404):
                    return answer
                if answer.status_code < 500 and answer.status_code != 429:
                    raise Refused(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            except httpx.TransportError:
                pass
            await asyncio.sleep(SOON)

    async def events(self, path: str, offset: int) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """The events of a stream, from `offset` on, until it breaks."""
        event = ""
        headers = {"last-event-id": str(offset)}
        async with self._http.stream("GET", self._random.choice(self._urls) + path, headers=headers) as answer:
            async for line in answer.aiter_lines():
                name, _, rest = line.partition(": ")
                if name == "event":
                    event = rest
                elif name == "data":
                    yield event, json.loads(rest)

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()
