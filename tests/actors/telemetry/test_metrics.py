"""What actors count, read as Prometheus reads it."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from myna.actors import config
from myna.actors.bus.memory import MemoryBroker, MemoryBus
from myna.actors.config import ConfigError
from myna.actors.messages import (
    Close,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    PrefixSight,
    StepSight,
    Usage,
    WorkerId,
    WorkerKind,
)
from myna.actors.scheduler.shell import Scheduler
from myna.actors.telemetry.backend_meters import BackendMeters
from myna.actors.telemetry.instruments import instruments
from myna.actors.telemetry.request_meters import RequestMeters
from myna.actors.telemetry.scheduler_meters import SchedulerMeters
from myna.actors.telemetry.worker_meters import WorkerMeters
from myna.actors.worker.backend import Insight, Job, JobFailed, Offer
from myna.actors.worker.noop import NoopBackend
from myna.actors.worker.shell import Worker
from tests.actors.stage import Application, Stage, call, stage, until


class Read:
    """A registry as a scrape shows it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.text = generate_latest(registry).decode()

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found)

    @property
    def labels(self) -> set[str]:
        families = text_string_to_metric_families(self.text)
        return {value for family in families for sample in family.samples for value in sample.labels.values()}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


class Failing(NoopBackend):
    """Fails the first attempt of each call, in a way that may be tried again."""

    def run(self, job: Job) -> None:
        if job.key[3] % 2:
            failure = Failure(code=ErrorCode.ENGINE_ERROR, message="not yet", retryable=True)
            self._report(JobFailed(job.key, failure))
        else:
            super().run(job)


@pytest.fixture
async def play(registry: CollectorRegistry) -> AsyncIterator[Stage]:
    broker = MemoryBroker()

    async def bus() -> MemoryBus:
        return MemoryBus(broker)

    async with stage(bus) as it:
        scheduler = it.schedulers["s"] = Scheduler(await it.bus("s"), "s", watches=(SchedulerMeters(registry),))
        await it._start("s", scheduler.run(), scheduler.leading)
        worker = it.workers["w"] = Worker(
            await it.bus("w"), WorkerId("w"), Failing(), watches=(WorkerMeters(registry),)
        )
        await it._start("w", worker.run(), worker.ready)
        yield it


async def test_a_session_is_counted_from_its_calls_queue_to_its_job_completion_time(
    play: Stage, registry: CollectorRegistry
) -> None:
    app = Application(await play.bus("app"), "private-session")
    await app.open()
    await app.submit(call("a"), call("b", "a"))
    await app.text("b")
    await app.log(Close())
    await until(lambda: Read(registry)("myna_session_seconds_count") == 1, "the session is counted")
    read = Read(registry)
    assert read("myna_calls_total", outcome="finished", tenant="default") == 2
    assert read("myna_calls_total", outcome="failed") == read("myna_scheduler_retries_total") == 2
    assert read("myna_attempt_failures_total", code="engine_error") == 2
    assert read("myna_tokens_total", kind="output") == 4
    for histogram in ("worker_queue", "time_to_first_token", "call", "time_per_output_token"):
        assert read(f"myna_{histogram}_seconds_count") == 2, histogram
    assert read("myna_scheduler_queue_seconds_count") == read("myna_scheduler_decisions_total", kind="dispatch") == 4
    await until(lambda: Read(registry)("myna_scheduler_workers") == 1, "how things stand is shown")
    assert Read(registry)("myna_scheduler_leading") == 1


async def test_no_label_names_a_session_a_call_or_a_variable(play: Stage, registry: CollectorRegistry) -> None:
    app = Application(await play.bus("app"), "private-session")
    await app.open()
    await app.submit(call("private"))
    await app.text("private")
    await until(lambda: Read(registry)("myna_running_calls") == 0 and "w" in Read(registry).labels, "a look was taken")
    assert not [label for label in Read(registry).labels if "private" in label]


async def test_a_call_that_can_not_run_is_a_failure_by_its_code(play: Stage, registry: CollectorRegistry) -> None:
    app = Application(await play.bus("app"), "s")
    await app.open()
    await app.submit(call("a", "nowhere"))
    await app.outcome("a")
    assert Read(registry)("myna_scheduler_failures_total", code="unknown_variable") == 1


