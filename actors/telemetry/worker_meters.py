"""Metrics of a worker: an engine, an endpoint or an agent.

What a call took is counted as the scheduler is told of it; what an engine does comes from the same look that the window shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from prometheus_client import CollectorRegistry

from myna.actors.messages import Event, EventKind, Run, Usage, Value, WorkerId
from myna.actors.telemetry.backend_meters import BackendMeters
from myna.actors.telemetry.labels import Bounded
from myna.actors.telemetry.spans import Span, Spans
from myna.actors.telemetry.tallies import Tally, Times
from myna.actors.worker.backend import Insight, Offer, RunKey

MOST_TENANTS = 50
"""Tenants that have a label of their own."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
PACES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class WorkerMeters:
    """See the module. Several workers of one process count into the same meters; gauges have a worker's label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Tally(registry, "myna_calls", "Attempts that ended here, by how.", ("outcome", "tenant"))
        self._failures = Tally(registry, "myna_attempt_failures", "Attempts that failed here, by why.", ("code",))
        self._tokens = Tally(
            registry, "myna_tokens", "Tokens of calls: prompt, of which cached, and output.", ("kind", "tenant")
        )
        self._queue = Times(registry, "myna_worker_queue_seconds", "From a call's arrival here to its begin.", SECONDS)
        self._first = Times(
            registry, "myna_time_to_first_token_seconds", "From a call's arrival here to its first token.", SECONDS
        )
        self._pace = Times(registry, "myna_time_per_output_token_seconds", "For each token after the first.", PACES)
        self._whole = Times(
            registry, "myna_call_seconds", "From a call's arrival here to the end of its last output.", SECONDS
        )
        self._backend = BackendMeters(registry)
        self._tenant = Bounded(MOST_TENANTS)
        self._spans = Spans()

    def asked(self, run: Run, headers: Mapping[str, str]) -> None:
        """An attempt was handed over: it counts when it has ended."""

    def made(self, key: RunKey, function: str, value: Value) -> None:
        """An output is whole."""
        self._spans.made(key, function, value)

    def told(self, event: Event) -> None:
        """Count what has ended."""
        if event.kind is EventKind.STARTED:
            return
        span = self._spans.take((event.tenant, event.session, event.call, event.attempt))
        tenant = self._tenant(event.tenant)
        self._calls.add(1, (event.kind.value, tenant))
        self._use(event.usage, tenant)
        match event.kind:
            case EventKind.FINISHED:
                if span is not None:
                    self._time(span)
            case EventKind.FAILED:
                if event.failure is not None:
                    self._failures.add(1, (event.failure.code.value,))
            case EventKind.REFUSED | EventKind.OVERTAKEN:
                pass
            case _:
                assert_never(event.kind)

    def _use(self, used: Usage, tenant: str) -> None:
        if used.prompt_tokens:
            self._tokens.add(used.prompt_tokens, ("prompt", tenant))
        if used.cached_tokens:
            self._tokens.add(used.cached_tokens, ("cached", tenant))
        if used.output_tokens:
            self._tokens.add(used.output_tokens, ("output", tenant))

    def _time(self, span: Span) -> None:
        self._queue.observe(span.began - span.received)
        self._first.observe(span.first - span.received)
        self._whole.observe(span.ended - span.received)
        if span.pace is not None:
            self._pace.observe(span.pace)

    def looked(self, worker: WorkerId, offer: Offer, running: int, load: Mapping[str, float], insight: Insight) -> None:
        """What is held now, and what the backend has done since the last look."""
        self._backend.looked(worker, offer, running, load, insight)
