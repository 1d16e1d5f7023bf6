from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from myna.actors.endpoints.gate import DOWN, FIRST, LONGEST, MOST, Gate


def opened(concurrency: int = 8) -> Gate:
    gate = Gate(concurrency, 0.0)
    gate.answered(0.0)
    return gate


def test_it_is_shut_until_somebody_has_answered_and_is_looked_at_at_once() -> None:
    gate = Gate(8, 10.0)
    assert gate.opening(10.0).paused
    assert gate.due == 10.0
    gate.answered(10.0)
    assert gate.opening(10.0).capacity == 8
    assert gate.due is None


def test_after_a_failure_one_call_at_a_time_is_let_through_until_one_succeeds() -> None:
    gate = opened()
    gate.failed(0.0, 1.0, "it failed")
    assert gate.opening(1.0 + FIRST / 2).paused == "it failed"
    assert gate.opening(1.0 + FIRST).paused, "nobody has looked yet"
    gate.answered(1.0 + FIRST)
    assert gate.opening(1.0 + FIRST).capacity == 1
    assert not gate.opening(1.0 + FIRST).paused
    gate.succeeded()
    assert gate.opening(1.0 + FIRST).capacity == 8


def test_pauses_grow_with_failures_in_a_row_and_calls_begun_before_one_was_known_count_once() -> None:
    gate = opened()
    for began in (0.0, 0.1, 0.9):
        gate.failed(began, 1.0, "it failed")
    assert gate.due == 1.0 + FIRST
    gate.failed(2.0, 2.5, "it failed")
    assert gate.due == 2.5 + 2 * FIRST
    for n in range(40):
        gate.failed(100.0 * n + 3, 100.0 * n + 4, "it failed")
    assert gate.due == 100.0 * 39 + 4 + LONGEST


def test_it_is_worth_waiting_for_a_while_but_not_for_one_that_is_configured_wrongly() -> None:
    gate = opened()
    gate.failed(0.0, 1.0, "it failed")
    assert gate.opening(1.0).serves
    gate.failed(2.0, 1.0 + DOWN, "it failed")
    assert not gate.opening(1.0 + DOWN).serves
    wrong = opened()
    wrong.failed(0.0, 1.0, "no such model", broken=True)
    assert not wrong.opening(1.0).serves
    wrong.answered(1.0 + LONGEST)
    assert wrong.opening(1.0 + LONGEST).serves, "one call may try whether it is mended"


def test_too_many_halves_what_is_asked_at_once_and_each_success_gives_a_little_back() -> None:
    gate = opened(8)
    for _ in range(5):  # all begun before the first answer came
        gate.limited(0.0, 1.0, None)
    assert gate.opening(1.0 + FIRST).capacity == 4
    for _ in range(9):
        gate.succeeded()
    assert gate.opening(2.0).capacity == 5
    for _ in range(1000):
        gate.succeeded()
    assert gate.opening(2.0).capacity == 8


def test_whoever_says_when_to_come_again_is_obeyed_within_reason() -> None:
    gate = opened()
    gate.limited(0.0, 1.0, 7.0)
    assert gate.opening(7.9).paused
    assert gate.opening(7.9).until == 8.0
    assert not gate.opening(8.0).paused
    gate.limited(9.0, 10.0, 1e12)
    assert gate.opening(10.0).until == 10.0 + MOST
    other = opened()
    other.exhausted(5.0, 2.0)
    assert (other.opening(5.0).until, other.opening(7.0).capacity) == (7.0, 8)


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("answered", "succeeded", "limited", "told", "failed", "broken", "exhausted")),
        st.floats(0, 100),
    ),
    max_size=60,
)


@given(_EVENTS, st.integers(1, 64))
def test_whatever_happens_it_opens_again_once_somebody_answers(
    events: list[tuple[str, float]], concurrency: int
) -> None:
    gate, now = Gate(concurrency, 0.0), 0.0
    for what, passed in events:
        before, now = now, now + passed
        match what:
            case "answered":
                gate.answered(now)
            case "succeeded":
                gate.succeeded()
            case "limited":
                gate.limited(before, now, None)
            case "told":
                gate.limited(before, now, passed)
            case "exhausted":
                gate.exhausted(now, passed)
            case _:
                gate.failed(before, now, what, broken=what == "broken")
        opening = gate.opening(now)
        assert 1 <= opening.capacity <= concurrency
        assert (opening.until is None) == (not opening.paused)
        assert opening.serves or opening.paused
    now = gate.opening(now).until or now
    gate.answered(now)
    assert not gate.opening(now).paused
    gate.succeeded()
    assert gate.due is None
