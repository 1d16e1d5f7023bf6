"""The table of metrics in `actors/telemetry/README.md`: `python -m tests.actors.telemetry.metrics_table` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry

from myna.actors.telemetry.request_meters import RequestMeters
from myna.actors.telemetry.scheduler_meters import SchedulerMeters
from myna.actors.telemetry.worker_meters import WorkerMeters

WHERE = {
    "Schedulers": SchedulerMeters,
    "Workers: engines, endpoints, agents": WorkerMeters,
    "Gateways": RequestMeters,
}


def table(meters: type[Any]) -> Iterator[str]:
    """One actor's, as lines of Markdown."""
    registry = CollectorRegistry()
    meters(registry)
    yield "| metric | kind | labels | meaning |"
    yield "|---|---|---|---|"
    for collector in sorted(registry._collector_to_names, key=lambda c: min(registry._collector_to_names[c])):
        (family,) = collector.describe()  # type: ignore[attr-defined]
        labels = getattr(collector, "_labelnames", getattr(collector, "labels", ()))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |"


if __name__ == "__main__":
    for actor, kind in WHERE.items():
        print(f"\n### {actor}\n", *table(kind), sep="\n")
