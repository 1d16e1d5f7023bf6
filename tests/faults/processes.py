"""Real processes that are started again when they end, as supervisors do, and that can be killed, stopped and cut off."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from myna.actors import config
from myna.actors.machine.process import ModuleProgram, Running
from tests.faults.cluster import Cluster, Wire

ROOT = Path(__file__).parents[2]
AGAIN = 0.3
"""Seconds between the end of a process and its next start."""


@dataclass(frozen=True)
class Part:
    """What one process runs."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()


class Actor:
    """One process, with wires of its own to all servers."""

    def __init__(self, part: Part, wires: Sequence[Wire], settings: config.Settings, log: Path) -> None:
        self.part = part
        self.wires = wires
        self.lives = 0
        environment = config.child_environment(settings) | {"PYTHONPATH": str(ROOT)}  # where `tests` is found
        program = ModuleProgram(part.module, *part.arguments, environment=lambda: environment, log=log)
        self._program = program
        self._process: Running | None = None
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {part.name}")
        self.ready = asyncio.Event()

    @classmethod
    async def start(cls, part: Part, cluster: Cluster, settings: config.Settings, folder: Path) -> Actor:
        """Start it before `cluster`."""
        wires = [await Wire.before(server.url) for server in cluster.servers]
        url = ",".join(wire.url for wire in wires)
        address = config.Address(url, cluster.user, cluster.password, replicas=len(cluster.servers))
        mine = config.with_address(replace(settings, home=folder), address)
        return cls(part, wires, mine, folder / f"{part.name}.log")

    async def _keep(self) -> None:
        while True:
            self._process = await self._program.launch()
            self.lives += 1
            ready = asyncio.create_task(self._process.ready())
            ready.add_done_callback(lambda task: None if task.cancelled() else self.ready.set())
            try:
                await self._process.wait()
            finally:
                ready.cancel()
            await asyncio.sleep(AGAIN)

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self._process is not None:
            self._process.signal(number)

    async def close(self) -> None:
        """End it for good."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            await self._process.wait()
        for wire in self.wires:
            await wire.close()
