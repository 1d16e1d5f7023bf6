from __future__ import annotations

import pytest
import torch

from tests.benchmarks.gpu_engine import TINY, Bench
from tests.benchmarks.joining import measure


def test_each_width_has_its_step_and_what_its_tokens_cost_where_there_is_no_gpu() -> None:
    rows = {(r.case, r.metric): r for r in measure(Bench(TINY, torch.device("cpu")), (1, 2, 24), runs=1)}
    assert set(rows) == {
        *((f"{n} rows", "step") for n in (1, 2, 24)),
        *((f"{n} rows", "joined, each") for n in (2, 24)),
    }
    joined = rows["24 rows", "joined, each"]
    steps = [rows[f"{n} rows", "step"].value for n in (1, 24)]
    assert joined.value == pytest.approx(1e3 * (steps[1] - steps[0]) / 23)
    assert joined.baselines["alone"] > 0
