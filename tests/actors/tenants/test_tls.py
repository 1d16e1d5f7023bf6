"""Connections are encrypted where that is configured, and never silently in the clear."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trustme

import myna
from myna.actors import config
from myna.actors.bus import Unavailable
from myna.actors.config import Address, ConfigError, Settings, Tls
from myna.actors.machine import Plan, embedded
from myna.actors.messages import Tenant
from myna.actors.server import Server, ServerConfig, ServerTls
from myna.actors.tenants.keyring import Keyring, tenant_file
from myna.actors.tenants.trust import local_lines
from tests.network import Deliveries

pytestmark = pytest.mark.nats

DEFAULT = Tenant("default")


@dataclass(frozen=True)
class Pki:
    """Files of an authority for certificates: of itself, of a server on loopback, and of a client."""

    ca: Path
    certificate: Path
    key: Path
    client: Path


def pki(folder: Path) -> Pki:
    folder.mkdir()
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("client@example.org")
    files = Pki(*(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem")))
    authority.cert_pem.write_to_path(str(files.ca))
    server.cert_chain_pems[0].write_to_path(str(files.certificate))
    server.private_key_pem.write_to_path(str(files.key))
    client.private_key_and_cert_chain_pem.write_to_path(str(files.client))
    return files


@pytest.fixture
def files(tmp_path: Path) -> Pki:
    return pki(tmp_path / "pki")


async def serve(folder: Path, files: Pki | None, *, mutual: bool = False) -> tuple[Server, Settings]:
    """A server, and a tenant's settings for it, without TLS."""
    keyring = Keyring.at(folder)
    keyring.begin(DEFAULT)
    tls = None if files is None else ServerTls(files.certificate, files.key, files.ca if mutual else None)
    trust = partial(local_lines, keyring.authority, folder / "accounts")
    server = await Server.start(ServerConfig(folder / "nats", trust=trust, tls=tls))
    settings = config.read({"MYNA_HOME": str(folder)})
    return server, config.with_address(settings, Address(server.url, credentials=tenant_file(folder, DEFAULT)))


def with_tls(settings: Settings, tls: Tls | None, url: str | None = None) -> Settings:
    assert settings.address is not None
    return replace(settings, address=replace(settings.address, tls=tls, url=url or settings.address.url))


async def echo(settings: Settings, patience: float = 10.0) -> None:
    """A message goes there and back."""
    bus, heard = await config.connect_bus(settings, "test", patience=patience), Deliveries()
    try:
        await bus.subscribe("_INBOX_default.echo", heard)
        assert bus._link._wire.is_encrypted is (settings.address.tls is not None)  # type: ignore[attr-defined, union-attr]
    finally:
        await bus.close()


async def test_a_client_that_knows_the_authority_speaks_encrypted(tmp_path: Path, files: Pki) -> None:
    server, settings = await serve(tmp_path / "realm", files)
    try:
        assert server.url.startswith("tls://")
        await echo(with_tls(settings, Tls(files.ca)))
    finally:
        await server.stop()


async def test_a_server_of_another_authority_is_refused(tmp_path: Path, files: Pki) -> None:
    server, settings = await serve(tmp_path / "realm", files)
    try:
        for tls in (Tls(pki(tmp_path / "other").ca), None):  # None: what this machine's system trusts
            with pytest.raises(Unavailable):
                await echo(with_tls(settings, tls), patience=1.5)
    finally:
        await server.stop()


async def test_where_tls_is_asked_for_nothing_is_said_to_a_server_without(tmp_path: Path, files: Pki) -> None:
    server, settings = await serve(tmp_path / "realm", None)
    said: list[bytes] = []

    async def spy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Between the two; it keeps what the client says."""
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", server.port)

        async def down() -> None:
            while data := await upstream_reader.read(65536):
                writer.write(data)

        task = asyncio.create_task(down())
        while data := await reader.read(65536):
            said.append(data)
            upstream.write(data)
        task.cancel()
        upstream.close()
        writer.close()

    proxy = await asyncio.start_server(spy, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    try:
        for scheme in ("tls", "nats"):
            with pytest.raises(Unavailable, match="does not encrypt"):
                await echo(with_tls(settings, Tls(files.ca), f"{scheme}://127.0.0.1:{port}"), patience=1.5)
        with pytest.raises(Unavailable, match="does not encrypt"):
            await echo(with_tls(settings, None, f"tls://127.0.0.1:{port}"), patience=1.5)
        assert b"".join(said) == b""
    finally:
        proxy.close()
        await server.stop()


async def test_a_server_may_ask_for_the_clients_certificate_too(tmp_path: Path, files: Pki) -> None:
    server, settings = await serve(tmp_path / "realm", files, mutual=True)
    try:
        await echo(with_tls(settings, Tls(files.ca, files.client, files.client)))
        with pytest.raises(Unavailable):
            await echo(with_tls(settings, Tls(files.ca)), patience=1.5)
    finally:
        await server.stop()


@myna.function
def words(text: myna.Input, out: myna.Output(max_tokens=2)):  # type: ignore[valid-type]
    """{{text}}: {{out}}"""


@pytest.mark.cluster
async def test_a_whole_machine_speaks_encrypted_by_configuration(tmp_path: Path, files: Pki) -> None:
    settings = config.read(
        {
            "MYNA_HOME": str(tmp_path / "home"),
            "MYNA_TLS_CA": str(files.ca),
            "MYNA_TLS_SERVER_CERTIFICATE": str(files.certificate),
            "MYNA_TLS_SERVER_KEY": str(files.key),
        }
    )
    async with embedded(settings, Plan(noop=True)) as reachable:
        address = reachable.address
        assert address is not None
        assert address.url.startswith("tls://")
        environment = {**os.environ, **config.to_environment(reachable)}
        program = (
            "import asyncio, tests.actors.tenants.test_tls as t, myna\n"
            "async def main():\n"
            "    async with myna.session() as s: print(await t.words(text='x'))\n"
            "asyncio.run(main())"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program), env=environment, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert said.decode() == "out0 out1\n"


def test_files_that_belong_together_are_asked_for(tmp_path: Path, files: Pki) -> None:
    home = {"MYNA_HOME": str(tmp_path), "MYNA_URL": "tls://h:1"}
    ca, some = {"MYNA_TLS_CA": str(files.ca)}, str(files.client)
    for wrong in (
        {**ca, "MYNA_TLS_KEY": some},
        {"MYNA_TLS_KEY": some, "MYNA_TLS_CERTIFICATE": some},
        {**ca, "MYNA_TLS_SERVER_KEY": some},
        {"MYNA_TLS_SERVER_KEY": some, "MYNA_TLS_SERVER_CERTIFICATE": some},
    ):
        with pytest.raises(ConfigError, match="MYNA_TLS"):
            config.read({**home, **wrong})
    with pytest.raises(ConfigError, match="can't be used"):
        config.tls_context(Tls(files.key))
    assert config.tls_context(Tls(files.ca)).verify_mode is ssl.CERT_REQUIRED
