"""The dashboard and the alerts ask for what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from myna.actors.telemetry.request_meters import RequestMeters
from myna.actors.telemetry.scheduler_meters import SchedulerMeters
from myna.actors.telemetry.worker_meters import WorkerMeters

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/myna.json"


def measured() -> dict[str, set[str]]:
    """Every name that a scrape of all actors can have, with its labels."""
    registry = CollectorRegistry()
    meters = [kind(registry) for kind in (WorkerMeters, SchedulerMeters, RequestMeters)]
    assert meters
    found: dict[str, set[str]] = {}
    for collector in list(registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", getattr(collector, "labels", ())))
        for name in registry._collector_to_names[collector]:
            found[name] = labels
    return found


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = (DEPLOY / "prometheus/rules/myna.yml").read_text()
    return asked + re.findall(r"expr: (.*)", rules)


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_metrics_and_labels_that_actors_have(expression: str) -> None:
    known = measured()
    names = re.findall(r"\bmyna_\w+", expression)
    assert names or re.search(r"\bup\b|process_", expression)
    for name in names:
        assert name in known, name
    for labels in re.findall(r"by \(([^)]*)\)", expression) if names else ():
        for label in labels.replace(" ", "").split(","):
            assert label == "le" or all(label in known[name] for name in names), label


def test_everything_the_operator_was_promised_is_on_the_dashboard() -> None:
    text = DASHBOARD.read_text()
    for name in (
        *("time_to_first_token_seconds", "time_per_output_token_seconds", "scheduler_queue_seconds", "session_seconds"),
        *("batch_size", "kv_pages", "engine_prefix_hit_tokens_total", "shared_tokens", "scheduler_decisions_total"),
        *("scheduler_failures_total", "scheduler_retries_total"),
    ):
        assert f"myna_{name}" in text
