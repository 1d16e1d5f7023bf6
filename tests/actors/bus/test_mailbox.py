from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from myna.actors.bus import BusError
from myna.actors.bus.mailbox import Limits, Mailbox
from tests.network import Collected


async def test_without_an_error_handler_a_failure_is_logged() -> None:
    done = asyncio.Event()

    async def handle(item: int) -> None:
        if item == 1:
            raise RuntimeError("no")
        done.set()

    mailbox = Mailbox[int]("box", handle, None, Limits(), lambda _: None)
    with capture_logs() as logs:
        mailbox.put(1, 0)
        mailbox.put(2, 0)
        await asyncio.wait_for(done.wait(), 5)
    await mailbox.close()
    assert [(entry["event"], entry["subscription"]) for entry in logs] == [("bus.subscription_failed", "box")]


async def test_an_error_handler_that_raises_does_not_end_the_mailbox() -> None:
    got = Collected[int]()

    def broken(error: BusError) -> None:
        raise RuntimeError("broken") from error

    async def handle(item: int) -> None:
        await got(item)
        raise ValueError(item)

    mailbox = Mailbox[int]("box", handle, broken, Limits(), lambda _: None)
    with capture_logs() as logs:
        mailbox.put(1, 0)
        mailbox.put(2, 0)
        await got.until(2)
    await mailbox.close()
    assert logs[0]["event"] == "bus.error_handler_failed"


async def test_closing_cancels_the_handler_that_runs_and_awaits_its_end() -> None:
    entered, ended = asyncio.Event(), []

    async def handle(item: int) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    detached: list[str] = []
    mailbox = Mailbox[int]("box", handle, None, Limits(), lambda box: detached.append(box.name))
    mailbox.put(1, 0)
    mailbox.put(2, 0)
    await asyncio.wait_for(entered.wait(), 5)
    await mailbox.close()
    await mailbox.close()
    assert ended == [1]
    assert detached == ["box"]
    assert mailbox.closed


@pytest.mark.parametrize("limits", [Limits(messages=3), Limits(size=3)])
async def test_what_waits_is_bounded(limits: Limits) -> None:
    got, gate = Collected[int](), asyncio.Event()

    async def handle(item: int) -> None:
        await gate.wait()
        await got(item)

    mailbox = Mailbox[int]("box", handle, got.error, limits, lambda _: None)
    for i in range(10):
        mailbox.put(i, 1)
    gate.set()
    await got.until(3)
    await mailbox.close()
    assert got.items == [0, 1, 2]
    assert len(got.errors) == 1
