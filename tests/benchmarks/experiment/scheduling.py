"""A scheduler's process with chosen policies: `python -m tests.benchmarks.experiment.scheduling SWITCHES`.

SWITCHES are the policies that are on, joined by commas; `all` for those of production.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from myna.actors import config, process
from myna.actors.config import Settings
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.shell import Scheduler, SchedulerFailed

ALL = "all"


def policies_of(switches: str) -> Policies:
    """The policies that are on."""
    if switches == ALL:
        return Policies()
    return replace(Policies.none(), **dict.fromkeys(filter(None, switches.split(",")), True))  # type: ignore[arg-type]


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    bus = await config.connect_bus(settings, "scheduler")
    scheduler = Scheduler(bus, "scheduler", policies_of(sys.argv[1]))
    try:
        await process.attend(scheduler.run(), scheduler.leading, stop)
    finally:
        await bus.close()


if __name__ == "__main__":
    process.run("scheduler", _serve, expected=(SchedulerFailed,))
