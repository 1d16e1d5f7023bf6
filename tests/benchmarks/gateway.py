"""What HTTP costs: one call over the gateway beside the SDK's own path, and many streaming clients at once.

    python -m tests.benchmarks.gateway [--json FILE] [--quick]

Real NATS, scheduler, gateway and no-op engines, each a process of its own, as `myna up` runs them; the clients are this process.
Both paths ask the same engine for one token. The SDK's path is one call in an open session, which is what the gateway does for a
request. The arms take turns, so that both see the same machine. A streaming client is dropped if its stream ends without [DONE],
lacks a piece of its text, or does not come at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from myna import Client, Output, connect, function
from myna.actors import config, process
from myna.actors.config import Address, Settings
from myna.actors.machine.process import ModuleProgram
from myna.actors.machine.programs import GATEWAY, SCHEDULER, NatsProgram
from myna.actors.machine.shell import Machine
from myna.actors.machine.supervisor import Child
from myna.actors.messages import WorkerId
from myna.actors.server import ServerConfig
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.actors.worker.shell import Worker
from tests.benchmarks.reporting import ROOT, Row, row, show, write
from tests.ports import free_port

ROUNDS, CALLS = 30, 25
CLIENTS = 1000
TOKENS = 12
QUICK = NoopModel("noop")
SLOW = NoopModel("slow", step=1.0, capacity=2 * CLIENTS)
PASSWORD = "bench"


@function(models=["noop"])
def ask(answer: Output(max_tokens=1)) -> None:  # type: ignore[valid-type]
    """{{#user}}Hello{{/user}}{{#assistant}}{{answer}}{{/assistant}}"""


# --- the machine ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def machine(folder: Path, port: int) -> AsyncIterator[Settings]:
    """NATS, scheduler, gateway, and two no-op engines: one that answers at once, one that takes a second for each word."""
    nats = NatsProgram(ServerConfig(store=folder / "nats", user="myna", password=PASSWORD))
    settings = config.read({"MYNA_HOME": str(folder)})

    def located() -> Settings:
        return config.with_address(settings, Address(nats.url, "myna", PASSWORD))

    def environment() -> dict[str, str]:
        return config.child_environment(located()) | {"PYTHONPATH": str(ROOT), "MYNA_LOG_FORMAT": "json"}

    def program(name: str, module: str, *arguments: str) -> ModuleProgram:
        return ModuleProgram(module, *arguments, environment=environment, log=folder / f"{name}.log")

    programs = {
        "nats": nats,
        "scheduler": program("scheduler", SCHEDULER),
        "gateway": program("gateway", GATEWAY, "--port", str(port)),
        "noop": program("noop", "tests.benchmarks.gateway", "--engine", QUICK.name),
        "slow": program("slow", "tests.benchmarks.gateway", "--engine", SLOW.name),
    }
    children = [
        Child("nats"),
        *(Child(name, needs=("nats",), rank=1, grace=3.0) for name in programs if name != "nats"),
    ]
    running = Machine(children, programs)
    task = asyncio.ensure_future(running.run())
    waiting = asyncio.ensure_future(running.ready.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        raise RuntimeError(task.result())
    try:
        yield located()
    finally:
        running.stop()
        await task


def serve_engine(name: str) -> None:
    """Be one of the engines."""
    model = {QUICK.name: QUICK, SLOW.name: SLOW}[name]

    async def serve(settings: Settings, stop: asyncio.Event) -> None:
        bus = await config.connect_bus(settings, name)
        worker = Worker(bus, WorkerId(name), NoopBackend(model))
        try:
            await process.attend(worker.run(), worker.ready, stop)
        finally:
            await bus.close()

    process.run(name, serve)


# --- clients ----------------------------------------------------------------------------------------------------------


@dataclass
class Connection:
    """One kept connection, written by hand: a client library would cost more than what is measured."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> Connection:
        host, _, port = url.removeprefix("http://").partition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def send(self, body: bytes) -> None:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def whole(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await self.reader.readexactly(length)

    def close(self) -> None:
        self.writer.close()


def body(model: NoopModel, tokens: int, *, stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": "Hello"}]
    return json.dumps({"model": model.name, "messages": messages, "max_tokens": tokens, "stream": stream}).encode()


async def one_call(url: str, settings: Settings, rounds: int) -> Row:
    """Median milliseconds of a call over HTTP, less the SDK's in the same round."""
    added, direct = [], []
    http = await Connection.open(url)
    async with _client(settings) as client, client.session("bench") as session:

        async def by_sdk() -> None:
            await ask(session=session)

        async def by_http() -> None:
            http.send(body(QUICK, 1))
            await http.whole()

        for _ in range(3 * CALLS):
            await by_sdk()
            await by_http()
        for _ in range(rounds):
            own = await _median(by_sdk)
            added.append(await _median(by_http) - own)
            direct.append(own)
    http.close()
    made = row("one call over HTTP", "added median", "ms", "lower", added, target=2.0)
    return replace(made, baselines={"SDK, the call itself": statistics.median(direct)})


async def _median(work: Callable[[], Awaitable[None]]) -> float:
    taken = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(taken)


async def streaming(url: str, clients: int) -> list[Row]:
    """So many streams at once: all are open before any has ended, since each takes longer than opening all of them."""
    begin = time.perf_counter()
    open_now = most = 0
    first: list[float] = []

    async def one() -> bool:
        nonlocal open_now, most
        connection = await Connection.open(url)
        try:
            connection.send(body(SLOW, TOKENS, stream=True))
            sent = time.perf_counter()
            await connection.reader.readuntil(b"data: ")
            first.append((time.perf_counter() - sent) * 1e3)
            open_now += 1
            most = max(most, open_now)
            text = await connection.reader.readuntil(b"data: [DONE]\n\n")
            open_now -= 1
            return all(f"answer{n}".encode() in text for n in range(TOKENS))
        finally:
            connection.close()

    results = await asyncio.gather(*(one() for _ in range(clients)), return_exceptions=True)
    whole = sum(result is True for result in results)
    for problem in [r for r in results if isinstance(r, BaseException)][:3]:
        print(f"a stream failed: {problem!r}")
    seconds = time.perf_counter() - begin
    return [
        replace(
            row(
                "streaming clients at once, none dropped",
                "streaming clients",
                "clients",
                "higher",
                [float(most)],
                1000.0,
            ),
            baselines={"whole streams": float(whole), "of": float(clients), "seconds": seconds},
        ),
        row("streaming clients at once, none dropped", "dropped", "clients", "lower", [float(clients - whole)], 0.0),
        row("streaming clients at once, none dropped", "first piece, median", "ms", "lower", first or [float("inf")]),
    ]


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[Client]:
    bus = await config.connect_bus(settings, "bench")
    async with connect(bus=bus, tenant=settings.tenant) as client:
        yield client
    await bus.close()


async def run(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        async with machine(Path(folder), port) as settings:
            rows = [await one_call(url, settings, 3 if quick else ROUNDS)]
            rows += await streaming(url, 100 if quick else CLIENTS)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--engine", choices=(QUICK.name, SLOW.name), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine is not None:
        serve_engine(arguments.engine)
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows = asyncio.run(run(arguments.quick))
    show(rows)
    if arguments.json is not None:
        write(arguments.json, "gateway", rows, ("starlette", "uvicorn", "httptools", "nats-py", "msgpack"))


if __name__ == "__main__":
    main()
