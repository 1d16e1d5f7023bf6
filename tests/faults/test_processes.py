"""How long it takes until a fault of a real process is noticed, and that what a dead or sleeping one began goes on elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import pytest

import myna
from myna import Input, Output
from myna.actors import codec, config, subjects
from myna.actors.bus import Delivery, Stored
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import (
    Chunk,
    Event,
    EventKind,
    LogEntry,
    Status,
    StatusRequest,
    Tenant,
    Tried,
    VarId,
    WorkerId,
)
from myna.actors.subjects import FromWorker
from myna.sdk.client import Client
from myna.sdk.session import Session
from myna.sdk.variable import Variable
from tests.engine.tiny_folder import tiny_folder
from tests.faults.cluster import Cluster, cluster
from tests.faults.processes import Actor, Part
from tests.network import Collected

pytestmark = [pytest.mark.nats, pytest.mark.timeout(180)]

NOTICED = 3.0
"""Seconds within which the scheduler must have noticed that an engine is gone."""
TAKEN_OVER = 15.0
"""Seconds within which a standby must lead."""
ENGINES = tuple(f"engine-{n}" for n in range(2))


@myna.function(retries=10)
def write(prompt: Input, text: Annotated[str, Output()]) -> None:
    """{{prompt}}{{text}}"""


@dataclass
class House:
    """One server, processes, and a client that looks at everything."""

    servers: Cluster
    bus: NatsBus
    client: Client
    actors: dict[str, Actor] = field(default_factory=dict)

    async def begin(self, session: Session, tokens: int) -> Story:
        """A call, of which something has been published."""
        variable = write("once", text=Output(max_tokens=tokens, ignore_eos=True, seed=3), session=session)
        story = Story(variable)
        await self.bus.follow(subjects.LOG, story.entries, subject=subjects.log(Tenant("default"), session.id))
        chunks = subjects.read_chunks(Tenant("default"), session.id, VarId(variable.id))
        await self.bus.subscribe(chunks, story.take)
        story.reading = asyncio.create_task(story.read())
        await story.reached(1)
        return story

    async def status(self) -> Status:
        """What the leading scheduler sees."""
        answer = await self.bus.request(subjects.STATUS, codec.encode(StatusRequest()))
        status: Status = codec.decode(answer.data, Status)
        return status

    async def running(self) -> str:
        """The engine on which the only call runs."""
        (name,) = [worker.worker for worker in (await self.status()).workers if worker.running]
        return name


@dataclass
class Story:
    """One streamed call, seen from outside."""

    variable: Variable
    entries: Collected[Stored] = field(default_factory=Collected)
    attempts: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    reading: asyncio.Task[None] = field(init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, delivery: Delivery) -> None:
        chunk: Chunk = codec.decode(delivery.data, Chunk)
        self.attempts.append(chunk.attempt)
        self._changed.set()

    async def read(self) -> None:
        async for piece in self.variable.stream():
            self.pieces.append(piece)

    async def reached(self, attempts: int) -> None:
        """So many attempts have published something."""
        async with asyncio.timeout(60):
            while len(set(self.attempts)) < attempts:
                self._changed.clear()
                await self._changed.wait()

    async def given_up(self) -> None:
        """The scheduler has given the first attempt's worker up."""
        while not any(isinstance(codec.decode(s.data, LogEntry), Tried) for s in self.entries.items):
            await self.entries.until(len(self.entries.items) + 1)

    async def end(self) -> None:
        """It has ended, and its reader saw each token once."""
        async with asyncio.timeout(90):
            text = await self.variable
            await self.reading
        assert "".join(self.pieces) == text
        assert self.attempts == sorted(self.attempts), "no attempt published after a later one"


