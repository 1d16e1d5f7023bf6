"""The scheduler's process: `python -m myna.actors.scheduler [NAME]`."""

from __future__ import annotations

import asyncio
import sys

from myna.actors import config, process
from myna.actors.config import Settings
from myna.actors.health import Health
from myna.actors.scheduler.shell import Scheduler, SchedulerFailed
from myna.actors.telemetry.instruments import instruments


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "scheduler"
    with instruments(settings, "scheduler") as watching:
        bus = await config.connect_bus(settings, name)
        scheduler = Scheduler(bus, name, watches=watching.scheduler(), traces=watching.traces())
        try:
            # One that stands by is well, too.
            health = Health(settings.health, lambda: bus.connected)
            await process.attend(scheduler.run(), scheduler.leading, stop, health=health)
        finally:
            await bus.close()


process.run("scheduler", _serve, expected=(SchedulerFailed,))
