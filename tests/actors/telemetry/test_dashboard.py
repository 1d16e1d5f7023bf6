"""The dashboard and the alerts ask for what there is."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from myna.actors.telemetry.request_meters import RequestMeters
from myna.actors.telemetry.scheduler_meters import SchedulerMeters
from myna.actors.telemetry.worker_meters import WorkerMeters
from tests.actors.telemetry.metrics_table import WHERE, table

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/myna.json"
README = DEPLOY.parent / "actors/telemetry/README.md"


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


def asked_by_dashboard() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]  # a row has none


def asked_by_rules() -> list[str]:
    return re.findall(r"expr: (.*)", (DEPLOY / "prometheus/rules/myna.yml").read_text())


@pytest.mark.parametrize("expression", asked_by_dashboard() + asked_by_rules())
def test_an_expression_names_metrics_and_labels_that_actors_have(expression: str) -> None:
    known = measured()
    names = re.findall(r"\bmyna_\w+", expression)
    assert names or re.search(r"\bup\b|process_", expression)
    for name in names:
        assert name in known, name
    for labels in re.findall(r"by \(([^)]*)\)", expression) if names else ():
        for label in labels.replace(" ", "").split(","):
            assert label in ("le", "job", "instance") or all(label in known[name] for name in names), label


@pytest.mark.parametrize(("actor", "meters"), WHERE.items(), ids=WHERE)
def test_the_readme_lists_what_an_actor_shows_and_nothing_else(actor: str, meters: type[Any]) -> None:
    listed = README.read_text().partition(f"### {actor}\n\n")[2].partition("\n\n")[0]
    assert listed.splitlines() == list(table(meters)), "python -m tests.actors.telemetry.metrics_table prints it"


def test_no_panel_of_the_dashboard_lies_over_another_and_each_has_a_source_that_is_provisioned() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    provisioned = (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    for panel in panels:
        place = panel["gridPos"]
        cells = set(product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])))
        assert not taken & cells, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        assert panel["type"] == "row" or f"uid: {panel['datasource']['uid']}" in provisioned


def test_everything_the_operator_was_promised_is_on_the_dashboard() -> None:
    text = DASHBOARD.read_text()
    for name in (
        *("time_to_first_token_seconds", "time_per_output_token_seconds", "scheduler_queue_seconds", "session_seconds"),
        *("batch_size", "kv_pages", "engine_prefix_hit_tokens_total", "shared_tokens", "scheduler_decisions_total"),
        *("scheduler_failures_total", "scheduler_retries_total"),
    ):
        assert f"myna_{name}" in text
