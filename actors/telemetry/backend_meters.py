"""Metrics of what stands behind a worker: an engine's batches, pages and prefixes, an endpoint's requests.

A backend's beats carry running totals; here they become counters, however often a backend begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from myna.actors.messages import WorkerId
from myna.actors.worker.backend import Insight, Offer

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_TOTALS = {
    "steps": ("myna_engine_steps", "Steps of the engine."),
    "step_seconds": ("myna_engine_step_seconds", "Seconds that steps took."),
    "drawn_tokens": ("myna_engine_drawn_tokens", "Tokens drawn."),
    "computed_tokens": ("myna_engine_computed_tokens", "Tokens whose KV was computed."),
    "hit_tokens": ("myna_engine_prefix_hit_tokens", "Prompt tokens whose KV was found, and not computed again."),
    "evicted_tokens": ("myna_engine_evicted_tokens", "Tokens whose KV was given up for others."),
    "preemptions": ("myna_engine_preemptions", "Requests that had to give their KV up while they ran."),
    "requests": ("myna_endpoint_requests", "Requests sent to an endpoint."),
    "failures": ("myna_endpoint_failures", "Requests that failed at an endpoint."),
    "limited": ("myna_endpoint_limited", "Requests that an endpoint put off: 429."),
    "refused": ("myna_endpoint_refused", "Requests that an endpoint refused."),
    "output_tokens": ("myna_endpoint_output_tokens", "Tokens that an endpoint generated."),
    "cost": ("myna_endpoint_cost_millionths", "What they cost, in millionths of the operator's currency."),
}
_PAGES = {"pages": "all", "free_pages": "free", "evictable_pages": "evictable"}


class BackendMeters:
    """See the module."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._totals = {
            figure: Counter(name, help, ["worker"], registry=registry) for figure, (name, help) in _TOTALS.items()
        }
        self._running = Gauge("myna_running_calls", "Calls that are held.", ["worker"], registry=registry)
        self._capacity = Gauge("myna_capacity_calls", "Calls that may be held.", ["worker"], registry=registry)
        self._waiting = Gauge("myna_waiting_requests", "Requests that wait in it.", ["worker"], registry=registry)
        self._pages = Gauge("myna_kv_pages", "Pages of the KV cache, by state.", ["worker", "state"], registry=registry)
        self._shared = Gauge(
            "myna_shared_tokens",
            "Tokens of KV that sharing saves now: what all who use a prefix would hold, less what is held.",
            ["worker"],
            registry=registry,
        )
        self._batch = Histogram(
            "myna_batch_size",
            "Sequences that run together, a sample for each moment with steps.",
            buckets=SIZES,
            registry=registry,
        )
        self._last: dict[tuple[WorkerId, str], float] = {}

    def looked(self, worker: WorkerId, offer: Offer, running: int, load: Mapping[str, float], insight: Insight) -> None:
        """What is held now, and what the backend has done since the last look."""
        self._running.labels(worker).set(running)
        self._capacity.labels(worker).set(offer.capacity)
        for figure, total in load.items():
            if figure in _TOTALS:
                self._count(worker, figure, total)
            elif figure in _PAGES:
                self._pages.labels(worker, _PAGES[figure]).set(total)
            elif figure == "waiting":
                self._waiting.labels(worker).set(total)
        for moment in insight.steps:
            self._batch.observe(moment.running)
        if insight.prefixes:
            self._shared.labels(worker).set(sum(max(p.holders - 1, 0) * p.tokens for p in insight.prefixes))

    def _count(self, worker: WorkerId, figure: str, total: float) -> None:
        before = self._last.get((worker, figure), 0.0)
        self._last[worker, figure] = total
        self._totals[figure].labels(worker).inc(max(total - before if total >= before else total, 0.0))
