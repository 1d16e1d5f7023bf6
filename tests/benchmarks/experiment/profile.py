"""Where time goes from end to end: `python -m tests.benchmarks.experiment.profile DATA ...`, of pictures' data.

Law: only what workers stamp on values counts, so that every arm is measured by the same clocks; medians over the calls of a run,
in ms. What can't be told apart by stamps is one part.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Panel = dict[str, Any]
"""A run, as `comparing.panel_of` gives it."""


def parts(panel: Panel) -> dict[str, float]:
    """Seconds of each part of a run, by name."""
    calls: Sequence[dict[str, float]] = panel["calls"]
    ends = sorted(call["ended"] for call in calls)
    found: dict[str, list[float | None]] = {
        "client, NATS, scheduler: until the first call is received": [min(call["received"] for call in calls)],
        "a result's end to the receipt of what waited for it": [_since(ends, call["received"]) for call in calls],
        "reading the inputs": [call["began"] - call["received"] for call in calls],
        "queue and prefill, up to the first token": [call["first"] - call["began"] for call in calls],
        "decode, detokenize, publish": [call["ended"] - call["first"] for call in calls],
        "the last result's way to the client": [max(a["end"] for a in panel["applications"]) - ends[-1]],
        "whole run": [max(a["end"] for a in panel["applications"])],
    }
    known = {part: [value for value in values if value is not None] for part, values in found.items()}
    return {part: statistics.median(values) for part, values in known.items() if values}


def _since(ends: Sequence[float], received: float) -> float | None:
    """Seconds since the last end before; None for a call that has waited for none."""
    return min((received - end for end in ends if end <= received), default=None)


def table(data: dict[str, Any]) -> str:
    """The parts of an experiment's runs beside each other, in ms."""
    runs = {panel["arm"]: parts(panel) for panel in data["panels"]}
    lines = [f"| {data['experiment']}, ms | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for part in dict.fromkeys(part for run in runs.values() for part in run):
        figures = (f"{1000 * run[part]:.1f}" if part in run else "" for run in runs.values())
        lines.append(f"| {part} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA")
    for path in parser.parse_args().data:
        print(table(json.loads(path.read_text())), end="\n\n")


if __name__ == "__main__":
    main()
