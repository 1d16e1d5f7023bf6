"""A short run of the chaos benchmark: real processes, killed, stopped and cut off while applications run."""

from __future__ import annotations

import pytest

from tests.benchmarks.chaos import Tally, measure

pytestmark = [pytest.mark.nats, pytest.mark.cluster]


@pytest.mark.timeout(300)
async def test_nothing_is_lost_changed_or_doubled_and_nobody_hangs_while_processes_die() -> None:
    tally = Tally()
    await measure(tally, applications=12, faults=8, seed=3, pause=1.0, side_by_side=6)
    assert tally.applications >= 12
    assert sum(tally.faults.values()) == 8
    assert (tally.lost, tally.changed, tally.duplicated, tally.hung) == ([], [], [], [])
