"""Three real servers, each stream on all of them: any one may be killed, frozen or restarted under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from myna.actors import subjects
from myna.actors.bus import Stored, Unavailable
from myna.actors.bus.jetstream import ApiError
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import SessionId, Tenant, VarId
from myna.actors.server import Server
from tests.faults.cluster import Cluster, Wire, cluster
from tests.network import Collected

pytestmark = [pytest.mark.nats, pytest.mark.cluster]

T, S = Tenant("t"), SessionId("s")


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as made:
        yield made


async def connect(three: Cluster) -> NatsBus:
    """A client that may use every server."""
    urls = three.url.split(",")
    return await NatsBus.connect(urls, user=three.user, password=three.password, replicas=3, timeout=30)


async def test_whichever_server_dies_freezes_or_comes_back_under_load_nothing_is_lost_doubled_or_changed(
    three: Cluster,
) -> None:
    bus, follower = await connect(three), await connect(three)
    await bus.ensure(subjects.STREAMS)
    seen = Collected[Stored]()
    await follower.follow(subjects.VALUES, seen)
    written: set[str] = set()
    over = asyncio.Event()

    async def load(part: int) -> None:
        while not over.is_set():
            name = f"v{part}-{len(written)}"
            written.add(name)
            await bus.append(subjects.write(T, S, VarId(name)), name.encode(), message_id=name, timeout=60)

    first, second, _ = three.servers
    async with asyncio.TaskGroup() as tasks:
        for part in range(8):
            tasks.create_task(load(part))
        await first.kill()
        await seen.until(len(seen.items) + 200, timeout=60)  # the two others go on, after at most an election
        await first.restart()
        await seen.until(len(seen.items) + 200, timeout=60)
        second.pause()
        await seen.until(len(seen.items) + 200, timeout=60)
        second.resume()
        over.set()
    await seen.until(len(written), timeout=60)
    assert sorted(stored.data.decode() for stored in seen.items) == sorted(written)
    for stored in seen.items:
        assert subjects.parse(stored.subject).variable == stored.data.decode()
    for each in (bus, follower):
        await each.close()


async def test_when_the_cluster_is_really_gone_the_client_is_told_so_in_time_and_goes_on_when_it_is_back(
    three: Cluster,
) -> None:
    bus = await connect(three)
    await bus.ensure(subjects.STREAMS)
    await asyncio.gather(*(server.kill() for server in three.servers[:2]))  # one of three is no majority
    began = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match="v"):
        await bus.append(subjects.write(T, S, VarId("v")), b"1", message_id="m", timeout=3)
    assert asyncio.get_running_loop().time() - began < 4.5
    await asyncio.gather(*(server.restart() for server in three.servers[:2]))
    await bus.append(subjects.write(T, S, VarId("v")), b"1", message_id="m", timeout=60)
    stored = await bus.get(subjects.VALUES, subjects.write(T, S, VarId("v")), fresh=True)
    assert stored is not None
    assert stored.data == b"1"
    await bus.close()


async def test_streams_are_made_once_the_servers_of_a_cluster_that_starts_have_found_each_other(tmp_path: Path) -> None:
    first, second, late = Cluster.configs(tmp_path, 3)
    servers = Cluster(list(await asyncio.gather(Server.start(first), Server.start(second))))
    try:
        bus = await connect(servers)
        making = asyncio.create_task(bus.ensure(subjects.STREAMS))
        await elected(bus)
        await asyncio.wait({making}, timeout=2.0)  # meanwhile it is told that two servers can't hold three replicas
        assert not making.done()
        servers.servers.append(await Server.start(late))
        await making
        await bus.close()
    finally:
        await servers.stop()


async def elected(bus: NatsBus) -> None:
    """The servers that are there have a leader, who knows of no stream."""
    while True:
        try:
            await bus.measure(subjects.LOG)
        except ApiError:
            return
        except Unavailable:
            continue


async def test_a_wire_that_is_cut_or_frozen_is_noticed_and_gone_on_from(three: Cluster) -> None:
    wire = await Wire.before(three.servers[0].url)
    bus = await NatsBus.connect(wire.url, user=three.user, password=three.password, replicas=3)
    await bus.ensure(subjects.STREAMS)
    for n, harm in enumerate((wire.cut, wire.freeze)):
        harm()
        with pytest.raises(Unavailable):
            await bus.append(subjects.write(T, S, VarId(f"v{n}")), b"1", message_id=f"m{n}", timeout=0.5)
        wire.mend()
        await bus.append(subjects.write(T, S, VarId(f"v{n}")), b"1", message_id=f"m{n}", timeout=30)
    await bus.close()
    await wire.close()
