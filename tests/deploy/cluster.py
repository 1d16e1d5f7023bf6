"""A cluster of deploy/compose.yaml for tests: built, started, broken, mended, and removed with all that it kept."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import openai

from myna.sdk.client import Client
from tests.deploy.base import MADE, base_image, prometheus_image
from tests.deploy.docker import DEPLOY, Compose, docker
from tests.ports import free_ports

NATS = ("nats-1", "nats-2", "nats-3")
SCHEDULERS = ("scheduler-1", "scheduler-2")
GATEWAYS = ("gateway-1", "gateway-2")
LIGHT = (*NATS, *SCHEDULERS, *GATEWAYS, "agents", "noop")
"""All services whose image has no torch, with the engines that write what is known beforehand."""
PROJECT = "myna-test"
PORTS = ("MYNA_NATS_1", "MYNA_NATS_2", "MYNA_NATS_3", "MYNA_GATEWAY_1", "MYNA_GATEWAY_2", "PROMETHEUS_PORT")


@dataclass(frozen=True)
class DeployedCluster:
    """A running one."""

    compose: Compose
    services: Sequence[str]
    folder: Path

    async def healthy(self, within: float = 600.0) -> None:
        """Wait until all is well."""
        await self.compose.healthy(self.services, within=within)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of this machine's, on all three servers."""
        credentials = self.folder / "default.creds"
        credentials.write_text(await self.compose.operator("cat", "/var/lib/myna/keys/tenants/default.creds"))
        folder = self.compose.settings.get("MYNA_TLS_FOLDER")
        kind = "nats" if folder is None else "tls"
        here = self.compose.settings.get("MYNA_LISTEN", "127.0.0.1")
        url = ",".join(f"{kind}://{here}:{self.compose.settings[port]}" for port in PORTS[:3])
        settings = {"MYNA_URL": url, "MYNA_CREDENTIALS": str(credentials)}
        if folder is not None:
            settings["MYNA_TLS_CA"] = f"{folder}/ca.pem"
        with patch.dict(os.environ, settings):
            client = await Client().open()
        async with client:
            yield client

    @contextlib.asynccontextmanager
    async def gateways(self) -> AsyncIterator[list[openai.AsyncOpenAI]]:
        """A client of each gateway."""
        key = (await self.compose.operator("cat", "/var/lib/myna/keys/api/default.key")).strip()
        urls = [f"http://127.0.0.1:{self.compose.settings[port]}/v1" for port in PORTS[3:5]]
        async with contextlib.AsyncExitStack() as clients:
            yield [
                await clients.enter_async_context(openai.AsyncOpenAI(base_url=url, api_key=key, timeout=120.0))
                for url in urls
            ]

    async def status(self) -> dict[str, Any]:
        """What the leading scheduler sees."""
        said = await self.compose.operator("myna", "status", "--json", "--timeout", "60")
        seen: dict[str, Any] = json.loads(said)
        return seen

    async def leader(self) -> str:
        """The service whose scheduler leads."""
        return str((await self.status())["scheduler"])


async def settings() -> dict[str, str]:
    """What a cluster of a test is set to: images on a base that can be had, ports that nobody has."""
    base = await base_image()
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    own = {"BASE": base, "MYNA_VERSION": "test", "PROMETHEUS_IMAGE": await prometheus_image()}
    # A base that we made brings the wheel of torch that there is.
    return own | ports | ({"CPU_TORCH_INDEX": ""} if base == MADE else {})


@contextlib.asynccontextmanager
async def deployed(
    command: tuple[str, ...],
    services: Sequence[str],
    folder: Path,
    *,
    build: bool = True,
    files: Sequence[str] = (),
    own: Mapping[str, str] | None = None,
) -> AsyncIterator[DeployedCluster]:
    """`services`, started by compose command `command`, well, and gone without a trace in the end. `files` of deploy/ are taken
    too, and the settings in `own`."""
    chosen = [DEPLOY / "compose.yaml", *(DEPLOY / file for file in files), Path(__file__).with_name("noop.yaml")]
    compose = Compose(command, PROJECT, chosen, {**await settings(), **(own or {})})
    if build:
        await compose("build", "init", *(["engine"] if "engine" in services else []), seconds=1500.0)
    try:
        await compose("up", "-d", "--no-build", *services)
        cluster = DeployedCluster(compose, services, folder)
        await cluster.healthy()
        yield cluster
    finally:
        await compose("down", "--volumes", "--timeout", "2")


async def kill(container: str) -> None:
    """End a container as a crash would; it stays down until it is started."""
    await docker("kill", container)


async def revive(container: str) -> None:
    """Start it again."""
    await docker("start", container)


@contextlib.asynccontextmanager
async def cut_off(container: str, network: str, *aliases: str) -> AsyncIterator[None]:
    """Without `network` inside the block: its connections stay open, and nothing comes through."""
    await docker("network", "disconnect", network, container)
    try:
        yield
    finally:
        named = [part for alias in aliases for part in ("--alias", alias)]
        await docker("network", "connect", *named, network, container)
