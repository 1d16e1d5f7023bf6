"""What actors/README.md promises to whoever has only a NATS client."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlsplit

import pytest

import myna
from myna.actors.server import Server
from myna.sdk.client import connect
from tests.actors.stage import stage
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats


class PlainClient:
    """NATS's text protocol over a socket, as the `nats` program speaks it: it knows nothing of Myna."""

    @classmethod
    async def connect(cls, server: Server) -> PlainClient:
        self = cls()
        where = urlsplit(server.url)
        self._reader, self._writer = await asyncio.open_connection(where.hostname, where.port)
        options = {"verbose": False, "headers": True, "user": server.config.user, "pass": server.config.password}
        self.send(f"CONNECT {json.dumps(options)}")
        return self

    def send(self, line: str, body: bytes | None = None) -> None:
        payload = b"" if body is None else body + b"\r\n"
        self._writer.write(line.encode() + b"\r\n" + payload)

    async def message(self) -> tuple[bytes, bytes]:
        """Headers and body of the next message."""
        while True:
            verb, *words = (await self._reader.readline()).split()
            if verb == b"HMSG":
                head, whole = int(words[-2]), int(words[-1])
                data = await self._reader.readexactly(whole + 2)
                return data[:head], data[head:-2]
            assert verb in (b"INFO", b"PONG", b"PING", b"+OK"), verb

    def close(self) -> None:
        self._writer.close()


async def test_a_plain_nats_client_reads_a_variable_by_its_subject(nats: NatsNetwork) -> None:
    client = await PlainClient.connect(nats.server)
    async with stage(nats.bus) as cast, connect(bus=await nats.bus()):
        await cast.scheduler()
        await _read_by_subject(client)
    client.close()


async def _read_by_subject(client: PlainClient) -> None:
    async with myna.session() as session:
        city = session.variable("city")
        client.send(f"SUB myna.default.{session.id}.var.* 1")
        client.send("SUB _INBOX.me 2")
        client.send("PING")
        await city.set("Zürich")
        headers, body = await client.message()
        assert b"Myna-Status: value" in headers
        assert "Zürich".encode() in body
        client.send(f"PUB $JS.API.DIRECT.GET.MYNA_VALUES.myna.default.{session.id}.set.{city.id} _INBOX.me 0", b"")
        _, stored = await client.message()
        assert stored == body
