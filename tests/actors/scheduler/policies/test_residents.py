from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from myna.actors.messages import Tenant, WorkerId
from myna.actors.scheduler.policies.prefixes import Boundary, Chain, chained
from myna.actors.scheduler.policies.residents import KNOWN, LONGEST, Residents

KEY = (Tenant("t"), "agent")
WORKER = WorkerId("w")


class Rooms:
    """What is kept on each worker."""

    def __init__(self) -> None:
        self.kept: Counter[WorkerId] = Counter()
        self.residents = Residents(self._change)

    def _change(self, worker: WorkerId, tokens: float) -> None:
        self.kept[worker] += tokens  # type: ignore[assignment]


def turn(session: int, number: int) -> Chain:
    """Turn `number` of a conversation: it begins with the whole of the turn before."""
    names = [Boundary(hash((session, n)), 100.0 * (n + 1)) for n in range(2 * number + 2)]
    return chained(tuple(names), 2 * number + 1)


def converse(rooms: Rooms, session: int, turns: int, at: float, gap: float = 2.0) -> float:
    """A conversation, each turn after `gap` seconds. Returns when its last turn ended."""
    for number in range(turns):
        rooms.residents.began(turn(session, number), at)
        rooms.residents.left(turn(session, number), KEY, WORKER, 100.0, at)
        at += gap
    return at - gap


def test_room_is_kept_for_a_function_whose_calls_are_commonly_gone_on_with_and_given_up_in_time() -> None:
    rooms = Rooms()
    now = converse(rooms, 1, 30, 0.0)
    assert rooms.kept[WORKER] == 100.0
    rooms.residents.expire(now + 100.0)
    assert rooms.kept[WORKER] == 0.0
    assert not rooms.residents.any


def test_no_room_is_kept_for_calls_that_are_never_gone_on_with() -> None:
    rooms = Rooms()
    for session in range(50):
        converse(rooms, session, 1, float(session))
        rooms.residents.expire(float(session))
    assert rooms.kept[WORKER] == 0.0
    returns = rooms.residents.returns(KEY)
    assert returns is not None
    assert returns[1] == 0.0


def test_how_soon_a_function_is_gone_on_with_is_learned_and_unknown_at_first() -> None:
    rooms = Rooms()
    converse(rooms, 1, 3, 0.0, gap=5.0)
    assert rooms.residents.returns(KEY) is None
    converse(rooms, 2, 4 * KNOWN, 100.0, gap=5.0)
    gap, patience = rooms.residents.returns(KEY) or (0.0, 0.0)
    assert gap == pytest.approx(5.0, rel=0.05)
    assert gap < patience <= LONGEST


def test_a_next_turn_is_known_by_what_it_begins_with() -> None:
    rooms = Rooms()
    converse(rooms, 1, 2, 0.0)
    assert rooms.residents.where(turn(1, 2)) == WORKER
    assert rooms.residents.where(turn(2, 2)) is None
    rooms.residents.lost(WORKER)
    assert rooms.residents.where(turn(1, 2)) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.floats(0.0, 9.0)), max_size=120))
def test_what_is_kept_is_never_negative_and_all_given_up_in_the_end(steps: list[tuple[int, int, float]]) -> None:
    rooms, now = Rooms(), 0.0
    for session, number, seconds in steps:
        now += seconds
        rooms.residents.expire(now)
        rooms.residents.began(turn(session, number), now)
        rooms.residents.left(turn(session, number), KEY, WORKER, 100.0, now)
        assert rooms.kept[WORKER] >= 0.0
    rooms.residents.expire(now + LONGEST + 1.0)
    assert rooms.kept[WORKER] == 0.0
    assert not rooms.residents.any
