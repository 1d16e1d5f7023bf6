"""Networks for tests: a real nats-server on a free port, or a memory broker.

A server starts in about 30 ms, so each test has its own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from myna.actors.bus import Bus, BusError, Delivery, Stored
from myna.actors.bus.mailbox import Limits
from myna.actors.bus.memory import MemoryBroker, MemoryBus
from myna.actors.bus.nats import NatsBus
from myna.actors.server import Server, ServerConfig

T = TypeVar("T")


class Collected(Generic[T]):
    """A handler that keeps what it gets, and can be awaited."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.errors: list[BusError] = []
        self.caught_up_at: list[int] = []
        self._changed = asyncio.Event()

    async def __call__(self, item: T) -> None:
        self.items.append(item)
        self._changed.set()

    def error(self, error: BusError) -> None:
        self.errors.append(error)
        self._changed.set()

    async def caught_up(self) -> None:
        self.caught_up_at.append(len(self.items))
        self._changed.set()

    async def until(self, items: int = 0, *, errors: int = 0, caught_up: int = 0, timeout: float = 20.0) -> None:
        """Await at least so many items, errors and calls of `caught_up`."""
        async with asyncio.timeout(timeout):
            while not (len(self.items) >= items and len(self.errors) >= errors and len(self.caught_up_at) >= caught_up):
                self._changed.clear()
                await self._changed.wait()


Deliveries = Collected[Delivery]
StoredMessages = Collected[Stored]


class Network(ABC):
    """Something that buses connect to."""

    @abstractmethod
    async def bus(self, *, limits: Limits | None = None) -> Bus:
        """Another bus, closed when the test ends."""

    @abstractmethod
    async def settle(self, bus: Bus) -> None:
        """Return when all that was sent before has been put into the mailboxes of `bus`."""

    @abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Let time pass for what expires."""


class MemoryNetwork(Network):
    def __init__(self) -> None:
        self.now = 1_000_000.0
        self._broker = MemoryBroker(clock=lambda: self.now)
        self.buses: list[Bus] = []

    async def bus(self, *, limits: Limits | None = None) -> Bus:
        bus = MemoryBus(self._broker, limits=limits)
        self.buses.append(bus)
        return bus

    async def settle(self, bus: Bus) -> None:
        await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds


class NatsNetwork(Network):
    def __init__(self, server: Server) -> None:
        self.server = server
        self.buses: list[Bus] = []

    async def bus(self, *, limits: Limits | None = None, **options: Any) -> NatsBus:
        options.setdefault("user", self.server.config.user)
        options.setdefault("password", self.server.config.password)
        bus = await NatsBus.connect(self.server.url, limits=limits, **options)
        self.buses.append(bus)
        return bus

    async def settle(self, bus: Bus) -> None:
        seen = Collected[Delivery]()
        subscription = await bus.subscribe("settle", seen)
        await bus.publish("settle", b"")
        await seen.until(1)
        await subscription.close()

    async def pass_time(self, seconds: float) -> None:
        """The server's clock can't be set: this is the one place where tests wait."""
        await asyncio.sleep(seconds)


async def started(server: Server) -> AsyncIterator[NatsNetwork]:
    network = NatsNetwork(server)
    try:
        yield network
    finally:
        for bus in network.buses:
            await bus.close()
        await server.stop()


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsNetwork]:
    """A real server of this test's own, and the buses connected to it."""
    async for network in started(await Server.start(ServerConfig(tmp_path / "nats"))):
        yield network


@pytest.fixture
async def nats_server(nats: NatsNetwork) -> Server:
    """A real server of this test's own."""
    return nats.server


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Network]:
    """Each kind of network in turn."""
    if request.param == "memory":
        memory = MemoryNetwork()
        yield memory
        for bus in memory.buses:
            await bus.close()
        return
    async for real in started(await Server.start(ServerConfig(tmp_path / "nats"))):
        yield real


@pytest.fixture
async def bus(network: Network) -> Bus:
    """One bus of a network."""
    return await network.bus()
