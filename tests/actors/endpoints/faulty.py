"""A real HTTP server on loopback that answers as OpenAI's API does, and fails as it is told to: one act for each request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from myna.actors.endpoints.settings import Endpoint


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    path: str
    headers: Mapping[str, str]
    body: Any


Act = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def piece(asked: Asked, index: int, text: str | None, finish: str | None = None, **more: Any) -> bytes:
    if asked.path.endswith("/chat/completions"):
        return event(
            {"choices": [{"index": index, "delta": {"content": text} | more, "finish_reason": finish}], "usage": None}
        )
    return event({"choices": [{"index": index, "text": text or "", "finish_reason": finish, **more}]})


def head(status: int, kind: str, headers: Mapping[str, str] = {}) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", f"content-type: {kind}", "connection: close"]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()


def says(
    *words: str, finish: str = "stop", usage: Mapping[str, Any] | None = None, headers: Mapping[str, str] = {}
) -> Act:
    """A whole answer, in pieces; each choice is drawn alike."""
    told = usage or {"prompt_tokens": 12, "completion_tokens": len(words)}

    async def act(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream", headers))
        for index in range(asked.body.get("n", 1)):
            for word in words:
                writer.write(piece(asked, index, word))
            writer.write(piece(asked, index, None, finish))
        writer.write(event({"choices": [], "usage": told}) + event(b"[DONE]"))

    return act


def refuses(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Act:
    """An error in OpenAI's form; in `headers` `_` stands for `-`."""
    body = json.dumps({"error": {"message": message, "type": "some_error", "code": code}}).encode()

    async def act(asked: Asked, writer: asyncio.StreamWriter) -> None:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        writer.write(head(status, "application/json", {"content-length": str(len(body)), **given}) + body)

    return act


def breaks_off(*words: str, then: bytes = b"") -> Act:
    """Some words, then the connection is cut, perhaps after some last bytes."""

    async def act(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream", {"transfer-encoding": "chunked"}))
        for data in [*(piece(asked, 0, word) for word in words), then]:
            if data:
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    return act


def sends(*data: bytes) -> Act:
    """These very bytes as a stream of events."""

    async def act(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream") + b"".join(data))

    return act


class Gate:
    """Some words; then it waits until it is opened, and ends the answer, or cuts it."""

    def __init__(self, *words: str, finish: bool = True) -> None:
        self._words, self._finish = words, finish
        self.reached, self.opened, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "text/event-stream", {"transfer-encoding": "chunked"}))
        for word in self._words:
            data = piece(asked, 0, word)
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
        self.reached.set()
        try:
            await self.opened.wait()
        finally:
            self.left.set()
        if self._finish:
            data = piece(asked, 0, " end", "stop") + event(b"[DONE]")
            writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))


@dataclass
class Faulty:
    """The server: `acts` are played one after another; when there are none left, it says `usual`."""

    port: int = 0
    acts: list[Act] = field(default_factory=list)
    usual: Act = field(default_factory=lambda: says("one", " two"))
    looks: list[Act] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    models: tuple[str, ...] = ("its-model",)
    busy: int = 0
    busiest: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def endpoint(self, name: str = "e", **options: Any) -> Endpoint:
        """How it is configured."""
        return Endpoint(
            **{"name": name, "url": f"http://127.0.0.1:{self.port}/v1", "models": {"ours": "its-model"}} | options
        )

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection: its task is held here, since nobody else does."""
        task = asyncio.ensure_future(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        leaving = None
        try:
            asked = await _request(reader)
            playing = asyncio.ensure_future(self._play(asked, writer))
            leaving = asyncio.ensure_future(reader.read())  # ends when the client goes
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
            playing.cancel()
            await asyncio.wait((playing,))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if leaving is not None:
                leaving.cancel()
            writer.close()

    async def _play(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path.endswith("/models"):
            await (self.looks.pop(0) if self.looks else self._list)(asked, writer)
            await writer.drain()
            return
        self.asked.append(asked)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await (self.acts.pop(0) if self.acts else self.usual)(asked, writer)
            await writer.drain()
        finally:
            self.busy -= 1

    async def _list(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        data = json.dumps({"object": "list", "data": [{"id": name} for name in self.models]}).encode()
        writer.write(head(200, "application/json", {"content-length": str(len(data))}) + data)


async def _request(reader: asyncio.StreamReader) -> Asked:
    top = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in top[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(top[0].split(" ")[1], headers, json.loads(body) if body else None)


@asynccontextmanager
async def faulty(*acts: Act, **options: Any) -> AsyncIterator[Faulty]:
    """A server on a free port."""
    it = Faulty(acts=list(acts), **options)
    server = await asyncio.start_server(it.accept, "127.0.0.1", it.port)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        for task in it.tasks:
            task.cancel()
        await asyncio.gather(*it.tasks, return_exceptions=True)
