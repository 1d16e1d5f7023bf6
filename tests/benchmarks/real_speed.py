"""How quick the whole road is: real nats-server, scheduler and no-op engine as processes, and dask.distributed beside them."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from myna.actors import codec, subjects
from myna.actors.bus import Bus, BusError, Delivery
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import (
    PROTOCOL,
    Close,
    Input,
    LogEntry,
    Message,
    ModelCall,
    Open,
    Output,
    Sampling,
    Segment,
    SessionId,
    Status,
    StatusRequest,
    StreamMode,
    Submit,
    Tenant,
    Text,
    Value,
)
from myna.actors.server import Server, ServerConfig
from tests.benchmarks.core_speed import WIDTH

TENANT = Tenant("default")


def call(name: str, *inputs: str) -> ModelCall:
    """A call that makes one word, and shows it when it is whole."""
    segments: list[Segment] = [Text(text="go on: ")]
    if inputs:
        segments.append(Input(variables=inputs))
    segments.append(Output(variables=(name,), sampling=Sampling(max_tokens=1), stream=StreamMode.BUFFERED))
    return ModelCall(id=f"c-{name}", function="word", messages=(Message(segments=tuple(segments)),))


def graph(applications: int) -> list[ModelCall]:
    """Applications of sixteen calls and one that joins their results."""
    calls: list[ModelCall] = []
    for n in range(applications):
        maps = [f"m{n}-{i}" for i in range(WIDTH)]
        calls += [call(m) for m in maps]
        calls.append(call(f"r{n}", *maps))
    return calls


class Reader:
    """All values of a session, as they come."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self._changed = asyncio.Event()

    async def take(self, delivery: Delivery) -> None:
        """One more."""
        value: Value = codec.decode(delivery.data, Value)
        self.values[delivery.subject.rsplit(".", 1)[-1]] = value
        self._changed.set()

    async def until(self, count: int) -> None:
        """There are so many."""
        async with asyncio.timeout(120):
            while len(self.values) < count:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def machine(engines: int = 1) -> AsyncIterator[Bus]:
    """Server, scheduler and no-op engines as processes; yields a client's bus."""
    with tempfile.TemporaryDirectory() as folder:
        server = await Server.start(ServerConfig(Path(folder)))
        user, password = server.config.user, server.config.password
        environment = os.environ | {
            "MYNA_URL": server.url,
            "MYNA_USER": user,
            "MYNA_PASSWORD": password,
            "MYNA_HOME": folder,
            "MYNA_LOG": "warning",
        }
        modules = [("myna.actors.scheduler",)]
        modules += [("myna.actors.engine_host", "--noop", "--name", f"e{n}") for n in range(engines)]  # type: ignore[misc]
        processes = [await asyncio.create_subprocess_exec(sys.executable, "-m", *m, env=environment) for m in modules]
        bus = await NatsBus.connect(server.url, user=user, password=password)
        try:
            await _ready(bus, engines)
            yield bus
        finally:
            await bus.close()
            for process in processes:
                process.terminate()
            await asyncio.gather(*(p.wait() for p in processes))
            await server.stop()


async def _ready(bus: Bus, engines: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                answer = await bus.request(subjects.STATUS, codec.encode(StatusRequest()))
                status: Status = codec.decode(answer.data, Status)
                if len(status.workers) == engines:
                    return
            except BusError:
                pass  # nobody answers yet
            await asyncio.sleep(0.1)


async def run(bus: Bus, name: str, calls: list[ModelCall]) -> tuple[float, dict[str, Value]]:
    """Seconds from the first byte sent to the last value read, and the values."""
    session = SessionId(name)
    reader = Reader()
    subscription = await bus.subscribe(subjects.read_all(TENANT, session), reader.take)
    began = time.perf_counter()

    async def append(entry: LogEntry) -> None:
        await bus.append(subjects.log(TENANT, session), codec.encode(entry))

    await append(Open(protocol=PROTOCOL))
    for start in range(0, len(calls), 10 * (WIDTH + 1)):
        await append(Submit(calls=tuple(calls[start : start + 10 * (WIDTH + 1)])))
    await reader.until(len(calls))
    seconds = time.perf_counter() - began
    await append(Close())
    await subscription.close()
    return seconds, reader.values


async def sustained(bus: Bus, calls: int, runs: int) -> list[float]:
    """Calls a second, warmed up by one run."""
    nodes = graph(calls // (WIDTH + 1))
    await run(bus, "warm", graph(20))
    return [len(nodes) / (await run(bus, f"sustained{n}", nodes))[0] for n in range(runs)]


async def handover(bus: Bus, length: int) -> list[float]:
    """Milliseconds from the producer's last token to its consumer's start, of each link of a chain, by the worker's clock."""
    calls = [call("v0"), *(call(f"v{n}", f"v{n - 1}") for n in range(1, length))]
    _, values = await run(bus, "chain", calls)
    timings = [values[f"v{n}"].timing for n in range(length)]
    assert all(timings)
    return [(b.began - a.ended) * 1e3 for a, b in itertools.pairwise(timings) if a and b]


def dask_rate(calls: int, runs: int) -> list[float]:
    """Calls a second of the same graph on dask.distributed: scheduler and one worker as processes, over TCP."""
    from distributed import Client, LocalCluster

    def word() -> str:
        return "word0"

    def join(*parts: Any) -> str:
        return "word0"

    applications = calls // (WIDTH + 1)
    rates = []
    with (
        LocalCluster(n_workers=1, threads_per_worker=4, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for n in range(runs + 1):  # the first warms up
            count = 20 if n == 0 else applications
            began = time.perf_counter()
            joined = []
            futures = []
            for _ in range(count):
                maps = [client.submit(word, pure=False) for _ in range(WIDTH)]
                futures += maps
                joined.append(client.submit(join, *maps, pure=False))
            client.gather(futures + joined)
            if n:
                rates.append(count * (WIDTH + 1) / (time.perf_counter() - began))
    return rates
