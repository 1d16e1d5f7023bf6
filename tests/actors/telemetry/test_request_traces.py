"""A gateway's requests in their callers' traces."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from myna.actors.telemetry import context
from myna.actors.telemetry.context import Context
from myna.actors.telemetry.request_traces import RequestTraces
from myna.actors.telemetry.traces import Writer

CALLER = Context(7, 8)


async def here(request: Request) -> PlainTextResponse:
    """What it would tell the next process."""
    told = (context.outgoing() or {}).get("traceparent", "nothing")
    return PlainTextResponse(told, int(request.path_params["status"]))


def asked(writer: Writer | None, *, status: int = 200, **headers: str) -> str:
    app = Starlette(routes=[Route("/here/{status}", here)])
    with TestClient(RequestTraces(app, writer)) as client:
        return client.get(f"/here/{status}", headers=headers).text


@pytest.fixture
def sent() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def writer(sent: InMemorySpanExporter) -> Writer:
    return Writer(SimpleSpanProcessor(sent), Resource.create())


def only(sent: InMemorySpanExporter) -> ReadableSpan:
    (span,) = sent.get_finished_spans()
    return span


def test_a_request_that_names_a_span_is_one_inside_it_and_so_is_what_it_causes(
    writer: Writer, sent: InMemorySpanExporter
) -> None:
    told = context.incoming({"traceparent": asked(writer, traceparent=CALLER.header)})
    span = only(sent)
    assert span.name == "GET /here/{status}"
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (CALLER.trace, CALLER.span)
    assert span.context is not None
    assert told == Context(CALLER.trace, span.context.span_id)
    assert span.status.status_code is StatusCode.UNSET


def test_a_request_that_fails_by_our_fault_is_a_span_that_failed(writer: Writer, sent: InMemorySpanExporter) -> None:
    asked(writer, status=503, traceparent=CALLER.header)
    assert only(sent).status.status_code is StatusCode.ERROR


def test_a_gateway_that_records_nothing_passes_on_what_it_was_told() -> None:
    assert asked(None, traceparent=CALLER.header) == CALLER.header


def test_what_its_caller_keeps_no_trace_of_is_passed_on_as_such(writer: Writer, sent: InMemorySpanExporter) -> None:
    unkept = Context(7, 8, recorded=False).header
    assert asked(writer, traceparent=unkept) == unkept
    assert not sent.get_finished_spans()


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}])
def test_a_request_that_names_no_span_begins_no_trace(
    writer: Writer, sent: InMemorySpanExporter, headers: dict[str, str]
) -> None:
    assert asked(writer, **headers) == "nothing"
    assert not sent.get_finished_spans()
