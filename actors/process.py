"""What every actor's process does around its actor: settings, logs, signals, exit status.

Exit status: 0 after a graceful stop, 1 when the actor can't go on (its supervisor starts it again), 2 where starting it again
would not help: wrong settings, a model that is refused.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from myna.actors import config, logs
from myna.actors.bus import BusError
from myna.actors.config import ConfigError, Settings
from myna.actors.health import Health
from myna.actors.machine.child import ready

Serve = Callable[[Settings, asyncio.Event], Awaitable[None]]
"""An actor's life: returns after the event (a signal to stop) is set; raises where it can't go on."""


def run(
    name: str, serve: Serve, *, expected: tuple[type[Exception], ...] = (), final: tuple[type[Exception], ...] = ()
) -> None:
    """Run an actor as this process, and exit. `expected`: errors that say all there is to say without a traceback; `final`:
    those of them after which starting again would not help."""
    try:
        settings = config.read()
    except ConfigError as error:
        sys.stderr.write(f"myna: {error}\n")
        sys.exit(2)
    logs.configure(settings.log, process=name)
    log = structlog.get_logger(__name__)
    try:
        asyncio.run(_until_stopped(settings, serve))
    except Exception as error:
        useless = isinstance(error, (ConfigError, *final))
        if not useless and not isinstance(error, (BusError, *expected)):
            raise
        log.error("can't go on", reason=str(error), kind=type(error).__name__)
        sys.exit(2 if useless else 1)


async def _until_stopped(settings: Settings, serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


_UNTOLD = Health(None, lambda: False)


async def attend(
    actor: Coroutine[Any, Any, None],
    began: asyncio.Event,
    stop: asyncio.Event,
    *,
    health: Health = _UNTOLD,
    drain: Callable[[], None] | None = None,
    grace: float = 0.0,
) -> None:
    """Run `actor` until `stop`; tell the supervisor when it has begun, and its `health` meanwhile. Then let it `drain` for
    `grace` seconds, and end it."""
    gc.freeze()  # what was loaded stays: collections look at what comes and goes, and take no 20 ms
    work = asyncio.ensure_future(actor)
    waiters = [asyncio.ensure_future(event.wait()) for event in (began, stop)]
    try:
        async with health.told():
            await asyncio.wait((work, *waiters), return_when=asyncio.FIRST_COMPLETED)
            if began.is_set():
                ready()
                await asyncio.wait((work, waiters[1]), return_when=asyncio.FIRST_COMPLETED)
            if began.is_set() and drain is not None and not work.done():
                drain()
                await asyncio.wait((work,), timeout=grace)
    finally:
        for task in (work, *waiters):
            task.cancel()
        await asyncio.wait((work, *waiters))
    if not work.cancelled():
        work.result()
