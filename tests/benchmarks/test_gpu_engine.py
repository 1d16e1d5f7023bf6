from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu_engine import MAP_REDUCE, PREFILLS, STEPS, TINY, Bench, Report, StepCase, measure
from tests.benchmarks.reporting import write

FLOORS = [5.35, None, None, 5.60, 6.30, 6.06, 7.49]
"""Of a step, in ms, as the issue has them."""


@pytest.mark.parametrize(
    ("case", "floor"), [pair for pair in zip(STEPS, FLOORS, strict=True) if pair[1]], ids=lambda each: str(each)
)
def test_floors_are_those_of_the_issue(case: StepCase, floor: float) -> None:
    assert case.floor() == pytest.approx(floor, abs=0.02)


def test_no_prefill_target_lies_beyond_what_the_arithmetic_allows() -> None:
    assert all(case.target < case.ceiling() < 1.4 * case.target for case in PREFILLS)


def test_it_runs_where_there_is_no_gpu_and_writes_its_report(tmp_path: Path) -> None:
    report = Report(compared=False)
    measure(Bench(TINY, torch.device("cpu")), report, [STEPS[0], PREFILLS[0], MAP_REDUCE], runs=1)
    write(tmp_path / "report.json", "gpu_engine", report.rows)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["metric"], row["unit"]) for row in rows] == [("step", "ms"), ("prefill", "tokens/s"), ("job", "s")]
    assert all(row["value"] > 0 for row in rows[1:])
