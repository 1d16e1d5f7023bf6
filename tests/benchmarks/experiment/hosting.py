"""The engine host's process: `python -m tests.benchmarks.experiment.hosting NAME [OPTION ...]`.

Without options it is the product's own. With options, which `made` takes, its engine process serves a model made on the spot.
"""

from __future__ import annotations

import asyncio
import sys

from myna.actors import config, process
from myna.actors.config import Settings
from myna.actors.engine_host.backend import EngineBackend
from myna.actors.messages import WorkerId
from myna.actors.worker.backend import BackendDied, BackendRefused
from myna.actors.worker.shell import Worker, WorkerFailed

MADE = "tests.benchmarks.experiment.made"


class MadeBackend(EngineBackend):
    """An engine process with a model of random weights, of which everything else is the product's."""

    def __init__(self, settings: Settings, options: list[str]) -> None:
        super().__init__(settings)
        self._options = options

    def _command_line(self, fd: int) -> list[str]:
        return [sys.executable, "-P", "-m", MADE, "--fd", str(fd), *self._options]


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    name, *options = sys.argv[1:]
    backend = MadeBackend(settings, options) if options else EngineBackend(settings)
    bus = await config.connect_bus(settings, name)
    worker = Worker(bus, WorkerId(name), backend)
    try:
        await process.attend(worker.run(), worker.ready, stop)
    finally:
        await bus.close()


if __name__ == "__main__":
    process.run("engine-host", _serve, expected=(WorkerFailed, BackendDied), final=(BackendRefused,))
