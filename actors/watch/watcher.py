"""A watcher: hears what engines show, and keeps it for those who ask. Thin: the history decides."""

from __future__ import annotations

import asyncio
import time

import structlog

from myna.actors import codec, subjects
from myna.actors.bus import Bus, BusError, Delivery, Subscription
from myna.actors.codec import WireError
from myna.actors.messages import Sight
from myna.actors.watch.history import History

_log = structlog.get_logger(__name__)


class Watcher:
    """One connection's view of the engines. `heard` is set at each sight, for who waits for one."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._subscription: Subscription | None = None
        self.history = History()
        self.heard = asyncio.Event()
        self.rejected = 0

    async def start(self) -> None:
        """Listen from now on. Who may not, sees nothing: a watcher never fails its owner."""
        try:
            self._subscription = await self._bus.subscribe(subjects.SIGHTS, self._on_sight, on_error=self._on_error)
        except BusError as error:
            self._on_error(error)

    async def stop(self) -> None:
        """Listen no more. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    def _on_error(self, error: BusError) -> None:
        _log.warning("engines can't be watched", reason=str(error))

    async def _on_sight(self, delivery: Delivery) -> None:
        try:
            sight: Sight = codec.decode(delivery.data, Sight)
        except WireError as error:
            self.rejected += 1
            _log.warning("a sight was not understood", subject=delivery.subject, reason=str(error))
            return
        now = time.monotonic()
        self.history.add(sight, now)
        self.history.forget(now)
        self.heard.set()
