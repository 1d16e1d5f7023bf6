"""What metrics and traces cost: the same load on a cluster with everything on, and with nothing on, in turns of a moment each.

    python -m tests.benchmarks.telemetry [--blocks 12] [--json FILE]

Real processes on a real NATS server: a scheduler, and a no-op engine that takes no time for a step, so that nothing hides what
the instruments take. While they are on, `/metrics` is scraped as often as in our compose file, and traces go to a collector. They
are switched on and off in the same processes (`telemetry_actors`), every third of a second; a block is long enough for each part
to have its scrapes, and gives one ratio of throughput and one of processor time. The rows are medians of the blocks, with the
interval in which the true median lies with a probability of 95 %. What logs cost a call that succeeds, two microseconds for
binding its ids, is in both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import myna
from myna import Input, Output
from myna.actors import config
from myna.actors.machine.process import Running
from myna.actors.server import Server, ServerConfig
from myna.sdk.client import Client, Credential
from tests.benchmarks.growth import Processes, _end
from tests.benchmarks.reporting import Row, row, show, write
from tests.benchmarks.telemetry_actors import SWITCH
from tests.ports import free_port

TARGET = 3.0
TOKENS = 16
CLUSTERS = 3
"""One after another: processes of one program differ by some percent for as long as they live."""
SESSIONS = 8
"""At once."""
PARTS = 12
SCRAPE = 5.0
"""Seconds with everything on between two scrapes, as in `deploy/prometheus/prometheus.yml`."""
ROUNDS = 3
CALLS = SESSIONS * ROUNDS * (PARTS + 1)
"""Of one turn."""
TURNS = 16
"""With everything on, and as many with nothing on, in a block."""
WARM = 4
"""Turns of each at a cluster's begin: they use up what is recorded of a quiet cluster beyond the pace."""
ROOT = Path(__file__).parents[2]


@myna.function
def work(parts: Input, text: Annotated[str, Output(max_tokens=TOKENS)]) -> None:
    """{{parts}}{{text}}"""


