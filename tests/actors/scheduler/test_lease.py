from __future__ import annotations

import asyncio

import pytest

from myna.actors import subjects
from myna.actors.bus import LeaseLost
from myna.actors.scheduler import lease as lease_module
from myna.actors.scheduler.lease import LEASE, Leadership
from myna.actors.scheduler.shell import Scheduler, SchedulerFailed
from tests.actors.stage import until
from tests.network import MemoryNetwork


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's pauses are short; the lease itself expires by the network's own clock."""
    monkeypatch.setattr(lease_module, "RETRY", 0.005)
    monkeypatch.setattr(subjects, "LEASE_TTL", 0.04)


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


async def test_a_standby_waits_and_leads_under_a_larger_term_once_the_lease_has_run_out(network: MemoryNetwork) -> None:
    first = await Leadership.acquire(await network.bus(), "one")
    standby = asyncio.ensure_future(Leadership.acquire(await network.bus(), "two"))
    await asyncio.wait({standby}, timeout=0.05)
    assert not standby.done()
    await network.pass_time(1.0)
    second = await standby
    assert second.term > first.term


async def test_a_released_lease_is_free_at_once(network: MemoryNetwork) -> None:
    first = await Leadership.acquire(await network.bus(), "one")
    standby = asyncio.ensure_future(Leadership.acquire(await network.bus(), "two"))
    await first.release()
    assert (await asyncio.wait_for(standby, 5)).term > first.term


async def test_a_scheduler_that_comes_back_under_its_name_takes_its_own_lease_over(network: MemoryNetwork) -> None:
    first = await Leadership.acquire(await network.bus(), "one")
    again = await asyncio.wait_for(Leadership.acquire(await network.bus(), "one"), 5)
    assert again.term > first.term


async def test_a_leader_whose_lease_was_taken_hears_of_it_and_stops(network: MemoryNetwork) -> None:
    first = await Leadership.acquire(await network.bus(), "one")
    await network.pass_time(1.0)
    second = await Leadership.acquire(await network.bus(), "two")
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(first.keep(), 5)
    await first.release()
    held = await (await network.bus()).lease(LEASE)
    assert held is not None
    assert held.holder == b"two", "the deposed one releases nothing"
    assert second.term == held.revision


async def test_a_leader_that_renews_stays_and_its_term_stays_the_same(network: MemoryNetwork) -> None:
    bus = await network.bus()
    leader = await Leadership.acquire(bus, "one")
    term = leader.term
    keeping = asyncio.ensure_future(leader.keep())

    async def renewed() -> bool:
        held = await bus.lease(LEASE)
        return held is not None and held.revision >= term + 3

    await until(renewed, "three renewals")
    assert leader.term == term
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await leader.release()
    assert await bus.lease(LEASE) is None


async def test_a_leader_cut_off_for_the_length_of_its_lease_gives_up_by_itself(network: MemoryNetwork) -> None:
    bus = await network.bus()
    leader = await Leadership.acquire(bus, "one")
    await bus.close()
    with pytest.raises(LeaseLost, match="network was gone"):
        await asyncio.wait_for(leader.keep(), 5)


@pytest.mark.parametrize("also", [None, SchedulerFailed("a mailbox failed")], ids=["alone", "with another error"])
async def test_a_scheduler_that_is_deposed_ends_in_one_plain_error(
    network: MemoryNetwork, also: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(await network.bus(), "one")
    if also is not None:  # as when a stopped process finds its connection gone, too

        async def fail(_: Scheduler) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise also

        monkeypatch.setattr(Scheduler, "_tick", fail)
    running = asyncio.ensure_future(scheduler.run())
    await asyncio.wait_for(scheduler.leading.wait(), 5)
    await network.pass_time(1.0)
    second = await Leadership.acquire(await network.bus(), "two")
    with pytest.raises(LeaseLost if also is None else (LeaseLost, SchedulerFailed)):
        await asyncio.wait_for(running, 5)
    held = await (await network.bus()).lease(LEASE)
    assert held is not None
    assert held.revision == second.term
