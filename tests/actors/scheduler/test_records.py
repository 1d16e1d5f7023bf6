from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from structlog.testing import capture_logs

from myna.actors import codec, outcomes, subjects
from myna.actors.bus import Bus, Stored, StoredHandler, Subscription
from myna.actors.bus.memory import MemoryBroker, MemoryBus
from myna.actors.messages import CallUsage, SessionId, SessionUsage, StreamStatus, Tenant, Usage
from myna.actors.scheduler.records import UsageRecords
from myna.actors.scheduler.shell import Scheduler
from myna.actors.subjects import Stream
from tests.network import Collected, Network

Told = Collected[tuple[Tenant, Usage, int]]


class Books:
    """Records read from a bus, and what was told of them."""

    def __init__(self, bus: Bus, most: int = 10**6) -> None:
        self.told = Told()
        self.records = UsageRecords(bus, lambda *told: self.told(told), most)

    async def read(self) -> None:
        await self.records.follow(self.told.error)


async def record(bus: Bus, tenant: str, session: str, tokens: int, calls: int = 1) -> None:
    made = tuple(CallUsage(call=f"c{n}", function="f", usage=Usage(output_tokens=tokens)) for n in range(calls))
    used = Usage(output_tokens=tokens * calls)
    of = SessionUsage(tenant=tenant, session=session, used=used, calls=made, name="s")
    subject = subjects.usage(Tenant(tenant), SessionId(session), 0)
    await bus.append(subject, codec.encode(of), headers=outcomes.usage_headers(of))


async def test_what_is_found_is_told_as_one_sum_a_tenant_and_what_comes_later_as_it_comes(network: Network) -> None:
    bus = await network.bus()
    await bus.ensure(subjects.STREAMS)
    for tenant, session, tokens in (("acme", "s1", 3), ("bolt", "s2", 50), ("acme", "s3", 4)):
        await record(bus, tenant, session, tokens, calls=2)
    books = Books(bus)
    await books.read()
    await books.told.until(2)
    assert sorted(books.told.items) == [("acme", Usage(output_tokens=14), 4), ("bolt", Usage(output_tokens=100), 2)]
    await record(bus, "acme", "s4", 5)
    await record(bus, "acme", "s5", 6)
    await books.told.until(4)
    assert books.told.items[2:] == [("acme", Usage(output_tokens=5), 1), ("acme", Usage(output_tokens=6), 1)]


async def test_beyond_their_bound_the_oldest_go_and_somebody_is_told(network: Network) -> None:
    bus = await network.bus()
    await bus.ensure(subjects.STREAMS)
    for n in range(20):
        await record(bus, "acme", f"s{n:02d}", n)
    held = await bus.measure(subjects.USAGE)
    status = StreamStatus(name=subjects.USAGE.name, messages=held.messages, bytes=held.size)
    await Books(bus, most=held.size).records.trim([status])
    assert await bus.measure(subjects.USAGE) == held
    with capture_logs() as logs:
        await Books(bus, most=held.size // 2).records.trim([status])
    assert [(entry["log_level"], entry["records"]) for entry in logs] == [("warning", 11)]
    left = Collected[Stored]()
    await bus.follow(subjects.USAGE, left, caught_up=left.caught_up)
    await left.until(9, caught_up=1)
    assert [stored.subject.split(".")[2] for stored in left.items] == [f"s{n:02d}" for n in range(11, 20)]
    assert (await bus.measure(subjects.USAGE)).size <= held.size // 2


class Withheld(MemoryBus):
    """The records of usage are not to be had."""

    async def follow(
        self,
        stream: Stream,
        handler: StoredHandler,
        *,
        caught_up: Callable[[], Awaitable[None]] | None = None,
        **how: Any,
    ) -> Subscription:
        if stream is subjects.USAGE:
            return await super().follow(stream, handler, subject="nothing", **how)
        return await super().follow(stream, handler, caught_up=caught_up, **how)


async def test_a_scheduler_leads_before_it_has_read_them() -> None:
    bus = Withheld(MemoryBroker())
    scheduler = Scheduler(bus, "it")
    running = asyncio.create_task(scheduler.run())
    try:
        async with asyncio.timeout(10):
            await scheduler.leading.wait()
    finally:
        running.cancel()
        await asyncio.wait([running])
        await bus.close()
