from __future__ import annotations

import pytest

from tests.benchmarks.reporting import row


@pytest.mark.parametrize(("runs", "median"), [([3.0, 1.0], 2.0), ([5.0, 1.0, 2.0], 2.0), ([7.0], 7.0)])
def test_a_row_has_the_median_of_its_runs_however_many(runs: list[float], median: float) -> None:
    made = row("a case", "a metric", "s", "lower", runs)
    assert (made.value, made.runs) == (median, len(runs))
    assert made.spread is not None
    assert made.spread[0] <= median <= made.spread[1]
