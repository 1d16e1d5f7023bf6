from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from myna.actors.config import GatewaySettings
from myna.actors.gateway.server import Gateway
from tests.actors.stage import Stage, stage
from tests.network import NatsNetwork, nats, nats_server

__all__ = ["nats", "nats_server"]


@dataclass
class House:
    """A scheduler, a no-op engine, a gateway, and clients of it."""

    cast: Stage
    network: NatsNetwork
    running: dict[Gateway, asyncio.Task[None]] = field(default_factory=dict)

    async def open(self, settings: GatewaySettings | None = None) -> Gateway:
        """Another gateway, with a connection of its own."""
        bus = await self.network.bus()
        gateway = Gateway(bus, settings or GatewaySettings(), "default")
        task = self.running[gateway] = asyncio.ensure_future(gateway.run())
        waiter = asyncio.ensure_future(gateway.ready.wait())
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED, timeout=20)
        if task.done():
            task.result()
        return gateway

    async def shut(self, gateway: Gateway) -> None:
        gateway.stop()
        await asyncio.wait_for(self.running.pop(gateway), 30)

    async def close(self) -> None:
        for gateway in list(self.running):
            await self.shut(gateway)


@asynccontextmanager
async def furnished(network: NatsNetwork, *, worker: bool = True) -> AsyncIterator[House]:
    async with stage(network.bus) as cast:
        await cast.scheduler()
        if worker:
            await cast.worker()
        house = House(cast, network)
        try:
            yield house
        finally:
            await house.close()


@pytest.fixture
async def house(nats: NatsNetwork) -> AsyncIterator[House]:
    """Real NATS, a scheduler and a no-op engine."""
    async with furnished(nats) as it:
        yield it


@pytest.fixture
async def gateway(house: House) -> Gateway:
    return await house.open()


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as client:
        yield client
