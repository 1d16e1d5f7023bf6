from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from myna.actors.messages import Tenant, WorkerId
from myna.actors.scheduler.policies.prefixes import Boundary, Chain, chained
from myna.actors.scheduler.policies.residents import KNOWN, LONGEST, OVERDUE, SHARE, Residents

KEY = (Tenant("t"), "agent")
WORKER = WorkerId("w")
SYSTEM = Boundary(hash("instructions"), 40.0)
"""What all conversations begin with, unless a test says otherwise."""


class Rooms:
    """What is kept on each worker."""

    def __init__(self, memory: float | None = None) -> None:
        self.kept: dict[WorkerId, float] = {WORKER: 0.0}
        self.residents = Residents(self.kept.__setitem__)
        self._memory = memory

    def begin(self, session: int, number: int, at: float) -> None:
        """A turn begins."""
        self.residents.began((session, number), turn(session, number), at)
        self.residents.check()

    def end(self, session: int, number: int, at: float, head: Boundary = SYSTEM) -> None:
        """A turn has ended."""
        self.residents.left((session, number), turn(session, number), head, KEY, WORKER, self._memory, at)
        self.residents.check()

    def teach(self) -> None:
        """It is learned that such calls are commonly gone on with; nothing is kept any more."""
        converse(self, -1, KNOWN, -1000.0)
        self.residents.expire(-1.0)
        assert self.kept[WORKER] == 0.0


def turn(session: int, number: int) -> Chain:
    """Turn `number` of a conversation: it begins with the whole of the turn before."""
    names = [Boundary(hash((session, n)), 100.0 * (n + 1)) for n in range(2 * number + 2)]
    return chained(tuple(names), 2 * number + 1)


def converse(rooms: Rooms, session: int, turns: int, at: float, gap: float = 2.0) -> float:
    """A conversation, each turn after `gap` seconds. Returns when its last turn ended."""
    for number in range(turns):
        rooms.begin(session, number, at)
        rooms.end(session, number, at)
        at += gap
    return at - gap


def test_room_is_kept_for_a_function_whose_calls_are_commonly_gone_on_with_and_given_up_in_time() -> None:
    rooms = Rooms()
    now = converse(rooms, 1, 30, 0.0)
    assert rooms.kept[WORKER] == 100.0 * 2 * 30
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


def test_what_conversations_begin_with_in_common_counts_once_and_what_is_their_own_for_each() -> None:
    for heads, kept in (
        ((SYSTEM, SYSTEM), 40.0 + 2 * 160.0),
        ((Boundary(hash("repository 1"), 150.0), Boundary(hash("repository 2"), 150.0)), 2 * 200.0),
    ):
        rooms = Rooms()
        rooms.teach()
        for session, head in enumerate(heads):
            rooms.begin(session, 0, 0.0)
            rooms.end(session, 0, 0.0, head)
        assert rooms.kept[WORKER] == kept
        rooms.residents.expire(LONGEST)
        assert rooms.kept[WORKER] == 0.0


def test_a_context_stays_kept_while_a_call_goes_on_with_it_until_that_has_ended() -> None:
    rooms = Rooms()
    rooms.teach()
    rooms.begin(1, 0, 0.0)
    rooms.end(1, 0, 1.0)
    rooms.begin(1, 1, 2.0)
    rooms.residents.expire(2.0 + LONGEST)
    assert rooms.kept[WORKER] == 200.0, "the call's cost is only what it adds"
    rooms.end(1, 1, 100.0)
    assert rooms.kept[WORKER] == 400.0
    rooms.begin(1, 2, 101.0)
    rooms.residents.ended((1, 2))  # it failed
    assert rooms.kept[WORKER] == 0.0


def test_contexts_that_do_not_fit_are_parked_the_smallest_first_and_the_same_ones_again() -> None:
    rooms = Rooms(memory=1000.0 / SHARE)
    rooms.teach()
    for session, number in ((1, 2), (2, 1)):
        rooms.begin(session, number, 0.0)
        rooms.end(session, number, 0.0)
    assert rooms.kept[WORKER] == 600.0 + 360.0
    for at in (1.0, 2.0):
        rooms.begin(3, 0, at)
        rooms.end(3, 0, at)
        there = [rooms.residents.where(turn(*next_turn)) for next_turn in ((1, 3), (2, 2), (3, 1))]
        assert there == [WORKER, WORKER, None]
        assert rooms.kept[WORKER] == 600.0 + 360.0
    rooms.residents.lost(WORKER)
    assert rooms.kept[WORKER] == 0.0
    assert not rooms.residents.any


def test_a_call_waits_for_room_to_stay_for_a_while_and_such_calls_come_in_one_at_a_time() -> None:
    rooms = Rooms()
    rooms.teach()
    rooms.begin(1, 0, 0.0)
    rooms.end(1, 0, 0.0)
    assert rooms.residents.stays(KEY)
    assert not rooms.residents.stays((Tenant("t"), "another"))
    assert not rooms.residents.overdue(WORKER, 0.0, OVERDUE)
    now = OVERDUE + 1.0
    assert rooms.residents.overdue(WORKER, 0.0, now)
    rooms.residents.let_in(WORKER, now + 5.0)
    assert not rooms.residents.overdue(WORKER, 0.0, now + 5.0)
    assert rooms.residents.overdue(WORKER, 0.0, now + 6.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.floats(0.0, 9.0), st.booleans()), max_size=120),
    st.sampled_from([None, 700.0]),
)
def test_what_is_kept_is_never_negative_and_all_given_up_in_the_end(
    steps: list[tuple[int, int, float, bool]], memory: float | None
) -> None:
    rooms, now = Rooms(memory), 0.0
    for session, number, seconds, ends in steps:
        now += seconds
        rooms.residents.expire(now)
        rooms.begin(session, number, now)
        if ends:
            rooms.end(session, number, now)
        assert rooms.kept[WORKER] >= 0.0
    for session, number, _, _ in steps:
        rooms.residents.ended((session, number))
    rooms.residents.expire(now + LONGEST + 1.0)
    assert rooms.kept[WORKER] == 0.0
    assert not rooms.residents.any
