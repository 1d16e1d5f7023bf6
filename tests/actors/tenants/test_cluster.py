"""Tenants on three servers: told to one, known to all."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from myna.actors import subjects
from myna.actors.bus import Bus, BusError, NotAllowed
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import SessionId, Tenant, VarId
from myna.actors.server import Server
from myna.actors.tenants import admin
from myna.actors.tenants.accounts import ADMIN
from myna.actors.tenants.cluster import Node, configs
from myna.actors.tenants.credentials import identity
from myna.actors.tenants.keyring import Keyring, role_file
from myna.actors.tenants.rights import Role
from myna.actors.tenants.trust import lay_out
from tests.actors.stage import until
from tests.ports import free_ports

pytestmark = [pytest.mark.nats, pytest.mark.timeout(90)]

ALICE, S = Tenant("alice"), SessionId("s")


@dataclass
class Three:
    """Three servers that trust one authority."""

    folder: Path
    keyring: Keyring
    servers: list[Server]
    buses: list[Bus] = field(default_factory=list)

    async def connect(self, file: Path, at: int, *, timeout: float = 10.0) -> NatsBus:
        prefix, url = identity(file).inbox_prefix, self.servers[at].url
        bus = await NatsBus.connect(url, credentials=file, inbox_prefix=prefix, replicas=3, timeout=timeout)
        self.buses.append(bus)
        return bus

    async def tell(self, tenant: Tenant, at: int = 0) -> None:
        bus = await self.connect(role_file(self.folder, ADMIN), at)
        await admin.tell_servers(bus, self.keyring.authority.tenant_claims(tenant))


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    keyring = Keyring.at(tmp_path)
    keyring.begin(Tenant("default"))
    ports = free_ports(6)
    nodes = [
        Node(f"n{i}", tmp_path / f"n{i}", "127.0.0.1", "127.0.0.1", port=ports[2 * i], route_port=ports[2 * i + 1])
        for i in range(3)
    ]
    for node in nodes:
        lay_out(keyring.authority, node.store / "accounts")
    made = configs(keyring.authority, nodes)
    it = Three(tmp_path, keyring, list(await asyncio.gather(*(Server.start(config) for config in made))))
    scheduler = await it.connect(role_file(tmp_path, Role.SCHEDULER), 0)

    async def there() -> bool:
        try:
            await scheduler.ensure(subjects.STREAMS)
        except BusError:
            return False
        return True

    try:
        await until(there, "JetStream has a leader", timeout=40)
        yield it
    finally:
        for bus in it.buses:
            await bus.close()
        await asyncio.gather(*(server.stop() for server in it.servers))


async def used(bus: Bus, name: str) -> None:
    subject = subjects.write(ALICE, S, VarId(name))
    await bus.append(subject, b"mine", message_id=subject, timeout=30)
    assert (await bus.get(subjects.VALUES, subject)) is not None or await bus.get(subjects.VALUES, subject) is not None


async def test_a_tenant_told_to_one_server_is_in_on_every_other_and_out_when_it_is_rotated(three: Three) -> None:
    file, stolen = three.keyring.create(ALICE), three.folder / "stolen.creds"
    shutil.copy(file, stolen)
    await three.tell(ALICE, at=0)
    await used(await three.connect(file, at=2), "one")
    thief = await three.connect(stolen, at=1)

    await three.servers[2].kill()  # it misses what comes now
    three.keyring.rotate(ALICE)
    await three.tell(ALICE, at=0)
    await until(lambda: not thief.connected, "the old credentials are out")
    await used(await three.connect(file, at=0), "two")

    await three.servers[2].restart()
    await used(await three.connect(file, at=2), "three")
    for at in (0, 1):
        with pytest.raises(NotAllowed):
            await three.connect(stolen, at)

    async def shut_out() -> bool:
        """The server that was away hears from the others within seconds."""
        try:
            await (await three.connect(stolen, at=2)).close()
        except NotAllowed:
            return True
        return False

    await until(shut_out, "the old credentials are out there too", timeout=30)
