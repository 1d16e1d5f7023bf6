from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.messages import Cancellation, Chunk, ErrorCode, Failure, Outcome, Value
from myna.actors.outcomes import Chain
from myna.sdk.readers import Lost, Tick
from myna.sdk.readers.chunks import (
    Came,
    ChunkCommand,
    ChunkEvent,
    ChunkReader,
    Deliver,
    Ended,
    Finish,
    GetChunk,
    NoChunk,
    Subscribed,
)

chances = st.integers(0, 2**32).map(random.Random)


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
