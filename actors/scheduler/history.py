"""A session's log for its tenant, who may not follow the stream: page by page, from the stream. The core has no part in it."""

from __future__ import annotations

import asyncio

from myna.actors import subjects
from myna.actors.bus import Bus, BusError, Stored
from myna.actors.messages import LogLine, LogPage, SessionId, Tenant

PAGE = 512 * 1024
"""Bytes of entries in one page; an entry that is larger has a page of its own."""
TIMEOUT = 10.0
"""Seconds that one page may take."""


async def page(bus: Bus, tenant: Tenant, session: SessionId, after: int) -> LogPage:
    """The entries of a session's log above sequence `after`, as many as fit. Raises `BusError`, TimeoutError."""
    lines: list[LogLine] = []
    more: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    size = 0

    async def take(stored: Stored) -> None:
        nonlocal size
        size += stored.size
        if more.done():
            return
        if lines and size > PAGE:
            more.set_result(True)
        else:
            lines.append(LogLine(sequence=stored.sequence, at=stored.timestamp, entry=stored.data))

    async def caught_up() -> None:
        if not more.done():
            more.set_result(False)

    def failed(error: BusError) -> None:
        if not more.done():
            more.set_exception(error)

    subject = subjects.log(tenant, session)
    follow = await bus.follow(subjects.LOG, take, subject=subject, after=after, caught_up=caught_up, on_error=failed)
    try:
        async with asyncio.timeout(TIMEOUT):
            is_more = await more
    finally:
        await follow.close()
    return LogPage(lines=tuple(lines), more=is_more)
