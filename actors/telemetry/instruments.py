"""The instruments of one process, as its settings ask for them, begun and ended with it.

`/metrics` is served by a thread of its own. Spans are sent by a thread, too, over OTLP/HTTP; where nobody takes them they are
lost, and nothing waits. OpenTelemetry's own variables are read by its own parts: OTEL_EXPORTER_OTLP_* and OTEL_BSP_* by exporter
and batches, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and its _ARG.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from myna.actors.config import ConfigError, Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.sampling import Sampler
    from prometheus_client import CollectorRegistry

    from myna.actors.telemetry.request_meters import RequestMeters
    from myna.actors.telemetry.traces import SchedulerTraces, Writer
    from myna.actors.telemetry.watch import SchedulerWatch, WorkerWatch

_log = structlog.get_logger(__name__)

_MISSING = "{what} needs packages that are not here ({error}): pip install 'myna[telemetry]', or unset {variable}"


@dataclass(frozen=True, slots=True)
class Instruments:
    """What watches this process. Without settings for it, nothing does."""

    registry: CollectorRegistry | None = None
    writer: Writer | None = None
    sampler: Sampler | None = None

    def worker(self) -> tuple[WorkerWatch, ...]:
        """For all workers of this process. Called once."""
        watches: list[WorkerWatch] = []
        if self.registry is not None:
            from myna.actors.telemetry.worker_meters import WorkerMeters

            watches.append(WorkerMeters(self.registry))
        if self.writer is not None:
            from myna.actors.telemetry.traces import WorkerTraces

            watches.append(WorkerTraces(self.writer))
        return tuple(watches)

    def scheduler(self) -> tuple[SchedulerWatch, ...]:
        """For the scheduler of this process, beside its traces. Called once."""
        if self.registry is None:
            return ()
        from myna.actors.telemetry.scheduler_meters import SchedulerMeters

        return (SchedulerMeters(self.registry),)

    def traces(self) -> SchedulerTraces | None:
        """The scheduler's traces, if there are to be any. Called once."""
        if self.writer is None:
            return None
        from myna.actors.telemetry.traces import SchedulerTraces

        return SchedulerTraces(self.writer, self.sampler)

    def requests(self) -> RequestMeters | None:
        """For the gateway of this process. Called once."""
        if self.registry is None:
            return None
        from myna.actors.telemetry.request_meters import RequestMeters

        return RequestMeters(self.registry)


@contextlib.contextmanager
def instruments(settings: Settings, process: str) -> Iterator[Instruments]:
    """Serve metrics, and send traces, as `settings` ask, inside the block. Raises `ConfigError`: packages are missing, or the
    port is taken."""
    with contextlib.ExitStack() as ends:
        registry = None if settings.metrics is None else _serve(settings.metrics, ends)
        writer = _send(process, ends) if settings.traces else None
        sampler = _sampler() if settings.traces and settings.sampled else None
        yield Instruments(registry, writer, sampler)


def _serve(port: int, ends: contextlib.ExitStack) -> CollectorRegistry:
    try:
        from prometheus_client import CollectorRegistry as Registry
        from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, start_http_server
    except ImportError as error:
        raise ConfigError(_MISSING.format(what="serving metrics", error=error, variable="MYNA_METRICS_PORT")) from None
    registry = Registry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise ConfigError(f"MYNA_METRICS_PORT is {port}: metrics can't be served there: {error.strerror}") from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    ends.callback(end)
    _log.info("metrics are served", port=port)
    return registry


def _send(process: str, ends: contextlib.ExitStack) -> Writer:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from myna.actors.telemetry.traces import Writer as SpanWriter
    except ImportError as error:
        variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
        raise ConfigError(_MISSING.format(what="sending traces", error=error, variable=variable)) from None
    processor = BatchSpanProcessor(OTLPSpanExporter())
    ends.callback(processor.shutdown)
    _log.info("traces are sent")
    return SpanWriter(processor, Resource.create({"service.name": f"myna-{process}"}))


def _sampler() -> Sampler:
    """What OTEL_TRACES_SAMPLER and its argument say; OpenTelemetry reads them."""
    from opentelemetry.sdk.trace import TracerProvider

    return TracerProvider(shutdown_on_exit=False).sampler
