"""A real server with actors in an event loop of its own, for tests whose own loop stands still, or is begun by what they call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from myna.actors.bus import Bus
from myna.actors.bus.nats import NatsBus
from myna.actors.server import Server, ServerConfig
from myna.sdk.threads import LoopThread
from tests.actors.stage import Stage


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with a scheduler and a no-op engine."""
    thread = LoopThread("cast")
    server = thread.call(Server.start(ServerConfig(tmp_path / "nats")))

    async def bus() -> Bus:
        return await NatsBus.connect(server.url, user=server.config.user, password=server.config.password)

    cast = Stage(bus)
    thread.call(cast.scheduler())
    thread.call(cast.worker())
    yield server
    thread.call(cast.close())
    thread.call(server.stop())
    thread.stop()
