"""Figures from results: a bar for each arm of an experiment, and a run of Myna's beside one of the waiting client's.

Law: a figure shows what its JSON file holds, nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from myna.sdk.timeline import CallTimes, Panel, draw

COLOURS = {"(a)": "#BBBBBB", "(b)": "#E69F00", "Myna": "#009E73"}
MOST = 40
"""Calls that a timeline shows at most: more can't be read."""


def bars(name: str, arms: Sequence[dict[str, Any]], path: Path) -> None:
    """Median, 10th and 90th percentile of the seconds of each arm, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.55 + 0.42 * len(arms)), layout="constrained", dpi=130)
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        colour = next(colour for start, colour in COLOURS.items() if arm["arm"].startswith(start))
        low, high = arm["spread"]
        error = [[max(arm["seconds"] - low, 0.0)], [max(high - arm["seconds"], 0.0)]]
        axes.barh(place, arm["seconds"], color=colour, height=0.7, xerr=error, error_kw={"linewidth": 1, "capsize": 2})
        axes.annotate(
            f"{arm['seconds']:.2f} s", (high, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(arms)), [arm["arm"] for arm in arms], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(name, loc="left", fontsize=9)
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def timelines(name: str, panels: Sequence[dict[str, Any]], path: Path) -> None:
    """The calls of each panel's run, below each other, as a PNG."""
    draw([[_panel(panel) for panel in panels]], path, name)


def _panel(data: dict[str, Any]) -> Panel:
    calls = tuple(CallTimes(**call) for call in data["calls"][:MOST])
    left_out = len(data["calls"]) - len(calls)
    title = data["arm"] + (f" (the first {MOST} of {len(data['calls'])} calls)" if left_out else "")
    return Panel(title, calls, 0.0, max(a["end"] for a in data["applications"]))


def arms_of(rows: Sequence[dict[str, Any]], name: str, sizes: str) -> list[dict[str, Any]]:
    """The arms of an experiment in a report's rows, the waiting clients first."""
    found = [
        {"arm": row["metric"].split(": ")[0], "seconds": row["value"], "spread": row["spread"]}
        for row in rows
        if row["case"] == f"{name}: {sizes}"
    ]
    return sorted(found, key=lambda arm: (arm["arm"].partition(", ")[2].endswith("244 ms"), arm["arm"]))


def file_name(name: str) -> str:
    """An experiment's name as a file's."""
    return name.replace(",", "").replace(" ", "-")


def draw_all(report: dict[str, Any], runs: dict[str, Any], folder: Path) -> list[Path]:
    """Every picture of a report, and beside it the data of it."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for name, run in runs.items():
        arms = arms_of(report["rows"], name, run["sizes"])
        path = folder / f"{file_name(name)}.png"
        bars(f"{name}: {run['sizes']}", arms, path)
        timeline = folder / f"{file_name(name)}-timeline.png"
        timelines(name, run["panels"], timeline)
        data = {"experiment": name, "sizes": run["sizes"], "arms": arms, "panels": run["panels"]}
        path.with_suffix(".json").write_text(json.dumps(data) + "\n")
        made += [path, timeline]
    return made
