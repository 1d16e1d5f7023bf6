"""Rows and panels from an experiment's runs: a ratio is a baseline's time divided by ours, both the medians of their runs.

Law: only runs of one cluster and one engine are compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from tests.benchmarks.experiment.arms import ROUND_TRIP, Arm, Client, Outcome, waiting
from tests.benchmarks.experiment.workloads import Experiment, Measure
from tests.benchmarks.reporting import Row, row

MYNA, MYNA_FAR = Arm(Client.MYNA), Arm(Client.MYNA, ROUND_TRIP)
PLAIN, PLAIN_FAR = waiting(Client.UNCACHED), waiting(Client.UNCACHED, ROUND_TRIP)
CACHED, CACHED_FAR = waiting(Client.CACHED), waiting(Client.CACHED, ROUND_TRIP)
ARMS = (CACHED, MYNA, MYNA_FAR, CACHED_FAR, PLAIN, PLAIN_FAR)
FEW = (CACHED, MYNA, MYNA_FAR, PLAIN_FAR)
"""What targets are about, where time is short; without (a) and the distance, if there is no target to (a)."""
PAIRS = ((PLAIN_FAR, MYNA_FAR), (CACHED, MYNA), (PLAIN, MYNA), (CACHED_FAR, MYNA_FAR))

Taken = dict[Arm, list[list[Outcome]]]
"""The runs of each arm."""


def rows_of(experiment: Experiment, taken: Taken, soonest: Sequence[Outcome] | None = None) -> list[Row]:
    """The ratios of an experiment, each with what it could be at most, if it is known how soon Myna could be done; then the
    seconds of each arm. Arms that have not run yet have no rows."""
    targets = {PLAIN_FAR: experiment.to_a, CACHED: experiment.to_b}
    rows = []
    for baseline, ours in PAIRS:
        if baseline in taken and ours in taken:
            most = None if soonest is None else experiment.measure(soonest)
            rows.append(_ratio(experiment.name, experiment.measure, baseline, ours, taken, targets.get(baseline), most))
            for name, measure, target in experiment.also:
                wanted = target if baseline is CACHED else None
                rows.append(_ratio(f"{experiment.name}; {name}", measure, baseline, ours, taken, wanted))
    return rows + [_seconds(experiment, arm, runs, soonest) for arm, runs in taken.items()]


def _ratio(
    name: str,
    measure: Measure,
    baseline: Arm,
    ours: Arm,
    taken: Taken,
    target: float | None,
    floor: float | None = None,
) -> Row:
    theirs, mine = ([measure(run) for run in taken[arm]] for arm in (baseline, ours))
    metric = f"{1000 * baseline.round_trip:.0f} ms ratio to {baseline.client}"
    pairs = zip(theirs, mine, strict=False)  # one may have run once more than the other so far
    made = row(name, metric, "x", "higher", [a / b for a, b in pairs], target)
    them, us = statistics.median(theirs), statistics.median(mine)
    most = None if floor is None else them / (floor + ours.round_trip)
    return replace(made, value=them / us, baselines={str(baseline): them, str(ours): us}, floor=most)


def _seconds(experiment: Experiment, arm: Arm, runs: list[list[Outcome]], soonest: Sequence[Outcome] | None) -> Row:
    values = [experiment.measure(run) for run in runs]
    made = row(f"{experiment.name}: {experiment.sizes}", f"{arm}: {experiment.metric}", "s", "lower", values)
    if soonest is None or arm.client is not Client.MYNA:
        return made
    return replace(made, floor=experiment.measure(soonest) + arm.round_trip)


def panel_of(arm: Arm, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """A run as its timeline is drawn: its calls, in seconds since its first application began."""
    start = min(o.run.start for o in outcomes)
    return {
        "arm": str(arm),
        "applications": [{"kind": o.kind, "start": o.run.start - start, "end": o.run.end - start} for o in outcomes],
        "calls": [
            asdict(
                replace(
                    c, received=c.received - start, began=c.began - start, first=c.first - start, ended=c.ended - start
                )
            )
            for o in outcomes
            for c in o.run.calls
        ],
    }