def test_tenants_beyond_the_bound_share_one_label(registry: CollectorRegistry) -> None:
    meters = WorkerMeters(registry)
    for n in range(80):
        meters.told(
            Event(
                worker="w",
                kind=EventKind.FINISHED,
                tenant=f"t{n}",
                session="s",
                call="c",
                attempt=1,
                usage=Usage(prompt_tokens=3),
            )
        )
    read = Read(registry)
    assert read("myna_calls_total", tenant="other") == 30
    assert read("myna_calls_total") == 80
    assert read("myna_tokens_total", kind="prompt") == 240


OFFER = Offer(WorkerKind.ENGINE, ("m",), 8)


def prefix(holders: int, tokens: int) -> PrefixSight:
    return PrefixSight(id=holders, parent=None, cache="", begin=0, tokens=tokens, hits=0, holders=holders)


def test_running_totals_become_counters_that_survive_a_backend_which_begins_anew(registry: CollectorRegistry) -> None:
    meters, w = BackendMeters(registry), WorkerId("w")
    for hits in (100.0, 250.0, 40.0):
        meters.looked(w, OFFER, 1, {"hit_tokens": hits, "pages": 64.0, "free_pages": 10.0}, Insight())
    read = Read(registry)
    assert read("myna_engine_prefix_hit_tokens_total", worker="w") == 290
    assert read("myna_kv_pages", state="free") == 10
    assert read("myna_capacity_calls") == 8


def test_batches_and_what_sharing_saves_come_from_the_look_that_the_window_shows(registry: CollectorRegistry) -> None:
    step = StepSight(at=0.0, seconds=0.1, steps=4, drawn=20, prefilled=0, running=5, waiting=0, pages=9)
    insight = Insight({}, (step, step), (prefix(1, 1000), prefix(4, 50)))
    BackendMeters(registry).looked(WorkerId("w"), OFFER, 5, {}, insight)
    read = Read(registry)
    assert read("myna_shared_tokens") == 150
    assert (read("myna_batch_size_count"), read("myna_batch_size_sum")) == (2, 10)


async def _answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("yes", 201)


async def _stream(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    return StreamingResponse(pieces())


def test_requests_are_counted_by_route_and_status(registry: CollectorRegistry) -> None:
    app = Starlette(routes=[Route("/v1/things/{id}", _answer), Route("/stream", _stream)])
    with TestClient(RequestMeters(registry).around(app)) as client:
        client.get("/v1/things/secret")
        client.get("/stream")
        client.get("/nowhere/secret")
    read = Read(registry)
    assert read("myna_gateway_requests_total", path="/v1/things/{id}", status="201", method="GET") == 1
    assert read("myna_gateway_requests_total", path="none", status="404") == 1
    assert read("myna_gateway_first_byte_seconds_count", path="/stream") == 1
    assert read("myna_gateway_request_seconds_count") == 3
    assert read("myna_gateway_open_requests") == 0
    assert "secret" not in read.text


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


def test_a_process_with_a_port_serves_what_it_counts_and_frees_the_port_at_its_end(port: int) -> None:
    settings = replace(config.read({"HOME": "/nowhere"}), metrics=port)
    for _ in range(2):
        with instruments(settings, "test") as watching:
            (meters,) = watching.worker()
            meters.told(Event(worker="w", kind=EventKind.REFUSED, tenant="t", session="s", call="c", attempt=1))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            assert 'myna_calls_total{outcome="refused",tenant="t"} 1.0' in text
            assert "process_resident_memory_bytes" in text


def test_a_port_that_is_taken_is_told_in_words(port: int) -> None:
    settings = replace(config.read({"HOME": "/nowhere"}), metrics=port)
    with instruments(settings, "one"), pytest.raises(ConfigError, match=f"MYNA_METRICS_PORT is {port}"):
        instruments(settings, "two").__enter__()


def test_what_is_not_asked_for_is_not_loaded_and_what_is_asked_for_and_missing_is_told() -> None:
    program = """
import sys
for name in ("prometheus_client", "opentelemetry"):
    sys.modules[name] = None
from dataclasses import replace
import myna, myna.actors.scheduler.shell, myna.actors.worker.shell
from myna.actors import config
from myna.actors.telemetry.instruments import instruments
settings = config.read({"HOME": "/nowhere"})
with instruments(settings, "x") as nothing:
    assert nothing.worker() == nothing.scheduler() == () and nothing.traces() is nothing.requests() is None
for more in ({"metrics": 1}, {"traces": True}):
    try:
        with instruments(replace(settings, **more), "x"):
            pass
    except config.ConfigError as error:
        print(error)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.count("pip install 'myna[telemetry]'") == 2
