"""A real server that trusts an authority, and connections to it: as tenants, as roles, and as a witness who sees everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from myna.actors import subjects
from myna.actors.bus import ErrorHandler
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import Tenant, TenantPolicy
from myna.actors.server import Server, ServerConfig
from myna.actors.tenants import accounts, admin, credentials, keys
from myna.actors.tenants.accounts import ADMIN
from myna.actors.tenants.credentials import identity
from myna.actors.tenants.keyring import Keyring, role_file, tenant_file
from myna.actors.tenants.keys import Key, KeyKind
from myna.actors.tenants.rights import Role
from myna.actors.tenants.trust import local_lines


class Realm:
    """See the module."""

    def __init__(self, folder: Path, keyring: Keyring, server: Server) -> None:
        self.folder = folder
        self.keyring = keyring
        self.server = server
        self._buses: list[NatsBus] = []

    async def connect(self, file: Path, on_error: ErrorHandler | None = None, *, timeout: float = 10.0) -> NatsBus:
        """A connection with a credentials file."""
        bus = await NatsBus.connect(
            self.server.url,
            credentials=file,
            inbox_prefix=identity(file).inbox_prefix,
            on_error=on_error,
            timeout=timeout,
        )
        self._buses.append(bus)
        return bus

    async def tenant(self, name: str, on_error: ErrorHandler | None = None) -> NatsBus:
        """A connection of a tenant's, who is made, on the running server, if there is none of that name."""
        if Tenant(name) not in self.keyring.authority.tenants:
            await self.create(name)
        return await self.connect(tenant_file(self.folder, Tenant(name)), on_error)

    async def role(self, role: Role | str) -> NatsBus:
        """A connection of one of Myna's own processes."""
        return await self.connect(role_file(self.folder, role))

    async def witness(self) -> NatsBus:
        """A connection that may do everything in the streams' account: there is no such user outside of tests."""
        user, file = Key.new(KeyKind.USER), self.folder / "witness.creds"
        may = {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}}
        claims = accounts._user(user.public, "role:witness", self.keyring.authority._now(), may)
        token = keys.sign(claims, Key.of(self.keyring.authority._book.streams))
        credentials.write_private(file, credentials.text(token, user))
        return await self.connect(file)

    async def create(self, name: str, policy: TenantPolicy | None = None) -> None:
        """A new tenant, told to the running server."""
        self.keyring.create(Tenant(name), policy)
        await self.tell(name)

    async def tell(self, name: str) -> None:
        """Tell the running server of a tenant that has changed."""
        bus = await self.role(ADMIN)
        await admin.tell_servers(bus, self.keyring.authority.tenant_claims(Tenant(name)))

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()
        await self.server.stop()


@asynccontextmanager
async def realm_in(folder: Path) -> AsyncIterator[Realm]:
    """A realm with the streams, and no tenant but "default"."""
    keyring = Keyring.at(folder)
    keyring.begin(Tenant("default"))
    trust = partial(local_lines, keyring.authority, folder / "accounts")
    it = Realm(folder, keyring, await Server.start(ServerConfig(folder / "nats", trust=trust)))
    try:
        await (await it.role(Role.SCHEDULER)).ensure(subjects.STREAMS)
        yield it
    finally:
        await it.close()


@pytest.fixture
async def realm(tmp_path: Path) -> AsyncIterator[Realm]:
    """A realm of this test's own."""
    async with realm_in(tmp_path / "realm") as it:
        yield it
