"""How a client finds out that its server is cut off from the others: it no longer hears who leads.

Such a server keeps its clients and answers their pings, but it carries nothing from the rest of the cluster, stores nothing, and
answers direct gets from what it had. A client that stores something finds out by itself (`jetstream._doubt`); one that only
listens or reads would wait until the cut is mended. So the leading scheduler lets everybody hear it each time that it has renewed
its lease, which only the greater part of the cluster grants; whoever misses that for a while goes to another server.

Where nobody leads, going elsewhere does not help: each time, the patience is twice as long.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from myna.actors.bus import NotAllowed
from myna.actors.bus.link import Link

PATIENCE = 12.0
"""Seconds without a pulse after which a server is left: more than another scheduler takes to lead when one has died."""
SPREAD = 0.25
"""Of it, what is added by chance, so that not all leave at once."""
LONGEST = 120.0
"""Seconds beyond which patience does not grow."""
_TIMEOUT = 5.0

_log = structlog.get_logger(__name__)


class Pulse:
    """Listens on `subject`, and leaves a server through which nothing comes. `begin` once."""

    def __init__(self, link: Link, subject: str) -> None:
        self._link = link
        self._subject = subject
        self._loop = asyncio.get_running_loop()
        self._patience = PATIENCE
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Listen. Raises `Unavailable`."""
        try:
            await self._link.listen(self._subject, self._came, timeout=_TIMEOUT)
        except NotAllowed:  # credentials of an earlier release
            _log.info("bus.no_pulse", subject=self._subject)
            return
        self._wait()

    def connected(self) -> None:
        """The connection is another one: it has all the time again."""
        self._since = self._loop.time()

    def end(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._leaving is not None:
            self._leaving.cancel()

    def _came(self, subject: str, reply: str, head: bytes, data: bytes) -> None:
        self._since = self._loop.time()
        self._patience = PATIENCE

    def _wait(self) -> None:
        self._timer = self._loop.call_at(self._since + self._patience * (1 + SPREAD * random.random()), self._look)

    def _look(self) -> None:
        silent = self._loop.time() - self._since
        if silent >= self._patience and self._link.up.is_set():
            _log.warning("bus.server_cut_off", seconds=round(silent, 1))
            self._patience = min(2 * self._patience, LONGEST)
            self._since = self._loop.time()
            self._leaving = self._loop.create_task(self._link.leave(), name="leave a server")
        elif silent >= self._patience:  # not connected: that is told by other means
            self._since = self._loop.time()
        self._wait()
