"""All endpoints of one file, each behind a worker of its own, on one connection and with one ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from myna.actors.bus import Bus
from myna.actors.endpoints.backend import EndpointBackend
from myna.actors.endpoints.books import Books
from myna.actors.endpoints.settings import Endpoints
from myna.actors.messages import WorkerId
from myna.actors.subjects import token
from myna.actors.worker.shell import Worker

if TYPE_CHECKING:
    from myna.actors.telemetry.watch import WorkerWatch


class Host:
    """The workers `<name>-<endpoint>`; what they spend is kept in the file `books`. Raises `InvalidName`."""

    def __init__(
        self, bus: Bus, name: str, endpoints: Endpoints, books: Path, watches: Sequence[WorkerWatch] = ()
    ) -> None:
        self._books = Books(books, endpoints.budget)
        self.workers = [
            Worker(bus, WorkerId(token(f"{name}-{e.name}", "worker")), EndpointBackend(e, self._books.ledger), watches)
            for e in endpoints.endpoint
        ]
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Serve until drained or cancelled. Raises `WorkerFailed`, `BusError`."""
        keeping = asyncio.create_task(self._books.keep(), name="books")
        try:
            await self._serve()
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))
            self._books.close()

    async def _serve(self) -> None:
        working = [asyncio.create_task(worker.run(), name="worker") for worker in self.workers]
        readying = asyncio.create_task(self._await_all(), name="readiness")
        try:
            done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (*working, readying):
                task.cancel()
            await asyncio.wait((*working, readying))
        for task in done:
            task.result()

    async def _await_all(self) -> None:
        for worker in self.workers:
            await worker.ready.wait()
        self.ready.set()

    def drain(self) -> None:
        """Take no new calls; `run` returns when the last one has ended."""
        for worker in self.workers:
            worker.drain()
