"""A scheduler's process with chosen policies: `python -m tests.benchmarks.experiment.scheduling SWITCHES`.

SWITCHES are the policies that are on, joined by commas; `all` for those of production.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import fields, replace

from myna.actors import config, process
from myna.actors.config import Settings
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.shell import Scheduler, SchedulerFailed

ALL = "all"


def all_but(switch: str) -> str:
    """The switches of production without one. Raises ValueError if there is none of that name."""
    every = [f.name for f in fields(Policies) if isinstance(f.default, bool)]
    if switch not in every:
        raise ValueError(f"no policy is called {switch!r}; there are {', '.join(every)}")
    return ",".join(name for name in every if name != switch)


def without(switches: str) -> list[str]:
    """The policies of production that are off."""
    on = policies_of(switches)
    return [f.name for f in fields(Policies) if isinstance(f.default, bool) and f.default and not getattr(on, f.name)]


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
