"""The routes between real NATS servers are cut, whose clients stay connected: each finds its way, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, cast

import pytest

import myna
from myna import Input, Output
from myna.actors import subjects
from myna.actors.bus import Unavailable, jetstream, pulse
from myna.actors.bus.nats import NatsBus
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.sdk.client import Client
from tests.actors.stage import stage, until
from tests.faults.routes import Routes, routes

pytestmark = [pytest.mark.nats, pytest.mark.cluster, pytest.mark.timeout(120)]

HERE, AWAY = 0, 2
"""The server of the scheduler, and that of everybody else."""
TOKENS = 60


@myna.function(retries=20, model="shared")
def write(parts: Input, word: Annotated[str, Output(max_tokens=TOKENS)]) -> None:
    """{{parts}}{{word}}"""


@myna.function(model="alone")
def finish(parts: Input, word: Annotated[str, Output(max_tokens=TOKENS)]) -> None:
    """{{parts}}{{word}}"""


WORDS = " ".join(f"word{n}" for n in range(TOKENS))


@pytest.fixture
async def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Routes]:
    monkeypatch.setattr(pulse, "PATIENCE", 5.0)  # a leader is heard every 2.5 seconds
    monkeypatch.setattr(jetstream, "_CUT_OFF", 4.0)
    async with routes(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    "cut", [lambda s: s.cut_off(AWAY), lambda s: s.part(HERE, AWAY)], ids=["from all", "from the scheduler's"]
)
async def test_everybody_at_a_server_that_is_cut_off_finds_the_way_to_another_and_what_they_do_goes_on(
    servers: Routes, cut: Callable[[Routes], None]
) -> None:
    """Engines that stream, one that is idle and has no equal, an application, and one who only reads."""
    at = {"scheduler": HERE, "here": HERE, "away": AWAY, "alone": AWAY, "application": AWAY, "reader": AWAY}
    starting = iter(at.values())
    async with stage(lambda: servers.connect(next(starting, None))) as actors:
        await actors.scheduler(supervised=True)  # an election may outlast the lease
        for worker in ("here", "away", "alone"):
            model = "alone" if worker == "alone" else "shared"
            await actors.worker(worker, NoopBackend(NoopModel(model, step=0.03)))
        buses = {name: cast(NatsBus, await actors.bus(name)) for name in at}
        client, reader = Client(bus=buses["application"]), Client(bus=buses["reader"])
        async with client.session() as session, reader.attach(session.id) as attached:
            parts = [write(f"part {n}", session=session) for n in range(4)]
            await asyncio.gather(*(anext(part.stream()) for part in parts))
            read = asyncio.gather(*(attached.lookup(part.id).get() for part in parts))
            cut(servers)
            last = finish(parts, session=session)
            assert await read == [WORDS] * len(parts)
            assert await last.get() == WORDS
            assert await attached.lookup(last.id).get() == WORDS
        del buses["scheduler"]

        async def all_see_the_leader() -> bool:  # which may have been the one to move
            leader = cast(NatsBus, await actors.bus("scheduler"))
            return all(servers.see_each_other(leader, bus) for bus in buses.values())

        await until(all_see_the_leader, "all see the leader", 60)


async def test_a_leading_scheduler_that_is_cut_off_leads_on_elsewhere_or_another_does(servers: Routes) -> None:
    at = iter((AWAY, HERE, HERE))
    async with stage(lambda: servers.connect(next(at, None))) as actors:
        await actors.scheduler("leader", supervised=True)
        await actors.worker("worker", NoopBackend(NoopModel("shared")))
        async with Client(bus=await actors.bus("application")).session() as session:
            assert await write("before", session=session).get() == WORDS
            servers.cut_off(AWAY)
            assert await write("during", session=session).get() == WORDS


async def test_a_lease_is_renewed_once_the_renewal_before_has_been_agreed_on(
    servers: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that leads the bucket's stream is cut off with a renewal in flight, and mended."""
    monkeypatch.setattr(jetstream, "_CUT_OFF", 60.0)  # nobody leaves the server
    monkeypatch.setattr(pulse, "PATIENCE", 60.0)
    async with AsyncExitStack() as buses:

        async def connect(server: int) -> NatsBus:
            bus = await servers.connect(server)
            buses.push_async_callback(bus.close)
            return bus

        anyone = await connect(HERE)
        revision = await anyone.acquire("scheduler", b"me", ttl=60.0)
        leader = await servers.leader_of(anyone, f"KV_{subjects.LEASES}")
        bus = await connect(leader)
        servers.cut_off(leader)
        with pytest.raises(Unavailable):
            await bus.renew("scheduler", b"me", revision)
        second = asyncio.ensure_future(bus.renew("scheduler", b"me", revision))
        await until(lambda: bool(bus._link._answers), "the second is sent")
        await bus._link.round_trip(5.0)
        servers.mend()
        renewed = await second
        assert renewed > revision
        assert await bus.renew("scheduler", b"me", renewed) > renewed, "it is still ours"
