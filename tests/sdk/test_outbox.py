from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors import codec
from myna.actors.bus import Unavailable
from myna.actors.messages import (
    Cancel,
    Close,
    Declare,
    LogEntry,
    Message,
    ModelCall,
    Objective,
    ObjectiveKind,
    Output,
    Submit,
    Text,
    Unwant,
    Want,
)
from myna.sdk.outbox import MOST_CALLS, Outbox, concerned, halves, pack

SOON = Objective(kind=ObjectiveKind.LATENCY)


def call(name: str, size: int = 0) -> ModelCall:
    segments = (Text(text="x" * size), Output(variables=(f"{name}-out",)))
    return ModelCall(id=name, messages=(Message(segments=segments),))


entries = st.one_of(
    st.text("abc", min_size=1, max_size=3).map(lambda n: Submit(calls=(call(n),))),
    st.text("abc", min_size=1, max_size=3).map(lambda n: Declare(variables=(n,))),
    st.tuples(st.text("abc", min_size=1, max_size=3), st.sampled_from([None, SOON])).map(
        lambda t: Want(variables=(t[0],), objective=t[1])
    ),
    st.text("abc", min_size=1, max_size=3).map(lambda n: Unwant(variables=(n,))),
    st.just(Cancel()),
    st.just(Close()),
)


def flat(history: Sequence[LogEntry]) -> list[object]:
    """What a history says, one thing after another."""
    said: list[object] = []
    for entry in history:
        match entry:
            case Submit(calls=calls):
                said += calls
            case Declare(variables=names):
                said += [("declare", n) for n in names]
            case Want(variables=names, objective=objective):
                said += [("want", n, objective) for n in names]
            case Unwant(variables=names):
                said += [("unwant", n) for n in names]
            case _:
                said.append(entry)
    return said


def told(history: Sequence[LogEntry]) -> list[object]:
    """The calls, cancellations and ends of a history."""
    return [x for x in flat(history) if isinstance(x, ModelCall | Cancel | Close)]


def kind(entry: LogEntry) -> int:
    """Declarations go before wants, and wants before calls; nothing passes an entry of another kind."""
    order: dict[type, int] = {Declare: 0, Want: 1, Submit: 2}
    return order.get(type(entry), 3)


@given(st.lists(entries, max_size=30))
def test_packing_says_the_same_with_needs_before_calls_and_moves_nothing_past_an_end(history: list[LogEntry]) -> None:
    packed = pack(history)
    assert len(packed) <= len(history)
    assert told(packed) == told(history)
    sorted_: list[LogEntry] = []
    stretch: list[LogEntry] = []
    for entry in [*history, Close()]:
        if kind(entry) < 3:
            stretch.append(entry)
        else:
            sorted_ += [*sorted(stretch, key=kind), entry]
            stretch = []
    assert list(dict.fromkeys(map(repr, flat(packed)))) == list(dict.fromkeys(map(repr, flat(sorted_[:-1]))))


def test_what_a_call_is_needed_for_is_said_before_it() -> None:
    wanted = Want(variables=("a-out",), objective=SOON, reader="me")
    assert pack([Submit(calls=(call("a"),)), wanted]) == [wanted, Submit(calls=(call("a"),))]


def test_neighbours_of_one_kind_become_one_entry() -> None:
    history: list[LogEntry] = [Submit(calls=(call(str(i)),)) for i in range(MOST_CALLS + 1)]
    assert [len(e.calls) for e in pack(history) if isinstance(e, Submit)] == [MOST_CALLS, 1]
    wants: list[LogEntry] = [Want(variables=("a",)), Want(variables=("a", "b")), Want(variables=("a",), objective=SOON)]
    assert pack(wants) == [Want(variables=("a", "b")), Want(variables=("a",), objective=SOON)]


def test_halves_say_together_what_the_whole_said() -> None:
    whole = Submit(calls=tuple(call(str(i)) for i in range(5)))
    parts = halves(whole)
    assert parts is not None
    assert flat(parts) == list(whole.calls)
    assert halves(Submit(calls=(call("a"),))) is None
    assert halves(Close()) is None
    assert concerned(whole) == tuple(f"{i}-out" for i in range(5))


class Log:
    """A log that takes what `refuses` does not refuse."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.failed: list[tuple[tuple[str, ...], Exception]] = []
        self.refuses: Exception | None = None

    async def append(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses
        entry: LogEntry = codec.decode(data, LogEntry)
        self.entries.append(entry)

    def fail(self, variables: Sequence[str], error: Exception) -> None:
        self.failed.append((tuple(variables), error))


async def drive(log: Log) -> tuple[Outbox, asyncio.Task[None]]:
    outbox = Outbox(log.append, log.fail)
    return outbox, asyncio.create_task(outbox.run())


async def test_what_is_said_in_one_turn_is_one_entry() -> None:
    log = Log()
    outbox, task = await drive(log)
    for i in range(50):
        outbox.say(Submit(calls=(call(str(i)),)))
    await outbox.flush()
    outbox.say(Submit(calls=(call("later"),)))
    await outbox.flush()
    task.cancel()
    assert [len(e.calls) for e in log.entries if isinstance(e, Submit)] == [50, 1]


async def test_an_entry_over_the_limit_is_divided_and_only_the_call_that_is_too_large_fails() -> None:
    log = Log()
    outbox, task = await drive(log)
    sizes = [3_000_000, 3_000_000, 3_000_000, codec.MAX_PAYLOAD, 10]
    for i, size in enumerate(sizes):
        outbox.say(Submit(calls=(call(str(i), size),)))
    await outbox.flush()
    task.cancel()
    stored = [c.id for e in log.entries if isinstance(e, Submit) for c in e.calls]
    assert stored == ["0", "1", "2", "4"]
    ((variables, error),) = log.failed
    assert variables == ("3-out",)
    assert isinstance(error, codec.TooLarge)


async def test_what_cant_be_stored_fails_for_those_whom_it_concerns_and_what_follows_goes_on() -> None:
    log = Log()
    outbox, task = await drive(log)
    log.refuses = Unavailable("gone")
    outbox.say(Submit(calls=(call("a"), call("b"))))
    with pytest.raises(Unavailable):
        await outbox.tell(Cancel())
    log.refuses = None
    await outbox.tell(Cancel(reason="again"))
    task.cancel()
    assert log.failed[0] == (("a-out", "b-out"), log.failed[0][1])
    assert log.entries == [Cancel(reason="again")]
