"""What metrics and traces cost: the same load on a cluster with everything on, and on one with nothing on, in turns.

    python -m tests.benchmarks.telemetry [--pairs 20] [--json FILE]

Two clusters of real processes on a real NATS server each: a scheduler, and a no-op engine that takes no time for a step, so that
nothing hides what the instruments take. One serves `/metrics`, which is scraped as often as in our compose file, and sends traces
to a collector. Each pair of runs gives one ratio, and which of the two comes first changes from pair to pair; the row is their
median.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import myna
from myna import Input, Output
from myna.actors import config
from myna.actors.machine.process import Running
from myna.actors.machine.programs import ENGINE_HOST, SCHEDULER
from myna.actors.server import Server, ServerConfig
from myna.sdk.client import Client, Credential
from tests.benchmarks.growth import Processes, _end
from tests.benchmarks.reporting import Row, row, show, write

TARGET = 3.0
TOKENS = 16
CLUSTERS = 4
"""Pairs of clusters, one after another: processes of one program differ by some percent for as long as they live."""
SESSIONS = 8
"""At once."""
PARTS = 12
SCRAPE = 5.0
"""Seconds between two scrapes, as in `deploy/prometheus/prometheus.yml`."""
ROUNDS = 12
CALLS = SESSIONS * ROUNDS * (PARTS + 1)
"""Of one run."""


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
class Runs:
    """Run by run: calls a second, and the processor seconds of scheduler and engine for a call."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Cluster:
    """A scheduler, an engine, and who asks them."""

    client: Client
    processes: list[Running]
    runs: Runs = field(default_factory=Runs)

    async def run(self) -> None:
        """One run."""
        used, began = self._used(), time.perf_counter()
        await asyncio.gather(*(self._applications() for _ in range(SESSIONS)))
        self.runs.rates.append(CALLS / (time.perf_counter() - began))
        self.runs.seconds.append((self._used() - used) / CALLS)

    async def _applications(self) -> None:
        for _ in range(ROUNDS):
            async with self.client.session("telemetry"):
                await work([work(f"part {n}") for n in range(PARTS)]).get()

    def _used(self) -> float:
        """By the kernel's accounts in nanoseconds, of all threads."""
        threads = (t for process in self.processes for t in Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@contextlib.asynccontextmanager
async def cluster(folder: Path, collector: str | None) -> AsyncIterator[Cluster]:
    """One that is ready; with a `collector`, everything is on."""
    server = await Server.start(ServerConfig(folder / "nats"))
    user, password = server.config.user, server.config.password
    own = {"MYNA_URL": server.url, "MYNA_USER": user, "MYNA_PASSWORD": password, "HOME": str(folder)}
    base = config.child_environment(config.read(own)) | {
        "PYTHONHASHSEED": "0"
    }  # a process is fast or slow by its luck there
    running: list[Running] = []
    ports: list[int] = []
    try:
        for module, *options in ((SCHEDULER,), (ENGINE_HOST, "--name", "engine", "--noop", "--capacity", "64")):
            ports.append(_free_port())
            more = {"MYNA_METRICS_PORT": str(ports[-1]), "OTEL_EXPORTER_OTLP_ENDPOINT": collector} if collector else {}
            running.append(await Processes(base | more, folder).start(module, *options))
        scraping = asyncio.create_task(_scrape(ports if collector else []))
        async with Client(server.url, Credential(user, password)) as client:
            yield Cluster(client, running)
        scraping.cancel()
    finally:
        for process in running:
            await _end(process)
        await server.stop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def _scrape(ports: list[int]) -> None:
    while True:
        for port in ports:
            await asyncio.to_thread(_read, port)
        await asyncio.sleep(SCRAPE)


def _read(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
        return body


async def measure(pairs: int) -> list[Row]:
    """All rows."""
    collector, watched, plain = Collector(), Runs(), Runs()
    with collector.serving() as url:
        for turn in range(CLUSTERS):
            with tempfile.TemporaryDirectory(prefix="myna-telemetry-") as name:
                await _compare(Path(name), url, pairs // CLUSTERS, (watched, plain), on_first=turn % 2 == 0)
    assert collector.taken, "the collector got nothing"
    case = "everything on"
    lost = [100 * (1 - a / b) for a, b in zip(watched.rates, plain.rates, strict=True)]
    more = [100 * (a / b - 1) for a, b in zip(watched.seconds, plain.seconds, strict=True)]
    return [
        row(case, "throughput loss", "%", "lower", lost, TARGET),
        row(case, "more CPU of scheduler and engine", "%", "lower", more),
        row(case, "throughput", "calls/s", "higher", watched.rates),
        row("nothing on", "throughput", "calls/s", "higher", plain.rates),
    ]


async def _compare(folder: Path, collector: str, pairs: int, found: tuple[Runs, Runs], *, on_first: bool) -> None:
    """So many pairs of runs on two new clusters; which of them is started first must not matter."""
    urls = (collector, None) if on_first else (None, collector)
    first, second = (folder / str(url is None) for url in urls)
    async with cluster(first, urls[0]) as one, cluster(second, urls[1]) as two:
        on, off = (one, two) if on_first else (two, one)
        for n in range(-2, pairs):
            for each in (on, off) if n % 2 else (off, on):
                await each.run()
            if n < 0:  # to warm up, and to use up what is recorded of a quiet cluster
                on.runs, off.runs = Runs(), Runs()
    for kept, new in zip(found, (on.runs, off.runs), strict=True):
        kept.rates += new.rates
        kept.seconds += new.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.pairs))
    show(rows)
    if arguments.json is not None:
        write(arguments.json, "telemetry", rows, ("nats-py", "prometheus-client", "opentelemetry-sdk", "msgspec"))


if __name__ == "__main__":
    main()
