"""Real NATS servers whose routes to each other can be cut: each keeps its clients, and no longer hears the others."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import permutations
from pathlib import Path

from myna.actors.bus.nats import NatsBus
from myna.actors.server import Server, ServerConfig
from myna.actors.subjects import HELLO
from tests.faults.cluster import Cluster, Wire
from tests.ports import free_ports

NOBODY = "127.0.0.1:1"
"""Where servers say that they are reached, so that none finds a way around the wires."""


class Routes(Cluster):
    """Three servers; `wires[a, b]` carries the route that `a` opened to `b`."""

    def __init__(self, servers: list[Server], wires: dict[tuple[int, int], Wire]) -> None:
        super().__init__(servers)
        self.wires = wires

    def cut_off(self, server: int) -> None:
        """Nothing passes any more between this server and the others; nobody is told."""
        for pair, wire in self.wires.items():
            if server in pair:
                wire.freeze()

    def part(self, *servers: int) -> None:
        """Nothing passes any more between these two; both reach the third."""
        for pair in permutations(servers, 2):
            self.wires[pair].freeze()

    def see_each_other(self, bus: NatsBus, other: NatsBus) -> bool:
        """Whether two clients are at one server, or at two between which messages pass."""
        one, two = self.server_of(bus), self.server_of(other)
        return one is not None and two is not None and (one == two or self.wires[one, two].carries)

    def mend(self) -> None:
        """All is well again."""
        for wire in self.wires.values():
            wire.mend()

    async def connect(self, server: int | None = None) -> NatsBus:
        """A client that may use every server, as actors are; it begins at `server`."""
        while True:
            bus = await NatsBus.connect(
                self.url.split(","), user=self.user, password=self.password, replicas=3, pulse=HELLO, timeout=30
            )
            if server is None or self.server_of(bus) == server:
                return bus
            await bus.close()

    def server_of(self, bus: NatsBus) -> int | None:
        """Where a client is now, None while it is nowhere."""
        url = bus._link.connected_url
        return None if url is None else next(n for n, server in enumerate(self.servers) if server.port == url.port)

    async def leader_of(self, bus: NatsBus, stream: str) -> int:
        """The server that leads a stream."""
        info = await bus._jetstream.api(f"STREAM.INFO.{stream}", {}, timeout=20.0)
        return next(n for n, server in enumerate(self.servers) if server.config.name == info["cluster"]["leader"])


@asynccontextmanager
async def routes(folder: Path) -> AsyncIterator[Routes]:
    """Three servers for the time of a block."""
    ports = free_ports(3)
    wires = {pair: await Wire.before(f"nats://127.0.0.1:{ports[pair[1]]}") for pair in permutations(range(3), 2)}
    password = secrets.token_urlsafe(16)
    configs = []
    for n, port in enumerate(ports):
        others = ", ".join(json.dumps(wire.url) for (here, _), wire in wires.items() if here == n)
        where = f'listen: "127.0.0.1:{port}", advertise: "{NOBODY}", no_advertise: true'
        block = f"cluster {{ name: myna, {where}, routes: [{others}] }}"
        configs.append(ServerConfig(folder / f"nats-{n}", name=f"n{n}", password=password, extra=block))
    made = Routes(list(await asyncio.gather(*(Server.start(config) for config in configs))), wires)
    try:
        yield made
    finally:
        await made.stop()
        for wire in wires.values():
            await wire.close()
