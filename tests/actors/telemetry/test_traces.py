"""Traces, as a collector gets them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import myna
from myna import Input, Output
from myna.actors import config
from myna.actors.bus import Bus
from myna.actors.messages import PROTOCOL, Close, Open, Run, SessionId, Tenant, WorkerId
from myna.actors.scheduler.shell import Scheduler
from myna.actors.telemetry import context
from myna.actors.telemetry.context import Context
from myna.actors.telemetry.instruments import instruments
from myna.actors.telemetry.traces import BURST, SchedulerTraces, WorkerTraces, Writer
from myna.actors.worker.noop import NoopBackend, NoopModel
from myna.actors.worker.shell import Worker
from myna.sdk.client import connect
from tests.actors.stage import Application, Stage, call, stage, until
from tests.actors.telemetry.collector import Collector, collecting
from tests.network import Network


@myna.function
def say(it: Input, answer: Annotated[str, Output(max_tokens=2)]) -> None:
    """Say {{it}}: {{answer}}"""


@pytest.fixture
def sent() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def writer(sent: InMemorySpanExporter) -> Writer:
    return Writer(SimpleSpanProcessor(sent), Resource.create({"service.name": "myna-test"}))


@pytest.fixture
async def play(network: Network, writer: Writer) -> AsyncIterator[Stage]:
    """A traced scheduler and a traced worker, on each kind of network."""
    async with stage(network.bus) as it:
        await perform(it, await it.bus("s"), await it.bus("w"), writer)
        yield it


async def perform(it: Stage, first: Bus, second: Bus, writer: Writer) -> Worker:
    scheduler = Scheduler(first, "s", traces=SchedulerTraces(writer))
    await it._start("s", scheduler.run(), scheduler.leading)
    backend = NoopBackend(NoopModel(step=0.005))
    worker = Worker(second, WorkerId("w"), backend, watches=(WorkerTraces(writer),))
    await it._start("w", worker.run(), worker.ready)
    return worker


def named(sent: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in sent.get_finished_spans() if span.name == name]


def within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    assert inner.start_time is not None
    assert inner.end_time is not None
    assert outer.start_time is not None
    assert outer.end_time is not None
    return outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time


async def test_a_session_is_one_trace_of_calls_each_with_its_queue_prefill_and_decode(
    play: Stage, sent: InMemorySpanExporter
) -> None:
    app = Application(await play.bus("app"), "one")
    await app.open()
    await app.submit(call("a"), call("b", "a"))
    await app.text("b")
    await app.log(Close())
    await until(lambda: bool(named(sent, "session")), "the session's span is written")
    spans = sent.get_finished_spans()
    (session,) = named(sent, "session")
    assert {span.context.trace_id for span in spans if span.context} == {context.of_session("default", "one").trace}
    calls = [*named(sent, "call a"), *named(sent, "call b")]
    assert len(calls) == 2
    for each in calls:
        assert each.parent is not None
        assert each.context is not None
        assert session.context is not None
        assert each.parent.span_id == session.context.span_id
        parts = [s for s in spans if s.parent is not None and s.parent.span_id == each.context.span_id]
        assert [part.name for part in parts] == ["queue", "prefill", "decode"]
        assert all(within(part, each) for part in parts)
        assert parts[0].end_time == parts[1].start_time
        assert parts[1].end_time == parts[2].start_time
    assert calls[1].attributes is not None
    assert calls[1].attributes["myna.call"] == "call-b"
    assert calls[1].attributes["gen_ai.usage.output_tokens"] == 2


async def test_a_session_of_an_application_that_traces_belongs_to_its_trace(
    play: Stage, sent: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(sent))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    with provider.get_tracer("app").start_as_current_span("request") as request:
        async with connect(bus=await play.bus("app")) as client, client.session("talk") as session:
            assert await say("hello", session=session).get()
    await until(lambda: bool(named(sent, "decode")), "the call's spans are written")
    (session,) = named(sent, "session talk")
    (asked,) = [s for s in sent.get_finished_spans() if s.name.startswith("call")]
    assert session.context is not None
    assert session.parent is not None
    assert asked.parent is not None
    assert session.parent.span_id == request.get_span_context().span_id
    assert asked.parent.span_id == session.context.span_id
    assert {s.context.trace_id for s in sent.get_finished_spans() if s.context} == {session.context.trace_id}
    assert not named(sent, "session"), "the scheduler leaves to the application what is its own"


async def test_an_application_that_keeps_no_trace_of_a_session_has_the_cluster_keep_none(
    play: Stage, sent: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    async with connect(bus=await play.bus("app")) as client, client.session("talk") as session:
        assert await say("hello", session=session).get()
    async with connect(bus=await play.bus("app")) as client:
        monkeypatch.undo()
        async with client.session("next") as session:
            assert await say("hello", session=session).get()
    await until(lambda: bool(named(sent, "decode")), "the next session's call is recorded")
    assert len(named(sent, "decode")) == 1


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as it:
        yield it


async def test_a_collector_gets_the_spans_of_all_actors_over_otlp(
    collector: Collector, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = collector.url
    settings = config.read({"HOME": "/nowhere", "OTEL_EXPORTER_OTLP_ENDPOINT": url})
    assert settings.traces
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    with instruments(settings, "scheduler") as one:
        assert one.writer is not None
        async with stage(network.bus) as it:
            worker = await perform(it, await it.bus("s"), await it.bus("w"), one.writer)
            app = Application(await it.bus("app"), "one")
            await app.open()
            await app.submit(call("a"))
            await app.text("a")
            await until(lambda: not worker._core.running, "the attempt is over")
    spans = collector.spans()
    assert {span.name for span in spans} == {"call a", "queue", "prefill", "decode"}
    assert {span.process for span in spans} == {"myna-scheduler"}


def test_traces_that_are_switched_off_are_not_sent() -> None:
    environment = {"HOME": "/nowhere", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}
    assert not config.read(environment | {"OTEL_SDK_DISABLED": "true"}).traces
    assert not replace(config.read(environment), traces=False).traces


def run_of(session: str, name: str = "a") -> Run:
    return Run(tenant="t", session=session, call=call(name), attempt=1, lease=1)


def opened(traces: SchedulerTraces, session: str, **headers: str) -> None:
    traces.logged(Tenant("t"), SessionId(session), Open(protocol=PROTOCOL), 0.0, headers, leads=True)


def test_a_busy_cluster_records_a_sample_of_whole_sessions_and_all_that_clients_trace(writer: Writer) -> None:
    traces = SchedulerTraces(writer)
    opened(traces, "first")
    assert all(traces.headers(run_of("first"), 0.0) for _ in range(int(BURST) + 100)), "whole, once it has begun"
    opened(traces, "second")
    assert traces.headers(run_of("second"), 0.0) is None
    theirs = Context(7, 8)
    opened(traces, "asked", traceparent=theirs.header)
    headers = traces.headers(run_of("asked"), 0.25)
    assert headers is not None
    assert context.incoming(headers) == theirs
    assert context.waited(headers) == 0.25


def test_what_its_client_keeps_no_trace_of_is_not_recorded(writer: Writer) -> None:
    traces = SchedulerTraces(writer)
    opened(traces, "theirs", traceparent=Context(7, 8, recorded=False).header)
    assert traces.headers(run_of("theirs"), 0.0) is None


@pytest.mark.parametrize(("sampler", "kept"), [("always_off", 0), ("always_on", 2 * BURST), ("traceidratio", 0)])
def test_a_sampler_that_opentelemetry_is_told_of_decides_in_place_of_the_pace(
    sampler: str, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    settings = config.read(
        {"HOME": "/nowhere", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_SAMPLER": sampler}
    )
    with instruments(settings, "test") as watching:
        traces = watching.traces()
        assert traces is not None
        opened(traces, "s")
        assert sum(traces.headers(run_of("s"), 0.0) is not None for _ in range(int(2 * BURST))) == kept


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_span_survives_its_header(trace_id: int, span_id: int, recorded: bool) -> None:
    here = Context(trace_id, span_id, recorded)
    assert context.incoming({"traceparent": here.header}) == here


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{0:032x}-{1:016x}-01",
        f"00-{1:032x}-{0:016x}-01",
        f"ff-{1:032x}-{1:016x}-01",
        f"00-{1:032X}G-{1:016x}-01",
    ],
)
def test_a_header_that_names_no_span_is_ignored(header: str) -> None:
    assert context.incoming({"traceparent": header}) is None


@given(st.text())
def test_what_a_message_says_of_waiting_is_never_an_error(text: str) -> None:
    assert 0.0 <= context.waited({context.WAITED: text}) < 1e7
