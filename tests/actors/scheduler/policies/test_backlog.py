from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from myna.actors.scheduler.policies.backlog import Backlog

prompts = st.lists(st.tuples(st.integers(-3, 3).map(float), st.floats(0.01, 1.0)), max_size=20)


@given(prompts=prompts, passed=st.floats(0.0, 10.0), order=st.floats(-4.0, 4.0))
def test_what_goes_before_a_call_is_computed_first_and_counts_until_then(
    prompts: list[tuple[float, float]], passed: float, order: float
) -> None:
    backlog = Backlog()
    for place, seconds in prompts:
        backlog.add(place, seconds, 5.0)
    before = sum(seconds for place, seconds in prompts if place <= order)
    assert backlog.before(order, 5.0) == pytest.approx(before)
    assert backlog.before(order, 5.0 + passed) == pytest.approx(max(before - passed, 0.0), abs=1e-9)
    backlog.clear(20.0)
    assert backlog.before(order, 20.0) == 0.0


def test_time_without_prompts_is_not_saved_up() -> None:
    backlog = Backlog()
    backlog.add(0.0, 1.0, 0.0)
    backlog.add(0.0, 1.0, 9.0)
    assert backlog.before(0.0, 9.5) == pytest.approx(0.5)
