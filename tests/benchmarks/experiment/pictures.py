"""Figures from results: a bar for each arm of an experiment, and a run of Myna's beside one of the waiting client's.

    python -m tests.benchmarks.experiment.pictures RESULTS FOLDER [--timelines FILE]

Law: a figure shows what its JSON file holds, nothing else. Without timelines there are bars alone, of the modelled cases that
have none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from myna.sdk.timeline import CallTimes, Panel, draw

COLOURS = {"(a)": "#BBBBBB", "(b)": "#E69F00", "(c)": "#56B4E9", "(d)": "#0072B2", "Myna": "#009E73"}
MODELLED = "simulated, engines:"
MOST = 40
"""Calls that a timeline shows at most: more can't be read."""


def bars(name: str, arms: Sequence[dict[str, Any]], path: Path, unit: str = "seconds") -> None:
    """Median, 10th and 90th percentile of the figure of each arm, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.55 + 0.42 * len(arms)), layout="constrained", dpi=130)
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        colour = next(colour for start, colour in COLOURS.items() if arm["arm"].startswith(start))
        low, high = arm["spread"]
        value = arm["value"]
        error = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
        axes.barh(place, value, color=colour, height=0.7, xerr=error, error_kw={"linewidth": 1, "capsize": 2})
        axes.annotate(f"{value:.3g}", (high, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(arms)), [arm["arm"] for arm in arms], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(name, loc="left", fontsize=9)
    axes.set_xlabel(unit, fontsize=8)
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
        {"arm": row["metric"].split(": ")[0], "value": row["value"], "spread": row["spread"]}
        for row in rows
        if row["case"] == f"{name}: {sizes}"
    ]
    return sorted(found, key=lambda arm: (arm["arm"].partition(", ")[2].endswith("244 ms"), arm["arm"]))


def file_name(name: str) -> str:
    """An experiment's name as a file's."""
    return name.replace(",", "").replace(";", "").replace(" ", "-")


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


def draw_modelled(report: dict[str, Any], folder: Path) -> list[Path]:
    """The cases of modelled engines that are no experiments of one: a bar for each arm."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {row["case"]: row["unit"] for row in report["rows"] if MODELLED in row["case"]}
    made: list[Path] = []
    for case, unit in cases.items():
        name, _, sizes = case.partition(": ")
        made.append(folder / f"{file_name(name)}.png")
        bars(case, arms_of(report["rows"], name, sizes), made[-1], {"s": "seconds"}.get(unit, unit))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timelines", type=Path, help="those that were written with the results")
    arguments = parser.parse_args()
    report = json.loads(arguments.results.read_text())
    if arguments.timelines is None:
        made = draw_modelled(report, arguments.folder)
    else:
        made = draw_all(report, json.loads(arguments.timelines.read_text()), arguments.folder)
    print("\n".join(map(str, made)))


if __name__ == "__main__":
    main()
