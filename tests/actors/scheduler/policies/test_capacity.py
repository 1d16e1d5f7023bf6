from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import structs

from myna.actors.scheduler.policies.capacity import (
    AWAITED,
    BACKLOG,
    CALM,
    MANY,
    SOLE,
    STRETCH,
    Cost,
    Demanded,
    Occupancy,
)
from myna.actors.scheduler.policies.steps import StepModel

CHAT = Cost(300.0, 200.0, 100.0, paced=True)
BATCH = Cost(1600.0, 1500.0, 100.0)


def measured(base: float = 0.007, slope: float = 2e-5, prefill: float = 3e-5) -> Occupancy:
    occupancy = Occupancy()
    for drawn, prompt in ((1, 0), (60, 500), (10, 1500), (120, 100), (30, 900)) * 12:
        occupancy.steps.observe(drawn, prompt, base + slope * drawn + prefill * prompt)
    return occupancy


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-3, 0.05), st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-4), st.randoms(use_true_random=False))
def test_step_times_are_learned_from_the_totals_of_beats(
    base: float, slope: float, prefill: float, rng: object
) -> None:
    model = StepModel()
    totals = dict.fromkeys(("steps", "step_seconds", "computed_tokens", "drawn_tokens"), 0.0)
    for n in range(120):
        drawn, prompt, steps = float(n * 37 % 101), float(n * 53 % 1009), 20
        totals["steps"] += steps
        totals["step_seconds"] += steps * (base + slope * drawn + prefill * prompt)
        totals["drawn_tokens"] += steps * drawn
        totals["computed_tokens"] += steps * (drawn + prompt)
        model.hear(totals)
    for drawn, prompt in ((1, 0), (80, 0), (40, 800)):
        assert model.step(drawn, prompt) == pytest.approx(base + slope * drawn + prefill * prompt, rel=0.15)


def test_an_engine_that_was_restarted_counts_from_nothing_and_is_believed_again() -> None:
    model = StepModel()
    totals = {"steps": 100.0, "step_seconds": 1.0, "computed_tokens": 100.0, "drawn_tokens": 100.0}
    model.hear(totals)
    model.hear(dict.fromkeys(totals, 0.0))
    assert not model.measured
    model.hear({"steps": 10.0, "step_seconds": 0.1, "computed_tokens": 10.0, "drawn_tokens": 10.0})
    assert model.measured


def test_an_engine_of_paced_work_takes_other_work_only_while_its_step_stays_within_the_bound() -> None:
    occupancy = measured()
    occupancy.add(CHAT, 0.0)
    taken = 0
    pressure = BATCH.pressure / 50  # hardly any prompts
    while occupancy.opens(pressure, sole=False):
        occupancy.add(Cost(1.0, pressure, 1.0), 0.0)
        taken += 1
    assert 1 <= taken < 20
    assert occupancy.step() <= STRETCH * occupancy.steps.alone * 1.05


def test_a_sole_engine_takes_more_other_work_than_one_of_several_and_still_not_more_than_was_asked_for() -> None:
    taken = {}
    for sole in (False, True):
        occupancy = measured()
        occupancy.add(CHAT, 0.0)
        while occupancy.opens(BATCH.pressure, sole=sole):
            occupancy.add(BATCH, 0.0)
        taken[sole] = occupancy.other
        assert occupancy.step() <= (SOLE if sole else STRETCH) * occupancy.steps.alone
    assert taken[True] > 5 > taken[False]
    asked = measured()
    asked.add(Cost(300.0, 200.0, 100.0, paced=True, tpot=1.05 * asked.steps.alone), 0.0)
    asked.add(BATCH, 0.0)
    assert not asked.opens(BATCH.pressure, sole=True)


def test_a_sole_engine_on_which_no_paced_call_runs_just_now_takes_other_work_as_it_comes() -> None:
    occupancy = measured()
    occupancy.add(CHAT, 0.0)
    occupancy.remove(CHAT, 1.0)
    for _ in range(200):
        assert occupancy.opens(BATCH.pressure, sole=True)
        occupancy.add(BATCH, 1.0)
    assert not occupancy.opens(BATCH.pressure, sole=False)
    occupancy.add(CHAT, 2.0)
    assert not occupancy.opens(BATCH.pressure, sole=True)


