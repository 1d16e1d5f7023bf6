"""The regression guard: every experiment at the tiny scale, its ratios beside the committed ones. `make bench-smoke`: minutes.

    python -m tests.benchmarks.experiment.smoke [--record]

Ratios are compared, not times: machines differ, and what a ratio is made of slows down alike. Where the round trip of 244 ms
makes most of it, a ratio may fall to `FAR` of the committed one; at 0 ms, where a tiny run takes some hundredths of a second,
to `NEAR`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.experiment.running import Engine, Extent, bench
from tests.benchmarks.experiment.workloads import EXPERIMENTS, Scale
from tests.benchmarks.reporting import Row, write

RECORD = Path(__file__).parents[1] / "results" / "smoke" / "experiments.json"
FAR, NEAR = 0.75, 0.5
RUNS = 2

Ratios = Mapping[tuple[str, str], float]


def ratios(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """The ratios among the rows, by case and metric."""
    return {(r.case, r.metric): r.value for r in rows if r.unit == "x"}


def recorded(path: Path = RECORD) -> dict[tuple[str, str], float]:
    """The committed ones."""
    rows = json.loads(path.read_text())["rows"]
    return {(r["case"], r["metric"]): r["value"] for r in rows if r["unit"] == "x"}


def fallen(now: Ratios, before: Ratios) -> list[str]:
    """What is missing, or has fallen by more than its tolerance: a sentence for each."""
    found = []
    for (case, metric), was in before.items():
        value = now.get((case, metric))
        least = was * (FAR if metric.startswith("244 ms") else NEAR)
        if value is None:
            found.append(f"{case}, {metric}: was not measured; {was:.2f} is on record")
        elif value < least:
            found.append(f"{case}, {metric}: {value:.2f}; {was:.2f} is on record, so at least {least:.2f} is wanted")
    return found


def measure() -> Sequence[Row]:
    """All experiments, tiny."""
    engine = Engine(Scale.TINY, "tiny", "cpu")
    return asyncio.run(bench(engine, EXPERIMENTS[Scale.TINY], Extent(RUNS, few=True))).rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="make the record that later runs are compared with")
    arguments = parser.parse_args()
    rows = list(measure())
    if arguments.record:
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        write(RECORD, "experiments_smoke", rows)
        return 0
    problems = fallen(ratios(rows), recorded())
    print("\n".join(problems) or "no ratio has fallen")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
