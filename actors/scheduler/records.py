"""The records of what sessions used: summed up for the tenants' totals, and kept within bounds.

Law: nobody waits for them. There is one for each session of 90 days, so a scheduler leads before it has read them; of those that
it finds, it hears one sum a tenant. Where they take more than `MOST` bytes, the oldest go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import structlog

from myna.actors import outcomes, subjects
from myna.actors.bus import Bus, BusError, ErrorHandler
from myna.actors.bus import Stored as StoredMessage
from myna.actors.messages import StreamStatus, Tenant, Usage

log = structlog.get_logger(__name__)

MOST = 1 << 30
"""Bytes that the records may take: about 900,000 sessions of ten calls. A server's memory for them is half as much again."""
LEFT = 0.9
"""Of `MOST`, what is left when the oldest go."""
_EVERYTHING = ">"


class UsageRecords:
    """Reads the records, and tells what each tenant used in so many calls."""

    def __init__(self, bus: Bus, tell: Callable[[Tenant, Usage, int], Awaitable[None]], most: int = MOST) -> None:
        self._bus = bus
        self._tell = tell
        self._most = most
        self._found: dict[Tenant, tuple[Usage, int]] | None = {}
        """Sums of those that were there at the start, until all have been read."""

    async def follow(self, on_error: ErrorHandler) -> None:
        """Begin to read, for ever; returns before anything has been read. Raises `BusError`."""
        await self._bus.follow(
            subjects.USAGE, self._on_record, headers_only=True, caught_up=self._caught_up, on_error=on_error
        )

    async def _on_record(self, stored: StoredMessage) -> None:
        tenant = Tenant(stored.subject.split(".")[1])
        calls, usage = outcomes.read_usage(stored.headers)
        if self._found is None:
            await self._tell(tenant, usage, calls)
            return
        used, by = self._found.get(tenant, (Usage(), 0))
        self._found[tenant] = used + usage, by + calls

    async def _caught_up(self) -> None:
        found, self._found = self._found or {}, None
        for tenant, (usage, calls) in found.items():
            await self._tell(tenant, usage, calls)

    async def trim(self, streams: Iterable[StreamStatus]) -> None:
        """Drop the oldest, if this is what the streams hold and it is too much."""
        held = next((s for s in streams if s.name == subjects.USAGE.name), None)
        if held is None or held.bytes <= self._most:
            return
        keep = int(held.messages * LEFT * self._most / held.bytes)
        try:
            gone = await self._bus.purge(subjects.USAGE, _EVERYTHING, keep=keep)
        except BusError as error:  # the next look comes soon
            log.warning("records of usage could not be dropped", reason=str(error))
            return
        log.warning("the oldest records of usage were dropped", records=gone, left=keep, most_bytes=self._most)
