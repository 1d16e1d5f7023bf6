"""All endpoints of a file behind one host: readiness, draining, and books that outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from myna.actors.endpoints.books import Books
from myna.actors.endpoints.host import Host
from myna.actors.endpoints.settings import Budget, BudgetOf, Endpoints
from myna.actors.messages import ErrorCode, Failure, Value
from tests.actors.endpoints.faulty import Faulty, Gate, faulty, says
from tests.actors.stage import Application, Stage, call, stage
from tests.network import MemoryNetwork


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def play(network: MemoryNetwork) -> AsyncIterator[Stage]:
    async with stage(network.bus) as it:
        await it.scheduler()
        yield it


@asynccontextmanager
async def hosted(network: MemoryNetwork, books: Path, *servers: Faulty, tokens: int = 10_000) -> AsyncIterator[Host]:
    """A host of an endpoint for each server, `e0`, `e1`, …; ended at once at the end."""
    endpoints = tuple(server.endpoint(f"e{n}", models={f"m{n}": "its"}) for n, server in enumerate(servers))
    budget = Budget(of=BudgetOf.TENANT, tokens=tokens)
    bus = await network.bus()
    host = Host(bus, "h", Endpoints(endpoint=endpoints, budget=(budget,)), books)
    running = asyncio.create_task(host.run())
    await asyncio.wait_for(host.ready.wait(), 20)
    try:
        yield host
    finally:
        running.cancel()
        await asyncio.wait((running,))
        await bus.close()


async def test_each_endpoint_is_a_worker_and_one_that_is_away_does_not_keep_the_others(
    play: Stage, network: MemoryNetwork, tmp_path: Path
) -> None:
    async with faulty() as away:
        pass
    async with faulty() as here, hosted(network, tmp_path / "books.json", away, here):
        workers = {w.worker: w for w in (await play.status()).workers}
        assert workers["h-e0"].paused
        assert not workers["h-e1"].paused
        application = Application(await play.bus("application"), "s")
        await application.open()
        await application.submit(call("a", models=("m1",)))
        assert await application.text("a") == "one two"


async def test_a_host_that_is_drained_ends_what_runs_and_then_itself(
    play: Stage, network: MemoryNetwork, tmp_path: Path
) -> None:
    gate = Gate("begun")
    async with faulty(gate) as server, hosted(network, tmp_path / "books.json", server) as host:
        application = Application(await play.bus("application"), "s")
        await application.open()
        await application.submit(call("a"))
        await gate.reached.wait()
        host.drain()
        gate.opened.set()
        assert await application.text("a") == "begun end"


async def test_what_was_spent_is_known_to_the_next_host(play: Stage, network: MemoryNetwork, tmp_path: Path) -> None:
    books = tmp_path / "endpoints" / "h.json"
    async with faulty(usual=says("w", usage={"prompt_tokens": 60, "completion_tokens": 40})) as server:
        application = Application(await play.bus("application"), "s")
        await application.open()
        async with hosted(network, books, server, tokens=120):
            await application.submit(call("a"))
            assert isinstance(await application.outcome("a"), Value)
        async with hosted(network, books, server, tokens=120):
            await application.submit(call("b", tokens=50))
            failure = await application.outcome("b")
            assert isinstance(failure, Failure)
            assert (failure.code, "100 are used" in failure.message) == (ErrorCode.OVER_QUOTA, True)


def test_books_that_can_t_be_read_or_written_are_told_once_and_stop_nobody(tmp_path: Path) -> None:
    (tmp_path / "books.json").write_text("{nonsense")
    (tmp_path / "file").write_text("")
    with structlog.testing.capture_logs() as logs:
        Books(tmp_path / "books.json", ())
        books = Books(tmp_path / "file" / "books.json", ())
        for _ in range(2):
            books.ledger.changed = True
            books.close()
    assert [entry["log_level"] for entry in logs] == ["warning"] * 3
