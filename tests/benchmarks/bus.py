"""Speed of the bus on this machine, beside nats-py's own JetStream client on the same server in the same run.

    python -m tests.benchmarks.bus [--json FILE] [--scale 1.0]

Messages have 200 bytes. "64" is 64 tasks on one connection. Rates are per second, latencies in microseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import nats

from myna.actors import subjects
from myna.actors.bus import Bus, Delivery, Stored
from myna.actors.bus.memory import MemoryBroker, MemoryBus
from myna.actors.bus.nats import NatsBus
from myna.actors.messages import SessionId, Tenant, VarId
from myna.actors.server import Server, ServerConfig
from tests.network import Collected

BODY = bytes(200)
T = Tenant("bench")
Results = dict[str, float]
Operation = Callable[[int], Awaitable[object]]


async def rate(operation: Operation, n: int, tasks: int = 1) -> float:
    """How often a second `operation` is done, by so many tasks."""
    numbers = iter(range(n))

    async def work() -> None:
        for i in numbers:
            await operation(i)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work())
    return n / (time.perf_counter() - start)


def write(session: str, i: int) -> str:
    return subjects.write(T, SessionId(session), VarId(f"v{i}"))


async def measure(bus: Bus, reader: Bus, n: int) -> Results:
    await bus.ensure(subjects.STREAMS)
    results = {
        "append": await rate(lambda i: bus.append(write("one", i), BODY, message_id=f"one{i}"), n),
        "append, 64": await rate(lambda i: bus.append(write("many", i), BODY, message_id=f"many{i}"), 4 * n, 64),
        "append a chunk, 64": await rate(
            lambda i: bus.append(subjects.write_chunk(T, SessionId("c"), VarId("v"), i), BODY, message_id=f"chunk{i}"),
            4 * n,
            64,
        ),
        "get": await rate(lambda i: bus.get(subjects.VALUES, write("one", i)), n),
        "get, 64": await rate(lambda i: bus.get(subjects.VALUES, write("many", i)), 4 * n, 64),
        "request": await request_rate(bus, reader, n),
        "follow": await follow_rate(reader, 5 * n),
    }
    return results | await latencies(bus, reader, min(n, 2000))


async def request_rate(bus: Bus, server: Bus, n: int) -> float:
    async def answer(question: Delivery) -> None:
        if question.reply is not None:
            await server.publish(question.reply, b"")

    await server.subscribe("bench.ask", answer)
    return await rate(lambda _: bus.request("bench.ask", BODY), n)


async def follow_rate(bus: Bus, expected: int) -> float:
    got = Collected[Stored]()
    start = time.perf_counter()
    follow = await bus.follow(subjects.VALUES, got, headers_only=True, caught_up=got.caught_up)
    await got.until(caught_up=1)
    seconds = time.perf_counter() - start
    await follow.close()
    assert len(got.items) == expected
    return expected / seconds


async def latencies(bus: Bus, reader: Bus, n: int) -> Results:
    taken: list[float] = []
    arrived = asyncio.Event()

    async def handle(message: Delivery) -> None:
        taken.append(time.perf_counter() - float(message.data))
        arrived.set()

    async def median(send: Callable[[int, bytes], Awaitable[object]]) -> float:
        taken.clear()
        for i in range(n):
            arrived.clear()
            await send(i, repr(time.perf_counter()).encode())
            if len(taken) <= i:
                await arrived.wait()
        return statistics.median(taken) * 1e6

    await reader.subscribe("bench.latency", handle)
    published = await median(lambda _, data: bus.publish("bench.latency", data))
    await reader.subscribe(f"myna.{T}.latency.var.*", handle)
    appended = await median(lambda i, data: bus.append(write("latency", i), data, message_id=f"l{i}"))
    return {"publish -> subscriber, us": published, "append -> reader, us": appended}


async def measure_nats_py(server: Server, n: int) -> Results:
    """The baseline: nats-py as it comes."""
    client = await nats.connect(server.url, user=server.config.user, password=server.config.password)
    js = client.jetstream(timeout=30)

    def put(session: str) -> Operation:
        return lambda i: js.publish(write(session, i), BODY, headers={"Nats-Msg-Id": f"{session}{i}"})

    name = subjects.VALUES.name
    results = {
        "append": await rate(put("plain1"), n),
        "append, 64": await rate(put("plain64"), 4 * n, 64),
        "get": await rate(lambda i: js.get_last_msg(name, write("plain1", i), direct=True), n),
        "get, 64": await rate(lambda i: js.get_last_msg(name, write("plain64", i), direct=True), 4 * n, 64),
    }
    await client.close()
    return results


async def run(n: int) -> dict[str, Results]:
    with tempfile.TemporaryDirectory() as store:
        server = await Server.start(ServerConfig(Path(store)))
        user, password = server.config.user, server.config.password
        buses = [await NatsBus.connect(server.url, user=user, password=password) for _ in range(2)]
        results = {"NatsBus": await measure(buses[0], buses[1], n)}
        for bus in buses:
            await bus.close()
        results["nats-py"] = await measure_nats_py(server, n)
        await server.stop()
    broker = MemoryBroker()
    results["MemoryBus"] = await measure(MemoryBus(broker), MemoryBus(broker), n)
    return results


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    results = asyncio.run(run(round(5000 * arguments.scale)))
    print(f"{'':28}" + "".join(f"{name:>12}" for name in results))
    for row in results["NatsBus"]:
        print(f"{row:28}" + "".join(f"{r[row]:12,.0f}" if row in r else f"{'-':>12}" for r in results.values()))
    if arguments.json is not None:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        versions = {"python": platform.python_version(), "nats-py": version("nats-py")}
        report = {"machine": machine, "versions": versions, "commit": commit(), "results": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
