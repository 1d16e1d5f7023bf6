"""Leadership: of several schedulers the one that holds the lease leads, and its revision fences every dispatch.

The revision of the acquisition names the term; renewals raise the stored revision, so that a later term is always larger. A
scheduler that comes back under its own name takes its own lease over at once: its supervisor has seen the old process end.
"""

from __future__ import annotations

import asyncio

import structlog

from myna.actors import codec, subjects
from myna.actors.bus import Bus, BusError, LeaseLost
from myna.actors.messages import PROTOCOL, Hello

log = structlog.get_logger(__name__)

LEASE = "scheduler"
RETRY = 1.0
"""Seconds between two tries of a standby."""


class Leadership:
    """The lease, once acquired."""

    def __init__(self, bus: Bus, name: str, revision: int) -> None:
        self._bus = bus
        self._holder = name.encode()
        self._revision = revision
        self.term = revision

    @classmethod
    async def acquire(cls, bus: Bus, name: str) -> Leadership:
        """Wait until this scheduler leads."""
        waiting = False
        while True:
            try:
                return cls(bus, name, await _try(bus, name.encode()))
            except LeaseLost:
                if not waiting:
                    log.info("standing by: another scheduler leads", scheduler=name)
                waiting = True
            except BusError as error:
                log.warning("can't ask for the lease yet", scheduler=name, reason=str(error))
            await asyncio.sleep(RETRY)

    async def keep(self) -> None:
        """Renew for ever, and let everybody hear each time that it was. Raises `LeaseLost` when the lease is somebody else's, or
        could not be renewed in time."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        pulse = codec.encode(Hello(protocol=PROTOCOL, scheduler=self._holder.decode(), lease=self.term, pulse=True))
        pause = subjects.LEASE_TTL / 4
        while True:
            await asyncio.sleep(pause)
            try:
                self._revision = await self._bus.renew(LEASE, self._holder, self._revision)
                renewed = loop.time()
                await self._bus.publish(subjects.HELLO, pulse)
                pause = subjects.LEASE_TTL / 4
            except LeaseLost:
                raise
            except BusError as error:
                log.warning("the lease was not renewed", reason=str(error))
                if loop.time() - renewed > subjects.LEASE_TTL * 0.9:
                    raise LeaseLost("the lease ran out while the network was gone") from error
                pause = subjects.LEASE_TTL / 40  # an election of NATS servers leaves little time

    async def release(self) -> None:
        """Give the lease up, so that a standby leads at once."""
        await self._bus.release(LEASE, self._revision)


async def _try(bus: Bus, holder: bytes) -> int:
    try:
        return await bus.acquire(LEASE, holder, ttl=subjects.LEASE_TTL)
    except LeaseLost:
        held = await bus.lease(LEASE)
        if held is None or held.holder != holder:
            raise
        return await bus.renew(LEASE, holder, held.revision)
