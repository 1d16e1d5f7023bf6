"""Real NATS servers in numbers, and a wire to them that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from myna.actors.server import Server, ServerConfig
from tests.ports import free_ports

PIECE = 2**16


class Cluster:
    """Servers that keep streams together, with one user. `await Cluster.start(folder)`."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    @classmethod
    async def start(cls, folder: Path, size: int = 3) -> Cluster:
        """All servers, started; JetStream may need another moment to elect a leader, for which callers wait by themselves."""
        return cls(list(await asyncio.gather(*(Server.start(config) for config in cls.configs(folder, size)))))

    @staticmethod
    def configs(folder: Path, size: int) -> list[ServerConfig]:
        """Of servers that belong together, on ports that are free."""
        password = secrets.token_urlsafe(16)
        routes = free_ports(size)
        configs = []
        for n, port in enumerate(routes):
            others = ", ".join(json.dumps(f"nats://127.0.0.1:{p}") for p in routes if p != port)
            block = f"cluster {{ name: myna, listen: 127.0.0.1:{port}, routes: [{others}], no_advertise: true }}"
            extra = block if size > 1 else ""
            config = ServerConfig(folder / f"nats-{n}", name=f"n{n}", password=password, extra=extra)
            configs.append(config)
        return configs

    @property
    def url(self) -> str:
        """All servers, for a client."""
        return ",".join(server.url for server in self.servers)

    @property
    def user(self) -> str:
        """Who may do everything."""
        return self.servers[0].config.user

    @property
    def password(self) -> str:
        """Of `user`."""
        return self.servers[0].config.password

    async def stop(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.resume()
        await asyncio.gather(*(server.stop() for server in self.servers))


@asynccontextmanager
async def cluster(folder: Path, size: int = 3) -> AsyncIterator[Cluster]:
    """A cluster for the time of a block."""
    made = await Cluster.start(folder, size)
    try:
        yield made
    finally:
        await made.stop()


class Wire:
    """A TCP proxy before one server. `cut` closes connections and refuses new ones; `freeze` keeps them and carries nothing."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 4222
        self._server: asyncio.Server
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False

    @classmethod
    async def before(cls, target: str) -> Wire:
        """A wire to the server at `target` (nats://host:port)."""
        wire = cls(target)
        wire._server = await asyncio.start_server(wire._connected, "127.0.0.1", 0)
        return wire

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Nobody is connected any more, and nobody can be."""
        self._refusing = True
        for writer in tuple(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Nothing passes; nobody is told."""
        self._open.clear()

    @property
    def carries(self) -> bool:
        """Whether anything passes."""
        return self._open.is_set()

    def mend(self) -> None:
        """All is well again."""
        self._refusing = False
        self._open.set()

    async def close(self) -> None:
        """End it."""
        self._server.close()
        self.cut()
        self._open.set()
        for pipe in tuple(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        except asyncio.CancelledError:  # the event loop ends
            writer.transport.abort()
            raise
        self._writers |= {writer, back}
        for source, sink in ((reader, back), (there, writer)):
            pipe = asyncio.create_task(self._carry(source, sink))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(PIECE):
                await self._open.wait()
                sink.write(piece)
                await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)
