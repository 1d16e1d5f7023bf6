"""Readers cost a stream nothing: they subscribe, and get directly (Law 8). So few consumers are enough, and few are allowed."""

from __future__ import annotations

import asyncio

import pytest

from myna.actors import subjects
from myna.actors.bus import BusError, NotAllowed
from myna.actors.bus.jetstream import MAX_CONSUMERS
from myna.actors.messages import SessionId, Tenant, VarId
from myna.actors.tenants.rights import Role
from tests.actors.tenants.realm import Realm, realm
from tests.network import Deliveries, StoredMessages

__all__ = ["realm"]
pytestmark = pytest.mark.nats

TENANTS, CONNECTIONS, READERS = 4, 5, 100
"""2,000 readers in all: of each tenant so many connections, on each so many readers."""
S = SessionId("s")


async def consumers(realm: Realm, stream: subjects.Stream) -> int:
    bus = await realm.role(Role.SCHEDULER)
    info = await bus._jetstream.api(f"STREAM.INFO.{stream.name}", {}, timeout=5)
    return int(info["state"]["consumer_count"])


async def test_two_thousand_readers_of_one_stream_all_hear_and_get_and_make_no_consumer(realm: Realm) -> None:
    tenants = [Tenant(f"t{n}") for n in range(TENANTS)]
    for tenant in tenants:
        await realm.create(tenant)
    buses = [(tenant, await realm.tenant(tenant)) for tenant in tenants for _ in range(CONNECTIONS)]
    readers: list[tuple[Tenant, VarId, Deliveries]] = []
    for tenant, bus in buses:
        for n in range(READERS):
            readers.append((tenant, VarId(f"v{n}"), Deliveries()))
            await bus.subscribe(subjects.read(tenant, S, readers[-1][1]), readers[-1][2])
    assert len(readers) == 2000
    writers = dict(buses)
    for tenant in tenants:
        await asyncio.gather(
            *(
                writers[tenant].append(subjects.write(tenant, S, VarId(f"v{n}")), f"{tenant} {n}".encode())
                for n in range(READERS)
            )
        )
    for tenant, variable, heard in readers:
        await heard.until(1)
        assert [d.data for d in heard.items] == [f"{tenant} {variable[1:]}".encode()]
    for tenant, bus in buses:
        gets = (bus.get(subjects.VALUES, subjects.write(tenant, S, VarId(f"v{n}"))) for n in range(READERS))
        stored = await asyncio.gather(*gets)
        assert [s.data for s in stored if s is not None] == [f"{tenant} {n}".encode() for n in range(READERS)]
    assert await consumers(realm, subjects.VALUES) == 0


async def test_only_schedulers_and_the_operator_follow_and_so_many_at_most(realm: Realm) -> None:
    for role in (Role.ENGINE, Role.GATEWAY):
        with pytest.raises(NotAllowed):
            await (await realm.role(role)).follow(subjects.VALUES, StoredMessages())
    bus = await realm.role(Role.OPERATOR)
    await asyncio.gather(*(bus.follow(subjects.VALUES, StoredMessages()) for _ in range(MAX_CONSUMERS)))
    assert await consumers(realm, subjects.VALUES) == MAX_CONSUMERS
    with pytest.raises(BusError, match="maximum consumers"):
        await bus.follow(subjects.VALUES, StoredMessages())