@asynccontextmanager
async def house(folder: Path, *parts: Part, settings: config.Settings | None = None) -> AsyncIterator[House]:
    async with cluster(folder, 1) as servers:
        bus = await NatsBus.connect(servers.url, user=servers.user, password=servers.password)
        client = await Client(bus=bus).open()
        there = House(servers, bus, client)
        settings = settings or config.read({"HOME": str(folder), "MYNA_LOG": "warning"})
        try:
            for part in parts:
                there.actors[part.name] = await Actor.start(part, servers, settings, folder)
            engines = (there.actors[name] for name in ENGINES)
            await asyncio.gather(*(actor.ready.wait() for actor in engines))
            yield there
        finally:
            await client.close()
            for actor in there.actors.values():
                await actor.close()
            await bus.close()


def noop(step: float) -> tuple[Part, ...]:
    modelled = ("--noop", "--step", str(step))
    return tuple(Part(name, "myna.actors.engine_host", ("--name", name, *modelled)) for name in ENGINES)


def scheduler(name: str = "scheduler-0") -> Part:
    return Part(name, "myna.actors.scheduler", (name,))


async def test_an_engine_that_is_killed_or_cut_off_is_noticed_within_three_seconds_and_another_goes_on(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, scheduler(), *noop(0.02)) as there, there.client.session() as session:
        for harm in ("kill", "cut"):
            story = await there.begin(session, 300)
            victim = there.actors[await there.running()]
            began = time.monotonic()
            if harm == "kill":
                victim.signal(signal.SIGKILL)
            else:
                victim.wires[0].freeze()
            await story.given_up()
            assert time.monotonic() - began <= NOTICED
            await story.reached(2)
            victim.wires[0].mend()
            await story.end()


async def test_a_real_engine_that_sleeps_while_its_work_is_given_away_changes_nothing_when_it_wakes(
    tmp_path: Path,
) -> None:
    engine = config.EngineSettings(model=str(tiny_folder(tmp_path)), dtype=config.Dtype.FLOAT32, kv_memory=2**20)
    settings = replace(config.read({"HOME": str(tmp_path), "MYNA_LOG": "warning"}), engine=engine)
    engines = (Part(name, "myna.actors.engine_host", ("--name", name)) for name in ENGINES)
    async with house(tmp_path, scheduler(), *engines, settings=settings) as there, there.client.session() as session:
        events = Collected[Delivery]()
        story = await there.begin(session, 600)
        zombie = await there.running()
        await there.bus.subscribe(subjects.from_worker(WorkerId(zombie), FromWorker.EVENT), events)
        pids = family(there.actors[zombie].pid)
        assert len(pids) > 1, "the model runs in a process of its own"
        began = time.monotonic()
        signal_all(pids, signal.SIGSTOP)
        await story.given_up()
        assert time.monotonic() - began <= NOTICED
        await story.reached(2)
        signal_all(pids, signal.SIGCONT)
        await events.until(1)
        first: Event = codec.decode(events.items[0].data, Event)
        assert first.kind is EventKind.OVERTAKEN, "its next chunk was refused"
        assert first.attempt == story.attempts[0]
        await story.end()


async def test_a_standby_leads_within_fifteen_seconds_adopts_what_runs_and_takes_what_was_submitted_meanwhile(
    tmp_path: Path,
) -> None:
    parts = (scheduler("scheduler-0"), scheduler("scheduler-1"), *noop(0.05))
    async with house(tmp_path, *parts) as there, there.client.session() as session:
        story = await there.begin(session, 320)
        status = await there.status()
        began = time.monotonic()
        await there.actors.pop(status.scheduler).close()
        meanwhile = write("more", text=Output(max_tokens=1), session=session)
        assert await meanwhile.get(timeout=60)
        assert time.monotonic() - began <= TAKEN_OVER
        assert not story.reading.done()
        assert (await there.status()).scheduler != status.scheduler
        await story.end()
        assert len(set(story.attempts)) == 1, "what ran was not run again"


def family(pid: int | None) -> list[int]:
    """A process and its children."""
    assert pid is not None
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(int(child) for text in lists for child in text.split())]


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)
