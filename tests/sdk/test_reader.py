from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.messages import Cancellation, Chunk, ErrorCode, Failure, Outcome, Value, VarId
from myna.actors.outcomes import Chain
from myna.sdk.reader import (
    BACK_OFF,
    FEW,
    FIRST_GET,
    LONGEST_BACK_OFF,
    Came,
    ChunkCommand,
    ChunkEvent,
    ChunkReader,
    Deliver,
    Ended,
    Finish,
    Found,
    Get,
    GetChunk,
    GiveUp,
    Gone,
    Listen,
    Listening,
    Lost,
    Missing,
    NoChunk,
    Probe,
    Subscribed,
    Tick,
    Unlisten,
    Unwanted,
    ValueReader,
    Wanted,
)

A, B = VarId("a"), VarId("b")
chances = st.integers(0, 2**32).map(random.Random)


# --- Values -----------------------------------------------------------------------------------------------------------


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


# --- Streams ----------------------------------------------------------------------------------------------------------


def chunk(text: str, last: bool = False) -> Chunk:
    return Chunk(attempt=1, text=text, last=last)


def feed(reader: ChunkReader, *events: ChunkEvent) -> list[ChunkCommand]:
    return [command for event in events for command in reader.handle(event)]


def test_a_late_reader_gets_what_went_before_then_what_comes() -> None:
    reader = ChunkReader()
    assert feed(reader, Subscribed()) == [GetChunk(0)]
    assert feed(reader, Came(0, chunk("a"), asked=True)) == [Deliver("a"), GetChunk(1)]
    assert feed(reader, NoChunk(1, 0.0)) == []
    assert feed(reader, Came(1, chunk("b"))) == [Deliver("b")]
    assert feed(reader, Came(2, chunk("c", last=True))) == [Deliver("c")]
    assert feed(reader, Came(3, chunk("d"))) == []
    assert feed(reader, Ended(Value(text="abc"))) == [Finish(True)]
    assert feed(reader, Came(3, chunk("d"))) == []


@pytest.mark.parametrize(
    "outcome",
    [Value(text="another"), Failure(code=ErrorCode.ENGINE_ERROR, message="broke"), Cancellation(reason="enough")],
)
def test_the_last_chunk_is_no_end_where_the_value_is_another_text_or_never_comes(outcome: Outcome) -> None:
    reader = ChunkReader()
    feed(reader, Subscribed())
    assert feed(reader, Came(0, chunk("all", last=True), asked=True)) == [Deliver("all")]
    assert feed(reader, Lost(0.0)) == [], "there is no chunk to ask for"
    assert feed(reader, Ended(outcome)) == [Finish(False, outcome, torn=isinstance(outcome, Value))]


def test_a_gap_is_filled_by_a_get_before_anything_later_is_delivered() -> None:
    reader = ChunkReader()
    feed(reader, Subscribed(), NoChunk(0, 0.0))
    assert feed(reader, Came(1, chunk("b"))) == [GetChunk(0)]
    assert feed(reader, Came(2, chunk("c"))) == []
    assert feed(reader, Came(0, chunk("a"), asked=True))[:3] == [Deliver("a"), Deliver("b"), Deliver("c")]


def test_a_value_ends_the_stream_without_its_chunks() -> None:
    reader = ChunkReader()
    feed(reader, Subscribed(), Came(0, chunk("a"), asked=True))
    assert feed(reader, Ended(Value(text="abc"))) == [Deliver("bc"), Finish(True)]


def test_a_value_that_the_chunks_do_not_lead_to_is_no_end() -> None:
    reader = ChunkReader()
    feed(reader, Subscribed(), Came(0, chunk("a"), asked=True))
    value = Value(text="other")
    assert feed(reader, Ended(value)) == []
    assert feed(reader, NoChunk(1, 0.0)) == [Finish(False, value)]


@pytest.mark.parametrize(
    "outcome", [Failure(code=ErrorCode.ENGINE_ERROR, message="broke"), Cancellation(reason="enough")]
)
def test_a_failure_ends_the_stream_after_what_is_there(outcome: Outcome) -> None:
    reader = ChunkReader()
    feed(reader, Subscribed(), NoChunk(0, 0.0))
    assert feed(reader, Ended(outcome)) == [GetChunk(0)]
    assert feed(reader, Came(0, chunk("a"), asked=True)) == [Deliver("a"), GetChunk(1)]
    assert feed(reader, NoChunk(1, 0.0)) == [Finish(False, outcome)]


def test_a_session_that_ends_ends_the_stream_at_once() -> None:
    reader = ChunkReader()
    feed(reader, Subscribed())
    assert feed(reader, Ended(None)) == [Finish(False)]


