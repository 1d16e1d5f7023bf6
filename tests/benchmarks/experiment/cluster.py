"""A cluster for experiments: NATS, scheduler, engines and gateway, each a process of its own, as `myna up` runs them.

The scheduler is exchanged between arms, since its policies are what arms differ in; engines stay, for to make one takes long.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from myna import Client, connect
from myna.actors import codec, config, subjects
from myna.actors.config import Address, Settings
from myna.actors.engine_host.pulse import processor_seconds
from myna.actors.machine.process import ModuleProgram, Running
from myna.actors.machine.programs import GATEWAY
from myna.actors.messages import Status, StatusRequest
from myna.actors.server import Server, ServerConfig
from tests.benchmarks.reporting import ROOT

PASSWORD = "experiment"
START = 300.0
"""Seconds in which a process must be ready: a model is made or converted meanwhile."""


class Cluster:
    """See the module. Made by `cluster`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self._folder = folder
        self._processes: dict[str, Running] = {}
        self._policies: str | None = None
        self._engines: set[str] = set()

    async def engines(self, names: Sequence[str], *options: str) -> None:
        """Start engines beside those that run; `options` as for `hosting`."""
        for name in names:
            await self._start(name, "tests.benchmarks.experiment.hosting", name, *options)
            self._engines.add(name)
        if self._policies is not None:
            await self._acquainted()

    async def policies(self, switches: str) -> bool:
        """Have a scheduler with these policies lead; see `scheduling`. Whether it has just begun."""
        if switches == self._policies:
            return False
        await self.stop("scheduler")
        await self._start("scheduler", "tests.benchmarks.experiment.scheduling", switches)
        self._policies = switches
        await self._acquainted()
        return True

    async def _acquainted(self) -> None:
        """Wait until the scheduler, which has just begun, knows the engines that run."""
        bus = await config.connect_bus(self.settings, "experiment-status")
        try:
            async with asyncio.timeout(START):
                while True:
                    answer = await bus.request(subjects.STATUS, codec.encode(StatusRequest()), timeout=START)
                    known = {worker.worker for worker in codec.decode(answer.data, Status).workers}
                    if known >= self._engines:
                        return
                    await asyncio.sleep(0.02)
        finally:
            await bus.close()

    async def gateway(self, port: int) -> None:
        """Start a gateway."""
        await self._start("gateway", GATEWAY, "--port", str(port))

    async def stop(self, name: str) -> None:
        """End a process, if it runs, and await its end."""
        self._engines.discard(name)
        running = self._processes.pop(name, None)
        if running is not None:
            running.signal(signal.SIGTERM)
            await running.wait()

    def processor_seconds(self, name: str) -> float:
        """Processor time that a process and those that it started have used so far."""
        return processor_seconds(self._processes[name].pid) or 0.0

    async def close(self) -> None:
        """End all processes."""
        for name in reversed(list(self._processes)):
            await self.stop(name)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection of an application."""
        bus = await config.connect_bus(self.settings, "experiment")
        async with connect(bus=bus, tenant=self.settings.tenant) as client:
            yield client
        await bus.close()

    async def _start(self, name: str, module: str, *arguments: str) -> None:
        environment = config.child_environment(self.settings) | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "MYNA_LOG_FORMAT": "json",
        }
        program = ModuleProgram(module, *arguments, environment=lambda: environment, log=self._folder / f"{name}.log")
        running = await program.launch()
        ready, ended = asyncio.ensure_future(running.ready()), asyncio.ensure_future(running.wait())
        await asyncio.wait((ready, ended), timeout=START, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise RuntimeError(f"{name} did not start:\n" + "\n".join(running.last_lines()))
        ended.cancel()
        self._processes[name] = running


@asynccontextmanager
async def cluster(folder: Path, environment: dict[str, str] | None = None) -> AsyncIterator[Cluster]:
    """A NATS server, and nothing yet that connects to it. `environment`: settings of the other processes."""
    server = await Server.start(ServerConfig(store=folder / "nats", user="myna", password=PASSWORD))
    settings = config.read({"MYNA_HOME": str(folder), **(environment or {})})
    made = Cluster(folder, config.with_address(settings, Address(server.url, "myna", PASSWORD)))
    try:
        yield made
    finally:
        await made.close()
        await server.stop()
