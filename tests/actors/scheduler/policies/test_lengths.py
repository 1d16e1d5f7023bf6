from __future__ import annotations

import pytest

from myna.actors.messages import Tenant
from myna.actors.scheduler.policies.lengths import FUNCTIONS, UNKNOWN, Lengths

T, U = Tenant("t"), Tenant("u")


def test_a_function_that_is_not_known_yet_is_thought_to_say_as_much_as_others_or_as_it_may() -> None:
    habit = Lengths().of(T, "f")
    assert habit.output(1000) == UNKNOWN
    assert habit.output(10) == 10
    assert habit.fresh == 1.0


def test_the_first_call_of_a_function_teaches_all_and_later_ones_a_part() -> None:
    habit = Lengths().of(T, "f")
    habit.learn_output(40)
    habit.learn_fresh(0.5)
    assert (habit.output(1000), habit.fresh) == (40, 0.5)
    habit.learn_output(90)
    habit.learn_fresh(0.0)
    assert 40 < habit.output(1000) < 90
    assert 0.0 < habit.fresh < 0.5


def test_a_habit_belongs_to_a_function_of_a_tenant() -> None:
    lengths = Lengths()
    lengths.of(T, "f").learn_output(7)
    assert lengths.of(T, "f").output(1000) == 7
    assert lengths.of(U, "f").output(1000) == lengths.of(T, "g").output(1000) == UNKNOWN


def test_of_calls_without_a_name_nothing_is_remembered() -> None:
    lengths = Lengths()
    lengths.of(T, "").learn_output(7)
    assert lengths.of(T, "").output(1000) == UNKNOWN


def test_only_so_many_functions_are_remembered_the_first_is_forgotten() -> None:
    lengths = Lengths()
    for n in range(FUNCTIONS + 1):
        lengths.of(T, f"f{n}").learn_output(7)
    assert lengths.of(T, f"f{FUNCTIONS}").output(1000) == 7
    assert lengths.of(T, "f0").output(1000) == UNKNOWN


def test_the_pace_follows_what_calls_took_and_no_work_teaches_nothing() -> None:
    lengths = Lengths()
    before = lengths.pace
    lengths.took(0.0, 5.0)
    assert lengths.pace == before
    for _ in range(200):
        lengths.took(100.0, 5.0)
    assert lengths.pace == pytest.approx(0.05, rel=0.01)
