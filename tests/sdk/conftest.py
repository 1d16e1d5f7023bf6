from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from myna.sdk.client import Client, connect
from tests.actors.stage import Stage, stage
from tests.network import Network, nats, nats_server, network

__all__ = ["nats", "nats_server", "network"]


@pytest.fixture
async def cast(network: Network) -> AsyncIterator[Stage]:
    """A scheduler and a worker with the no-op engine."""
    async with stage(network.bus) as it:
        await it.scheduler()
        await it.worker()
        yield it


@pytest.fixture
async def client(network: Network, cast: Stage) -> AsyncIterator[Client]:
    """An application's connection to them."""
    async with connect(bus=await network.bus()) as it:
        yield it
