"""Tenants come, change and go on a server that runs and is used meanwhile."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from myna.actors import subjects
from myna.actors.bus import Bus, BusError, NotAllowed
from myna.actors.messages import SessionId, Tenant, VarId
from myna.actors.server import Server, ServerConfig
from myna.actors.tenants import admin
from myna.actors.tenants.accounts import ADMIN
from myna.actors.tenants.keyring import Keyring, role_file, tenant_file
from myna.actors.tenants.rights import Grant, Role
from myna.actors.tenants.trust import lay_out, server_lines
from tests.actors.stage import until
from tests.actors.tenants.realm import Realm, realm
from tests.network import Deliveries

__all__ = ["realm"]
pytestmark = pytest.mark.nats

ALICE, BOB = Tenant("alice"), Tenant("bob")
S = SessionId("s")


@asynccontextmanager
async def load(bus: Bus, tenant: Tenant) -> AsyncIterator[list[str]]:
    """Appends and reads by `tenant` all the time; none may fail. Gives the list of what was done."""
    done: list[str] = []

    async def work() -> None:
        while True:
            subject = subjects.write(tenant, S, VarId(f"load-{len(done)}"))
            await bus.append(subject, b"x", message_id=subject)
            assert await bus.get(subjects.VALUES, subject) is not None
            done.append(subject)

    async def more(count: int) -> None:
        target = len(done) + count
        await until(lambda: len(done) >= target or task.done(), "work goes on")

    task = asyncio.create_task(work())
    try:
        await more(20)
        yield done
        await more(20)
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def test_a_tenant_that_is_made_under_load_is_in_at_once(realm: Realm) -> None:
    alice = await realm.tenant(ALICE)
    async with load(alice, ALICE):
        for name in ("bob", "carol", "dave"):
            other = await realm.tenant(name)
            subject = subjects.write(Tenant(name), S, VarId("v"))
            await other.append(subject, b"mine")
            assert await other.get(subjects.VALUES, subject) is not None


async def test_rotation_under_load_loses_nothing_and_shuts_the_old_credentials_out(realm: Realm) -> None:
    alice, bob = await realm.tenant(ALICE), await realm.tenant(BOB)
    stolen = realm.folder / "stolen.creds"
    shutil.copy(tenant_file(realm.folder, ALICE), stolen)
    thief = await realm.connect(stolen)
    async with load(alice, ALICE), load(bob, BOB):
        realm.keyring.rotate(ALICE)
        await realm.tell(ALICE)
        await until(lambda: not thief.connected, "the old credentials' connection is closed")
    with pytest.raises(NotAllowed):
        await realm.connect(stolen)
    assert not thief.connected


async def test_credentials_may_be_kept_while_new_ones_are_spread(realm: Realm) -> None:
    await realm.create(ALICE)
    old = realm.folder / "old.creds"
    shutil.copy(tenant_file(realm.folder, ALICE), old)
    realm.keyring.rotate(ALICE, keep=True)
    await realm.tell(ALICE)
    for file in (old, tenant_file(realm.folder, ALICE)):
        bus = await realm.connect(file)
        await bus.append(subjects.log(ALICE, S), b"x")


async def test_a_tenant_that_is_removed_is_out_and_stays_out(realm: Realm) -> None:
    alice, bob = await realm.tenant(ALICE), await realm.tenant(BOB)
    kept = realm.folder / "kept.creds"
    shutil.copy(tenant_file(realm.folder, ALICE), kept)
    async with load(bob, BOB):
        claims = realm.keyring.remove(ALICE)
        await admin.tell_servers(await realm.role(ADMIN), claims)
        await until(lambda: not alice.connected, "its connection is closed")
    await realm.server.restart()
    with pytest.raises(NotAllowed):
        await realm.connect(kept)


async def test_a_restarted_server_knows_who_was_made_and_rotated_while_it_ran(realm: Realm) -> None:
    await realm.create(ALICE)
    stolen = realm.folder / "stolen.creds"
    shutil.copy(tenant_file(realm.folder, ALICE), stolen)
    realm.keyring.rotate(ALICE)
    await realm.tell(ALICE)
    await realm.server.restart()
    alice = await realm.connect(tenant_file(realm.folder, ALICE))
    await alice.append(subjects.log(ALICE, S), b"x")
    with pytest.raises(NotAllowed):
        await realm.connect(stolen)


async def test_what_changed_while_no_server_ran_holds_when_it_starts(realm: Realm) -> None:
    await realm.create(ALICE)
    stolen = realm.folder / "stolen.creds"
    shutil.copy(tenant_file(realm.folder, ALICE), stolen)
    await realm.server.stop()
    realm.keyring.rotate(ALICE)
    realm.keyring.create(BOB)
    await realm.server.restart()
    for tenant in (ALICE, BOB):
        bus = await realm.connect(tenant_file(realm.folder, tenant))
        await bus.append(subjects.log(tenant, S), b"x")
    with pytest.raises(NotAllowed):
        await realm.connect(stolen)


async def test_only_so_many_connections_as_the_operator_allows(realm: Realm) -> None:
    await realm.create(ALICE)
    realm.keyring.authority.limit_connections(ALICE, 1)
    await realm.tell(ALICE)
    first = await realm.tenant(ALICE)
    with pytest.raises(BusError):
        await realm.connect(tenant_file(realm.folder, ALICE), timeout=1.0)
    assert first.connected


# --- grants -----------------------------------------------------------------------------------------------------------


async def grant(realm: Realm, reader: Tenant, what: Grant) -> None:
    realm.keyring.authority.grant(reader, what)
    await realm.tell(reader)


async def test_what_is_granted_can_be_read_and_heard_and_nothing_else(realm: Realm) -> None:
    alice = await realm.tenant(ALICE)
    await realm.create(BOB)
    await grant(realm, BOB, Grant(ALICE, S, "shared"))
    bob, heard = await realm.tenant(BOB), Deliveries()
    shared, private = VarId("shared"), VarId("private")
    await bob.subscribe(subjects.read(ALICE, S, shared), heard)
    await bob.subscribe(subjects.read_chunks(ALICE, S, shared), heard)
    for variable in (private, shared):
        await alice.append(subjects.write_chunk(ALICE, S, variable, 0), f"chunk of {variable}".encode())
        await alice.append(subjects.write(ALICE, S, variable), f"value of {variable}".encode())
    await heard.until(2)
    assert sorted(d.data for d in heard.items) == [b"chunk of shared", b"value of shared"]
    stored = await bob.get(subjects.VALUES, subjects.write(ALICE, S, shared))
    assert stored is not None
    assert stored.data == b"value of shared"
    for forbidden in (
        bob.get(subjects.VALUES, subjects.write(ALICE, S, private)),
        bob.get(subjects.LOG, subjects.log(ALICE, S)),
    ):
        with pytest.raises(NotAllowed):
            await forbidden
    with pytest.raises(NotAllowed):
        await bob.subscribe(subjects.read_all(ALICE, S), heard)
    for subject in (subjects.write(ALICE, S, VarId("new")), subjects.read(ALICE, S, shared), subjects.log(ALICE, S)):
        with pytest.raises(NotAllowed):
            await bob.append(subject, b"forged")


async def test_a_grant_is_the_readers_alone_and_can_be_withdrawn(realm: Realm) -> None:
    alice, carol = await realm.tenant(ALICE), await realm.tenant("carol")
    await realm.create(BOB)
    subject = subjects.write(ALICE, S, VarId("shared"))
    await alice.append(subject, b"value")
    what = Grant(ALICE)
    await grant(realm, BOB, what)
    assert await (await realm.tenant(BOB)).get(subjects.VALUES, subject) is not None
    with pytest.raises(NotAllowed):
        await carol.get(subjects.VALUES, subject)
    bob = await realm.tenant(BOB)  # connected while it is granted: withdrawal does not wait for a reconnect
    realm.keyring.authority.withdraw(BOB, what)
    await realm.tell(BOB)
    with pytest.raises(BusError):
        await bob.get(subjects.VALUES, subject, timeout=0.5)


# --- our own processes ------------------------------------------------------------------------------------------------


async def test_a_new_start_makes_the_credentials_of_our_own_processes_void(realm: Realm) -> None:
    old = realm.folder / "old.creds"
    shutil.copy(role_file(realm.folder, Role.SCHEDULER), old)
    realm.keyring.authority._clock = lambda: 2**31  # much later
    realm.keyring.begin(Tenant("default"))
    await realm.server.restart()
    with pytest.raises(NotAllowed):
        await realm.connect(old)
    await realm.role(Role.SCHEDULER)


@pytest.mark.parametrize("role", Role)
async def test_no_role_but_the_schedulers_can_change_a_stream(realm: Realm, role: Role) -> None:
    bus = await realm.role(role)
    for name in ("DELETE", "PURGE", "UPDATE", "CREATE"):
        if role is Role.SCHEDULER and name != "DELETE":
            continue
        with pytest.raises(NotAllowed):
            await bus._jetstream.api(f"STREAM.{name}.{subjects.VALUES.name}", {}, timeout=5)


@pytest.mark.parametrize("role", [Role.ENGINE, Role.GATEWAY, Role.OPERATOR])
async def test_no_role_hears_what_is_not_its_business(realm: Realm, role: Role) -> None:
    bus = await realm.role(role)
    foreign = [">", "myna.>", "myna.*.*.log", subjects.FROM_WORKERS, subjects.ASK, "_INBOX_scheduler.>", "$JS.>"]
    for pattern in foreign:
        with pytest.raises(NotAllowed):
            await bus.subscribe(pattern, Deliveries())


async def test_a_server_whose_configuration_is_older_than_what_it_was_told_keeps_what_it_was_told(
    tmp_path: Path,
) -> None:
    """In a cluster the configuration is a file that nobody writes again."""
    keyring = Keyring.at(tmp_path)
    keyring.begin(ALICE)
    lay_out(keyring.authority, tmp_path / "accounts")
    old = server_lines(keyring.authority, tmp_path / "accounts")
    server = await Server.start(ServerConfig(tmp_path / "nats", trust=lambda: old))
    it = Realm(tmp_path, keyring, server)
    try:
        stolen = tmp_path / "stolen.creds"
        shutil.copy(tenant_file(tmp_path, ALICE), stolen)
        keyring.rotate(ALICE)
        await it.tell(ALICE)
        await it.create(BOB)
        await server.restart()
        for tenant in (ALICE, BOB):
            assert (await it.tenant(tenant)).connected
        with pytest.raises(NotAllowed):
            await it.connect(stolen)
    finally:
        await it.close()