def told(before: str, text: str, *, last: bool = False) -> Chunk:
    """A chunk that says what it goes on from."""
    chain = Chain(before)
    return Chunk(attempt=1, text=text, last=last, at=chain.characters, chain=chain.digest)


def test_a_stream_that_was_lost_and_cut_anew_is_gone_on_from_where_its_reader_was() -> None:
    reader = ChunkReader()
    feed(reader, Subscribed(), Came(0, told("", "one "), asked=True), Came(1, told("one ", "two ")))
    # The servers forgot everything. Another attempt makes the same text in larger pieces; its second is the reader's third.
    assert feed(reader, NoChunk(2, 0.0)) == []
    assert feed(reader, Came(2, told("one two three four ", "five ", last=True))) == [GetChunk(0)]
    assert feed(reader, Came(0, told("", "one two "), asked=True)) == [GetChunk(1)]
    answers = (
        Came(1, told("one two ", "three four "), asked=True),
        Came(2, told("one two three four ", "five", last=True)),
    )
    assert feed(reader, *answers) == [Deliver("three four "), GetChunk(2), Deliver("five")]
    assert feed(reader, Ended(Value(text="one two three four five"))) == [Finish(True)]


@pytest.mark.parametrize(
    "piece",
    [
        told("uno ", "two "),  # another text before it
        told("", "on a whim "),  # it contradicts what was delivered
        told("", "one", last=True),  # it ends before what was delivered
    ],
)
def test_a_stream_that_became_another_text_is_torn_and_nothing_of_it_is_delivered(piece: Chunk) -> None:
    reader = ChunkReader()
    feed(reader, Subscribed(), Came(0, told("", "one "), asked=True))
    assert feed(reader, Came(1, piece, asked=True)) == [Finish(False, torn=True)]


def test_a_hole_that_reading_anew_does_not_mend_is_torn_and_no_endless_search() -> None:
    reader = ChunkReader()
    feed(reader, Subscribed(), Came(0, told("", "one "), asked=True))
    hole = told("one two three ", "four")
    assert feed(reader, Came(1, hole, asked=True)) == [GetChunk(0)]
    assert feed(reader, Came(0, told("", "one "), asked=True)) == [GetChunk(1)]
    assert feed(reader, Came(1, hole, asked=True)) == [Finish(False, torn=True)]


@given(
    st.lists(st.text("ab", max_size=3), min_size=1, max_size=8),
    chances,
    st.booleans(),
)
def test_readers_see_the_text_once_in_order_and_whole_whatever_is_lost_or_doubled(
    texts: list[str], chance: random.Random, chunks_are_kept: bool
) -> None:
    """A writer that stores chunks one by one; live copies are lost, doubled and late; gets may go unanswered."""
    whole = "".join(texts)
    reader = ChunkReader()
    stored: list[Chunk] = []
    live: list[ChunkEvent] = []
    asked: list[int] = []
    delivered: list[str] = []
    value_told = False
    finished = False
    now = 0.0
    pending: list[ChunkEvent] = [Subscribed()]
    for _ in range(3000):
        if finished:
            break
        if len(stored) < len(texts) and chance.random() < 0.3:
            n = len(stored)
            stored.append(chunk(texts[n], last=n == len(texts) - 1))
            live += [Came(n, stored[n])] * chance.choice([0, 1, 1, 2])
        if len(stored) == len(texts) and not value_told and chance.random() < 0.2:
            value_told = True
            pending.append(Ended(Value(text=whole)))
        if live and chance.random() < 0.5:
            pending.append(live.pop(chance.randrange(len(live))))
        if asked and chance.random() < 0.6:
            n = asked.pop(0)
            gone = not chunks_are_kept and value_told
            if n < len(stored) and chance.random() < 0.8 and not gone:
                pending.append(Came(n, stored[n], asked=True))
            else:
                pending.append(NoChunk(n, now, answered=n >= len(stored) or gone))
        if chance.random() < 0.05:
            pending.append(Lost(now))
        if not pending and reader.due is not None:
            now = max(now, reader.due)
            pending.append(Tick(now))
        for event in pending:
            for command in reader.handle(event):
                assert not finished, "nothing after the end"
                match command:
                    case Deliver(text):
                        assert text
                        delivered.append(text)
                    case GetChunk(n):
                        assert not asked, "one get at a time"
                        asked.append(n)
                    case Finish(complete, _):
                        finished = True
                        assert complete
        pending = []
        assert whole.startswith("".join(delivered))
    assert finished
    assert "".join(delivered) == whole
