"""Random fault schedules, replayable by one number; `python -m tests.faults --schedules 100000` runs more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import endless
from tests.faults.play import Report, perform

SCHEDULES, PARTS = 1000, 20


@pytest.mark.parametrize("part", range(PARTS))
def test_every_variable_ends_once_and_well_whatever_fails(part: int) -> None:
    each = SCHEDULES // PARTS
    for seed in range(part * each, (part + 1) * each):
        assert perform(seed).problems == [], f"replay with: python -m tests.faults --seed {seed}"


def test_a_schedule_is_the_same_in_every_process() -> None:
    seed = 7
    command = [sys.executable, "-m", "tests.faults", "--seed", str(seed)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=environment
    )
    assert perform(seed).trace in told.stdout
    assert perform(seed + 1).trace not in told.stdout


def test_a_schedule_that_never_ends_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(seed: int) -> Report:
        while True:
            pass

    monkeypatch.setattr(endless, "perform", spin)
    (problem,) = endless.perform_bounded(7, patience=1).problems
    assert "not over" in problem
    assert "spin" in problem
