from __future__ import annotations

import random
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from myna.actors.messages import VarId
from myna.sdk.readers import BACK_OFF, LONGEST_BACK_OFF, Lost, Tick
from myna.sdk.readers.values import (
    FEW,
    FIRST_GET,
    Found,
    Get,
    GiveUp,
    Gone,
    Listen,
    Listening,
    Missing,
    Probe,
    Unlisten,
    Unwanted,
    ValueReader,
    Wanted,
)

A, B = VarId("a"), VarId("b")
chances = st.integers(0, 2**32).map(random.Random)


def test_a_fresh_variable_of_a_session_that_is_listened_to_costs_nothing_at_first() -> None:
    reader = ValueReader(listens=True)
    assert reader.handle(Wanted(A, 0.0, fresh=True)) == []
    assert reader.due == FIRST_GET
    assert reader.handle(Found(A)) == []
    assert reader.due is None


def test_an_older_variable_is_asked_for_at_once() -> None:
    assert ValueReader(listens=True).handle(Wanted(A, 0.0)) == [Get(A)]


def test_a_foreign_session_is_subscribed_to_first_and_asked_then() -> None:
    reader = ValueReader(listens=False)
    assert reader.handle(Wanted(A, 0.0)) == [Listen(A)]
    assert reader.handle(Listening(A, 0.0)) == [Get(A)]
    assert reader.handle(Found(A)) == [Unlisten(A)]


def test_many_variables_of_a_foreign_session_are_subscribed_to_at_once() -> None:
    reader = ValueReader(listens=False)
    names = [VarId(f"v{i}") for i in range(FEW + 3)]
    commands = [c for name in names for c in reader.handle(Wanted(name, 0.0))]
    assert commands == [*(Listen(n) for n in names[:FEW]), Listen(None)]
    after = reader.handle(Listening(None, 0.0))
    assert {c.variable for c in after if isinstance(c, Unlisten)} == set(names[:FEW])
    assert [c.variable for c in after if isinstance(c, Get)] == names


def test_gets_back_off_to_a_limit() -> None:
    reader = ValueReader(listens=True)
    assert reader.handle(Wanted(A, 0.0)) == [Get(A)]
    now, pauses = 0.0, []
    for _ in range(9):
        assert reader.handle(Missing(A, now)) == []
        assert reader.due is not None
        pauses.append(reader.due - now)
        now = reader.due
        assert Get(A) in reader.handle(Tick(now))
    assert pauses[:4] == [BACK_OFF, 2 * BACK_OFF, 4 * BACK_OFF, 8 * BACK_OFF]
    assert pauses[-1] == LONGEST_BACK_OFF


def test_after_a_loss_everything_awaited_is_asked_for_once() -> None:
    reader = ValueReader(listens=True)
    reader.handle(Wanted(A, 0.0, fresh=True))
    reader.handle(Wanted(B, 0.0, fresh=True))
    assert reader.handle(Lost(0.5)) == [Get(A), Get(B)]
    assert reader.handle(Lost(0.6)) == []
    assert reader.handle(Wanted(VarId("c"), 1.0, fresh=True)) == [Get(VarId("c"))], "it may have been lost unseen"


def test_what_nobody_waits_for_is_forgotten() -> None:
    reader = ValueReader(listens=True)
    reader.handle(Wanted(A, 0.0, fresh=True))
    reader.handle(Unwanted(A))
    assert reader.due is None
    assert reader.handle(Tick(100.0)) == []
    assert reader.waiting == 0


def test_a_long_wait_asks_whether_the_session_lives_and_a_dead_one_ends_it_after_a_last_look() -> None:
    reader = ValueReader(listens=True)
    reader.handle(Wanted(A, 0.0))
    now, probes = 0.0, 0
    while not probes:
        reader.handle(Missing(A, now))
        assert reader.due is not None
        now = reader.due
        probes += reader.handle(Tick(now)).count(Probe())
    assert reader.handle(Gone(now)) == [], "a get is under way"
    assert reader.handle(Missing(A, now, answered=False)) == [], "no answer proves nothing"
    assert reader.due is not None
    assert Get(A) in reader.handle(Tick(reader.due))
    assert reader.handle(Missing(A, now)) == [GiveUp(A)]
    assert reader.waiting == 0


@given(chances, st.booleans())
def test_whatever_is_lost_every_variable_is_found_or_given_up_with_one_get_at_a_time(
    chance: random.Random, listens: bool
) -> None:
    """A world that loses every other live message, answers some gets late or not at all, and ends the session sometimes."""
    reader = ValueReader(listens=listens)
    names = [VarId(f"v{i}") for i in range(chance.randint(1, FEW + 4))]
    stored: set[VarId] = set()
    found: set[VarId] = set()
    given_up: set[VarId] = set()
    getting: deque[VarId] = deque()
    closed = chance.random() < 0.3
    now = 0.0
    todo: deque[object] = deque(reader.handle(Wanted(names[0], now, fresh=chance.random() < 0.5)))
    for name in names[1:]:
        todo.extend(reader.handle(Wanted(name, now, fresh=chance.random() < 0.5)))
    for _ in range(4000):
        if not reader.waiting and not todo:
            break
        if not closed and len(stored) < len(names) and chance.random() < 0.2:
            name = names[len(stored)]
            stored.add(name)
            if listens and chance.random() < 0.5 and name not in given_up:
                found.add(name)
                todo.extend(reader.handle(Found(name)))
        if chance.random() < 0.05:
            todo.extend(reader.handle(Lost(now)))
        while todo:
            match todo.popleft():
                case Get(variable):
                    assert variable not in getting, "one get at a time"
                    getting.append(variable)
                case Listen(variable):
                    todo.extend(reader.handle(Listening(variable, now)))
                case Probe() if closed:
                    todo.extend(reader.handle(Gone(now)))
                case GiveUp(variable):
                    given_up.add(variable)
        if getting and chance.random() < 0.7:
            name = getting.popleft()
            if name in stored and chance.random() < 0.8:
                found.add(name)
                todo.extend(reader.handle(Found(name)))
            else:
                answered = name not in stored and chance.random() < 0.9
                todo.extend(reader.handle(Missing(name, now, answered)))
        elif reader.due is not None and not getting:
            now = max(now, reader.due)
            todo.extend(reader.handle(Tick(now)))
    assert not reader.waiting
    assert found | given_up == set(names)
    assert not given_up or closed
