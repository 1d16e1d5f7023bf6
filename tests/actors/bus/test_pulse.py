from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from myna.actors.bus import NotAllowed, pulse
from myna.actors.bus.link import Link, Sink
from myna.actors.bus.nats import NatsBus
from myna.actors.bus.pulse import Pulse
from myna.actors.server import Server, ServerConfig

BEAT = "beat"


class Deaf:
    """In place of a link: nothing ever comes through it. It notes when it is left."""

    def __init__(self, refusal: NotAllowed | None = None) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.refusal = refusal
        self.left: list[float] = []
        self.changed = asyncio.Event()

    async def listen(self, subject: str, sink: Sink, *, timeout: float) -> int:
        if self.refusal is not None:
            raise self.refusal
        return 1

    async def leave(self) -> None:
        self.left.append(asyncio.get_running_loop().time())
        self.changed.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PATIENCE", 0.05)
    monkeypatch.setattr(pulse, "SPREAD", 0.0)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[Server]]:
    """Servers that know nothing of each other, as if the network between them were cut."""
    servers = [await Server.start(ServerConfig(tmp_path / name, password="p")) for name in "ab"]
    yield servers
    for server in servers:
        await server.stop()


@pytest.mark.nats
async def test_a_server_through_which_no_pulse_comes_is_left_and_one_through_which_it_comes_is_kept(
    two: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "PATIENCE", 0.4)
    bus = await NatsBus.connect([server.url for server in two], user="myna", password="p", pulse=BEAT)
    first = bus._link.connected_url
    (other,) = (server for server in two if first is not None and server.port != first.port)
    leader = await NatsBus.connect(other.url, user="myna", password="p")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await bus.subscribe(BEAT, lambda delivery: heard.put(delivery.data))

    async def beat() -> None:
        for n in range(10**6):
            await leader.publish(BEAT, str(n).encode())
            await asyncio.sleep(0.05)

    beating = asyncio.create_task(beat())
    try:
        async with asyncio.timeout(10):
            came = [int(await heard.get()) for _ in range(25)]  # more than two patiences
    finally:
        beating.cancel()
    assert came == list(range(came[0], came[0] + 25)), "it stayed where it heard something"
    await bus.close()
    await leader.close()


async def test_where_nobody_leads_each_move_takes_twice_as_long_as_the_one_before(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Deaf()
    monkeypatch.setattr(pulse, "LONGEST", 0.2)
    watch = Pulse(cast(Link, link), BEAT)
    began = asyncio.get_running_loop().time()
    await watch.begin()
    async with asyncio.timeout(10):
        while len(link.left) < 4:
            link.changed.clear()
            await link.changed.wait()
    watch.end()
    gaps = [late - early for early, late in zip([began, *link.left], link.left, strict=False)]
    for gap, least in zip(gaps, (0.05, 0.1, 0.2, 0.2), strict=True):
        assert gap >= least * 0.98


async def test_who_may_not_listen_as_with_credentials_of_an_earlier_release_stays_where_it_is(impatient: None) -> None:
    link = Deaf(NotAllowed("no"))
    watch = Pulse(cast(Link, link), BEAT)
    await watch.begin()
    assert watch._timer is None
    watch.end()
