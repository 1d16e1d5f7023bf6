"""`python -m tests.benchmarks.telemetry_actors {scheduler,engine}`: an actor whose instruments are switched on and off meanwhile.

It is the real one, with its settings' instruments, on a real network; only, it listens on `SWITCH` beside. So both halves of a
comparison run in the same process, and the luck of a process is in neither.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

from myna.actors import config, process
from myna.actors.bus import Bus, Delivery
from myna.actors.config import Settings
from myna.actors.messages import WorkerId
from myna.actors.scheduler.shell import Scheduler
from myna.actors.telemetry.instruments import instruments
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.actors.worker.shell import Worker

SWITCH = "bench-watch"
"""`bench-watch.<actor>` with "on" or "off"; it is answered when that is so."""
CAPACITY = 64


async def _listen(bus: Bus, kind: str, switch: Callable[[bool], None]) -> None:
    async def on_switch(delivery: Delivery) -> None:
        switch(delivery.data == b"on")
        assert delivery.reply is not None
        await bus.publish(delivery.reply, b"")

    await bus.subscribe(f"{SWITCH}.{kind}", on_switch)


async def _scheduler(settings: Settings, stop: asyncio.Event) -> None:
    with instruments(settings, "scheduler") as watching:
        bus = await config.connect_bus(settings, "scheduler")
        traces = watching.traces()
        actor = Scheduler(bus, "scheduler", watches=watching.scheduler(), traces=traces)
        watches = actor._watches

        def switch(on: bool) -> None:
            actor._watches, actor._traces = (watches, traces) if on else ((), None)
            if on and traces is not None:
                traces._filled = time.monotonic()  # what may be recorded grows with the time for which it may be

        await _listen(bus, "scheduler", switch)
        await process.attend(actor.run(), actor.leading, stop)


async def _engine(settings: Settings, stop: asyncio.Event) -> None:
    with instruments(settings, "engine") as watching:
        bus = await config.connect_bus(settings, "engine")
        watches = watching.worker()
        actor = Worker(bus, WorkerId("engine"), NoopBackend(NoopModel(capacity=CAPACITY)), watches)

        def switch(on: bool) -> None:
            actor._watches = watches if on else ()

        await _listen(bus, "engine", switch)
        await process.attend(actor.run(), actor.ready, stop)


if __name__ == "__main__":
    process.run(sys.argv[1], {"scheduler": _scheduler, "engine": _engine}[sys.argv[1]])
