"""The machine of an application that has none: started once a process, in a thread with its own event loop, gone at exit.

The thread keeps the machine apart from the application's event loops: these may come and go, and a busy one slows no supervisor.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from concurrent.futures import Future

from myna.actors.config import Settings
from myna.sdk.errors import NotReady
from myna.sdk.threads import LoopThread

STOP_TIMEOUT = 20.0
"""Seconds that stopping takes at most; the processes die with this one in any case."""


class _Embedded:
    """A machine that runs in a thread until `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._thread = LoopThread("myna-machine")
        self._stopping = self._thread.call(_new_event())
        self.settings: Future[Settings] = Future()
        self._running = self._thread.submit(self._run(settings))
        atexit.register(self.stop)

    async def _run(self, settings: Settings) -> None:
        from myna.actors.machine import embedded

        try:
            async with embedded(settings) as reachable:
                self.settings.set_result(reachable)
                await self._stopping.wait()
        except Exception as error:
            if self.settings.done():
                raise
            self.settings.set_exception(
                NotReady(f"no address is configured, and a machine could not be started: {error}")
            )

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._running.done()

    def stop(self) -> None:
        """Stop the machine, and its thread."""
        if not self._running.done():
            self._thread.loop.call_soon_threadsafe(self._stopping.set)
            with contextlib.suppress(Exception):  # this process ends, and the machine's processes with it
                self._running.result(STOP_TIMEOUT)
        self._thread.stop()


async def _new_event() -> asyncio.Event:
    return asyncio.Event()


_LOCK = threading.Lock()
_machine: _Embedded | None = None


async def embedded_settings(settings: Settings) -> Settings:
    """`settings` with the address of this process's machine, which is started if there is none. Raises `NotReady`."""
    global _machine
    with _LOCK:
        if _machine is None or _machine.ended:
            _machine = _Embedded(settings)
        machine = _machine
    return await asyncio.wrap_future(machine.settings)