class Collector(ThreadingHTTPServer):
    """Takes traces, and counts their bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.taken = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{self.server_port}"
        self.shutdown()
        self.server_close()


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        self.rfile.read(size)
        assert isinstance(self.server, Collector)
        self.server.taken += size
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass
class Spent:
    """By calls: seconds of the clock, and processor seconds of scheduler and engine."""

    calls: int = 0
    wall: float = 0.0
    processor: float = 0.0

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.wall

    @property
    def each(self) -> float:
        """Processor seconds for a call."""
        return self.processor / self.calls


@dataclass
class Cluster:
    """A scheduler and an engine, whose instruments can be switched, and who asks them."""

    client: Client
    processes: list[Running]
    ports: list[int]
    unscraped: float = 0.0

    async def block(self, turns: int) -> tuple[Spent, Spent]:
        """So many turns with everything on and with nothing on, by turns; which comes first changes each time."""
        on, off = Spent(), Spent()
        aside = self._used(main=False)
        for n in range(turns):
            for spent in (on, off) if n % 2 else (off, on):
                await self._turn(spent, on=spent is on)
        on.processor += self._used(main=False) - aside
        return on, off

    async def _turn(self, spent: Spent, *, on: bool) -> None:
        await self._switch(on)
        used, began = self._used(main=True), time.perf_counter()
        scraping = asyncio.create_task(self._scrape()) if on and self.unscraped >= SCRAPE else None
        await asyncio.gather(*(self._applications() for _ in range(SESSIONS)))
        if scraping is not None:
            await scraping
        took = time.perf_counter() - began
        if on:
            self.unscraped += took
        spent.calls += CALLS
        spent.wall += took
        spent.processor += self._used(main=True) - used

    async def _switch(self, on: bool) -> None:
        for actor in ("scheduler", "engine"):
            await self.client.bus.request(f"{SWITCH}.{actor}", b"on" if on else b"off", timeout=10.0)

    async def _scrape(self) -> None:
        self.unscraped -= SCRAPE
        for port in self.ports:
            await asyncio.to_thread(_read, port)

    async def _applications(self) -> None:
        for _ in range(ROUNDS):
            async with self.client.session("telemetry"):
                await work([work(f"part {n}") for n in range(PARTS)]).get()

    def _used(self, *, main: bool) -> float:
        """Processor seconds, by the kernel's accounts in nanoseconds, of the actors' own threads, or of all others: these answer
        scrapes and send spans, and do nothing else, whenever they do it."""
        threads = ((p.pid, t) for p in self.processes for t in Path(f"/proc/{p.pid}/task").iterdir())
        counted = (thread for pid, thread in threads if (thread.name == str(pid)) is main)
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in counted) / 1e9


@contextlib.asynccontextmanager
async def cluster(folder: Path, collector: str) -> AsyncIterator[Cluster]:
    """One that is ready."""
    server = await Server.start(ServerConfig(folder / "nats"))
    user, password = server.config.user, server.config.password
    own = {"MYNA_URL": server.url, "MYNA_USER": user, "MYNA_PASSWORD": password, "HOME": str(folder)}
    base = config.child_environment(config.read(own)) | {"PYTHONPATH": f"{ROOT / '.src'}:{ROOT}"}
    running: list[Running] = []
    ports: list[int] = []
    try:
        for kind in ("scheduler", "engine"):
            ports.append(free_port())
            more = {"MYNA_METRICS_PORT": str(ports[-1]), "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
            running.append(await Processes(base | more, folder).start("tests.benchmarks.telemetry_actors", kind))
        async with Client(server.url, Credential(user, password)) as client:
            yield Cluster(client, running, ports)
    finally:
        for process in running:
            await _end(process)
        await server.stop()


def _read(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
        return body


async def measure(blocks: int) -> list[Row]:
    """All rows."""
    collector, found = Collector(), list[tuple[Spent, Spent]]()
    with collector.serving() as url:
        for _ in range(CLUSTERS):
            with tempfile.TemporaryDirectory(prefix="myna-telemetry-") as name:
                async with cluster(Path(name), url) as one:
                    await one.block(WARM)
                    found += [await one.block(TURNS) for _ in range(blocks // CLUSTERS)]
    assert collector.taken, "the collector got nothing"
    case = "everything on"
    lost = [100 * (1 - on.rate / off.rate) for on, off in found]
    more = [100 * (on.each / off.each - 1) for on, off in found]
    return [
        row(case, "throughput loss", "%", "lower", lost, TARGET),
        *_interval(case, "throughput loss", lost),
        row(case, "more CPU of scheduler and engine", "%", "lower", more, TARGET),
        *_interval(case, "more CPU", more),
        row(case, "CPU of scheduler and engine", "us/call", "lower", [on.each * 1e6 for on, _ in found]),
        row("nothing on", "CPU of scheduler and engine", "us/call", "lower", [off.each * 1e6 for _, off in found]),
        row(case, "throughput", "calls/s", "higher", [on.rate for on, _ in found]),
        row("nothing on", "throughput", "calls/s", "higher", [off.rate for _, off in found]),
    ]


def _interval(case: str, metric: str, values: list[float]) -> list[Row]:
    """Where the true median lies with a probability of 95 % at least: between two of the values, counted from the ends, whatever
    their distribution is."""
    ordered, n, outside, below = sorted(values), len(values), 0.0, 0
    while (outside := outside + math.comb(n, below) / 2**n) <= 0.025:
        below += 1
    low = max(below - 1, 0)
    return [
        Row(case, f"{metric}: 95 % from", "%", "lower", ordered[low], runs=n),
        Row(case, f"{metric}: 95 % to", "%", "lower", ordered[n - 1 - low], runs=n),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--json", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.blocks))
    show(rows)
    if arguments.json is not None:
        write(arguments.json, "telemetry", rows, ("nats-py", "prometheus-client", "opentelemetry-sdk", "msgspec"))


if __name__ == "__main__":
    main()