def test_one_call_of_other_work_is_taken_where_nobody_else_serves_it_and_before_measurement_there_is_no_limit() -> None:
    occupancy = measured()
    for _ in range(500):
        occupancy.add(CHAT, 0.0)
    assert occupancy.opens(BATCH.pressure, sole=True)
    assert not occupancy.opens(BATCH.pressure, sole=False)
    fresh = Occupancy()
    for _ in range(100):
        fresh.add(BATCH, 0.0)
    assert fresh.opens(BATCH.pressure, sole=False)
    assert fresh.backlog(0.0) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_prompts_that_can_wait_are_taken_the_more_slowly_the_more_calls_go_before_them(
    before_it: int, after_it: int, awaited: bool
) -> None:
    occupancy = measured()
    for n in range(before_it + after_it):
        occupancy.add(Cost(300.0, 0.0, 100.0, pressing=True, order=1.0 if n < before_it else 3.0), 0.0)
    occupancy.add(structs.replace(BATCH, order=2.0, awaited=awaited), 0.0)
    alone = BATCH.prefill * occupancy.steps.prompt_seconds
    calm = CALM * AWAITED if awaited else CALM
    assert occupancy.backlog(0.0) == pytest.approx(alone * (1 + max(0, before_it - MANY) / calm))
    occupancy.check()
    before = occupancy.backlog(0.0)
    occupancy.add(Cost(300.0, 10.0, 100.0, pressing=True), 0.0)
    assert occupancy.busy_until == pytest.approx(alone + 10 * occupancy.steps.prompt_seconds)
    assert occupancy.backlog(0.0) == pytest.approx(max(before, occupancy.busy_until)), "a pressing one is not slowed"


def test_an_engine_that_has_nothing_left_rests_no_longer() -> None:
    occupancy = measured()
    pressing = [Cost(300.0, 0.0, 100.0, pressing=True)] * 60
    for cost in (*pressing, *[BATCH] * 20):
        occupancy.add(cost, 0.0)
    assert occupancy.backlog(1.0) > BACKLOG
    for cost in (*pressing, *[BATCH] * 20):
        occupancy.remove(cost, 1.0)
    assert occupancy.backlog(1.0) == 0.0


def test_the_time_per_token_that_was_asked_for_is_the_bound() -> None:
    occupancy = measured()
    occupancy.add(Cost(1.0, 0.0, 1.0, paced=True, tpot=0.03), 0.0)
    assert occupancy.bound() == 0.03
    occupancy.remove(Cost(1.0, 0.0, 1.0, paced=True, tpot=0.03), 1.0)
    assert occupancy.bound() == pytest.approx(STRETCH * occupancy.steps.alone)


def test_a_backlog_shrinks_with_time_and_is_corrected_by_beats() -> None:
    occupancy = measured()
    for _ in range(20):
        occupancy.add(BATCH, 10.0)
    assert occupancy.backlog(10.0) == pytest.approx(20 * 1500 * occupancy.steps.prompt_seconds)
    assert occupancy.backlog(1e6) == 0.0
    occupancy.hear({"waiting": 2.0}, 10.5)
    assert occupancy.backlog(10.5) == pytest.approx(2 * 1500 * occupancy.steps.prompt_seconds)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from((CHAT, BATCH, Cost(5.0, 1.0, 3.0, paced=True, tpot=0.1))), max_size=30))
def test_what_was_added_and_removed_leaves_nothing(costs: list[Cost]) -> None:
    occupancy = Occupancy()
    for cost in costs:
        occupancy.add(cost, 0.0)
        occupancy.check()
    for cost in costs:
        occupancy.remove(cost, 1.0)
        occupancy.check()
    assert (occupancy.tokens, occupancy.pressure, occupancy.paced, occupancy.other) == (0.0, 0.0, 0, 0)


def test_engines_are_reserved_by_the_part_of_paced_work_and_at_least_one() -> None:
    demanded = Demanded()
    demanded.add(10.0, 1.0, patient=False)
    assert demanded.homes(8) == 8
    demanded.add(30.0, 1.0, patient=True)
    assert demanded.homes(8) == 2
    demanded.add(1e6, 1.0, patient=True)
    assert demanded.homes(8) == 1
