from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from myna.actors.messages import (
    PROTOCOL,
    Announce,
    CallId,
    Cancel,
    Close,
    Declare,
    Input,
    Leave,
    Message,
    ModelCall,
    Open,
    Output,
    Sampling,
    Segment,
    SessionId,
    StreamMode,
    Submit,
    Text,
    Transform,
    TransformKind,
    Usage,
    VarId,
    WorkerId,
    WorkerKind,
)
from myna.actors.outcomes import OutcomeStatus
from myna.actors.scheduler.commands import Dispatch, Foresee, Keep, LetGo
from myna.actors.scheduler.core import SchedulerCore
from myna.actors.scheduler.events import Ended, Heard, Led, Logged, Tick
from myna.actors.scheduler.policies import Policies
from myna.actors.scheduler.policies.retention import PATIENCE, SHARE
from tests.actors.scheduler.world import TENANT

LONG = "x" * 4 * 400
"""A text of about 400 tokens."""


def call(name: str, *segments: Segment | str, tokens: int = 200, **options: Any) -> ModelCall:
    parts = tuple(Text(text=s) if isinstance(s, str) else s for s in segments)
    output = Output(variables=(name,), sampling=Sampling(max_tokens=tokens))
    return ModelCall(id=f"c-{name}", function=name, messages=(Message(segments=(*parts, output)),), **options)


def of(*names: str) -> Input:
    return Input(variables=names)


def shown(spec: ModelCall, **options: Any) -> ModelCall:
    """The call, its output with these options."""
    *before, output = spec.messages[0].segments
    segments = (*before, structs.replace(output, **options))
    return structs.replace(spec, messages=(structs.replace(spec.messages[0], segments=segments),))


def turn(name: str, *turns: str, question: str = "And then?") -> ModelCall:
    """A conversation's turn after others, whose answers are variables."""
    messages = [Message(segments=(Text(text=LONG),), role="system")]
    for earlier in turns:
        messages += [
            Message(segments=(Text(text=question),), role="user"),
            Message(segments=(of(earlier),), role="assistant"),
        ]
    messages.append(Message(segments=(Text(text=question),), role="user"))
    output = Output(variables=(name,), sampling=Sampling(max_tokens=100))
    messages.append(Message(segments=(output,), role="assistant"))
    return ModelCall(id=f"c-{name}", function="chat", messages=tuple(messages))


class Play:
    """A scheduler with engines that have memory, and one session."""

    def __init__(self, *, engines: int = 1, capacity: int = 8, memory: int = 10_000, **policies: Any) -> None:
        self.core = SchedulerCore(replace(Policies(), **policies))
        self.now = 1.0
        self.commands: list[Any] = []
        self.feed(Led("s", 1, self.now))
        for n in range(engines):
            self.join(f"w{n}", capacity, memory)
        self.log(Open(protocol=PROTOCOL))

    def join(self, name: str, capacity: int, memory: int | None) -> None:
        offer = Announce(
            protocol=PROTOCOL,
            worker=name,
            kind=WorkerKind.ENGINE,
            incarnation=name,
            serves=("m",),
            capacity=capacity,
            tokens=memory,
        )
        self.feed(Heard(offer, self.now))

    def feed(self, event: Any) -> None:
        self.commands += self.core.handle(event)
        self.core.check()

    def log(self, *entries: Any, session: str = "s") -> None:
        for entry in entries:
            self.feed(Logged(TENANT, SessionId(session), entry, self.now))

    def submit(self, *calls: ModelCall) -> None:
        self.log(Submit(calls=calls))

    def value(self, name: str, tokens: int = 100) -> None:
        usage = Usage(prompt_tokens=500, output_tokens=tokens)
        key = (TENANT, SessionId("s"), VarId(name))
        self.feed(
            Ended(*key, OutcomeStatus.VALUE, 1, self.now, usage=usage, characters=4 * tokens, content=f"d-{name}")
        )

    def tick(self, seconds: float = 0.5) -> None:
        self.now += seconds
        for worker in self.core.fleet.workers.values():
            worker.last_heard = self.now
        self.feed(Tick(self.now))

    def look(self) -> tuple[list[str], list[Keep], list[str]]:
        """What was dispatched, kept and let go since the last look."""
        runs = [c.run.call.id.removeprefix("c-") for c in self.commands if isinstance(c, Dispatch)]
        keeps = [c for c in self.commands if isinstance(c, Keep)]
        gone = [i for c in self.commands if isinstance(c, LetGo) for i in c.release.ids]
        self.commands = []
        return runs, keeps, gone


def texts(keep: Keep) -> list[str]:
    """The parts of what is kept: constants by their beginnings, variables by their names."""
    found = []
    for message in keep.retain.call.messages:
        for segment in message.segments:
            assert not isinstance(segment, Output)
            found.append(segment.text[:5] if isinstance(segment, Text) else ",".join(segment.variables))
    return found


# --- shared prefixes --------------------------------------------------------------------------------------------------


def test_a_prefix_is_kept_while_declared_calls_that_begin_with_it_are_to_come() -> None:
    play = Play(early=False)
    play.submit(call("tool", "short"), call("a", LONG, "first"), call("b", LONG, "second", of("tool")))
    runs, (keep,), gone = play.look()
    assert sorted(runs) == ["a", "tool"]
    assert texts(keep) == ["xxxxx"]
    assert (keep.worker, keep.retain.lease, gone) == ("w0", 1, [])
    play.value("a")
    play.tick()
    assert play.look() == ([], [], [])
    play.value("tool")
    assert play.look() == (["b"], [], [])
    play.tick()
    assert play.look() == ([], [], [keep.retain.id])


def test_what_all_can_begin_at_once_need_not_be_kept() -> None:
    play = Play()
    play.submit(*(call(f"m{i}", LONG, f"part {i}") for i in range(4)))
    runs, _, _ = play.look()
    assert len(runs) == 4
    play.tick()
    assert not play.core.planner.retention.kept(WorkerId("w0"))  # type: ignore[union-attr]


def test_a_cancelled_reader_is_not_to_come() -> None:
    play = Play(early=False)
    play.submit(call("tool", "short"), call("a", LONG), call("b", LONG, of("tool")))
    _, (keep,), _ = play.look()
    play.log(Cancel(calls=("c-b",)))
    play.tick()
    assert play.look()[2] == [keep.retain.id]


def test_a_call_that_is_tried_again_is_to_come_again() -> None:
    play = Play(engines=2, capacity=1, early=False)
    play.submit(call("a", LONG), call("b", LONG))
    play.look()
    readers = play.core.planner.retention.readers  # type: ignore[union-attr]
    assert not readers._counts
    play.feed(Heard(Leave(worker="w0", incarnation="w0"), play.now))
    assert readers._counts, "the lost worker's call waits for a place"


# --- contexts ---------------------------------------------------------------------------------------------------------


def test_a_context_is_kept_for_a_declared_consumer_that_waits_for_something_else() -> None:
    play = Play(early=False)
    play.submit(call("tool", "short"), turn("one"), turn("two", "one"), call("x", of("tool")))
    second = turn("three", "one", "two")
    messages = list(second.messages)
    messages[-2] = Message(segments=(of("tool"),), role="user")
    play.submit(structs.replace(second, messages=tuple(messages)))
    play.look()
    play.value("one")
    play.look()
    play.value("two")
    _, keeps, _ = play.look()
    assert texts(keeps[-1]) == ["xxxxx", "And t", "one", "And t", "two"]
    play.value("tool")
    assert "three" in play.look()[0]
    play.tick()
    assert keeps[-1].retain.id in play.look()[2]


def test_a_conversation_whose_next_turn_nobody_has_declared_is_kept_for_a_time() -> None:
    play = Play()
    play.submit(turn("one"))
    play.value("one")
    assert play.look()[1] == [], "one question is no conversation"
    play.submit(turn("two", "one"))
    play.value("two")
    _, (keep,), _ = play.look()
    assert texts(keep) == ["xxxxx", "And t", "one", "And t", "two"]
    assert keep.retain.distance == PATIENCE
    play.tick(PATIENCE / 2)
    assert play.look() == ([], [], [])
    play.tick(PATIENCE / 2 + 1)
    assert play.look()[2] == [keep.retain.id]


def test_a_conversation_that_ends_in_an_empty_message_is_taken_as_it_is() -> None:
    play = Play()
    odd = turn("two", "one")
    play.submit(turn("one"), structs.replace(odd, messages=(*odd.messages, Message(segments=(), role="assistant"))))
    play.value("one")
    play.value("two")
    assert not play.core.sessions[TENANT, SessionId("s")].graph.unfinished


def test_of_a_conversation_the_last_context_alone_is_kept_and_none_when_its_session_ends() -> None:
    play = Play()
    play.submit(turn("one"), turn("two", "one"))
    play.value("one")
    play.value("two")
    _, first, _ = play.look()
    play.submit(turn("three", "one", "two"))
    play.value("three")
    _, second, _ = play.look()
    play.tick()
    gone = play.look()[2]
    assert first[-1].retain.id in gone
    assert second[-1].retain.id not in gone
    play.log(Close())
    play.tick()
    assert second[-1].retain.id in play.look()[2]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_no_more_is_kept_than_a_share_of_the_memory_and_what_is_due_last_gives_way() -> None:
    play = Play(memory=int(2.5 * 410 / SHARE), early=False)
    play.submit(call("tool", "short"))
    long = [str(i) * 4 * 400 for i in range(3)]
    kept: dict[str, str] = {}
    for i, tokens in enumerate((100, 120, 50)):
        play.submit(call(f"a{i}", long[i], tokens=tokens), call(f"b{i}", long[i], of("tool")))
        _, keeps, gone = play.look()
        kept |= {k.retain.id: texts(k)[0] for k in keeps}
        kept = {name: text for name, text in kept.items() if name not in gone}
    assert list(kept.values()) == ["00000", "22222"]


def test_an_engine_that_is_gone_keeps_nothing_and_one_without_memory_is_not_asked() -> None:
    play = Play(early=False)
    play.submit(call("tool", "short"), call("a", LONG), call("b", LONG, of("tool")))
    assert play.look()[1]
    play.feed(Heard(Leave(worker="w0", incarnation="w0"), play.now))
    play.join("w1", 8, None)
    play.look()
    assert not play.core.planner.retention._kept  # type: ignore[union-attr]


def test_switched_off_nothing_is_kept() -> None:
    play = Play(retention=False)
    play.submit(call("tool", "short"), call("a", LONG), call("b", LONG, of("tool")))
    assert play.look()[1] == []


# --- ahead ------------------------------------------------------------------------------------------------------------


def test_the_constant_part_of_a_consumer_is_computed_where_its_producer_runs_and_there_it_goes() -> None:
    play = Play(engines=2)
    play.submit(call("a", "short"), call("b", LONG, of("a"), "the end"))
    runs, (keep,), _ = play.look()
    assert runs == ["a"]
    assert (texts(keep), keep.retain.stream) == (["xxxxx", "a"], "a")
    producer = play.core.sessions[TENANT, SessionId("s")].graph.calls["c-a"].worker  # type: ignore[index]
    assert keep.worker == producer
    play.value("a")
    (run,) = [c for c in play.commands if isinstance(c, Dispatch)]
    assert run.worker == producer
    play.look()
    play.tick()
    assert play.look()[2] == [keep.retain.id]


def test_an_input_is_filled_in_as_it_is_generated_if_it_is_long_alone_and_seen_by_readers() -> None:
    for producer, consumer, streamed in (
        (call("a", "short"), call("b", LONG, of("a")), True),
        (call("a", "short", tokens=100), call("b", LONG, of("a")), False),  # too short
        (call("a", "short"), call("b", LONG, of("a", "x")), False),  # joined with another
        (call("a", "short"), call("b", LONG, of("x"), of("a")), False),  # something else is missing before it
        (shown(call("a", "short"), stream=StreamMode.BUFFERED), call("b", LONG, of("a")), False),
        (shown(call("a", "short"), transforms=(Transform(kind=TransformKind.STRIP),)), call("b", LONG, of("a")), False),
    ):
        play = Play()
        play.log(Declare(variables=("x",)))
        play.submit(producer, consumer)
        (keep,) = play.look()[1]
        assert keep.retain.stream == ("a" if streamed else "")
        assert texts(keep) == (["xxxxx", "a"] if streamed else ["xxxxx"])


@pytest.mark.parametrize(("cache", "there"), [("", True), ("own", False)])
def test_what_is_kept_in_one_cache_is_not_there_in_another(cache: str, there: bool) -> None:
    play = Play()
    calls = (call("a", "short"), call("b", LONG, of("a")))
    play.submit(*calls)
    play.look()
    play.log(Open(protocol=PROTOCOL, cache=cache), Submit(calls=calls), session="another")
    assert (play.look()[1] == []) is there


def test_a_consumer_that_lacks_nothing_else_is_to_begin_by_what_its_producer_makes() -> None:
    play = Play(engines=2)
    play.submit(call("a", "short"), call("b", LONG, of("a"), "the end"))
    (foreseen,) = [c for c in play.commands if isinstance(c, Foresee)]
    early, graph = foreseen.anticipate, play.core.sessions[TENANT, SessionId("s")].graph
    assert foreseen.worker == graph.calls[CallId("c-a")].worker
    assert (early.call, early.awaits, early.lease) == (graph.calls[CallId("c-b")].spec, "a", 1)
    play.look()
    play.value("a")
    (dispatch,) = [c for c in play.commands if isinstance(c, Dispatch)]
    assert (dispatch.worker, dispatch.run.call, dispatch.run.cache) == (foreseen.worker, early.call, early.cache)


def test_a_consumer_that_lacks_more_or_may_be_copied_is_not_begun_ahead() -> None:
    for consumer, foreseen in (
        (call("b", LONG, of("a", "a")), True),
        (call("b", LONG, of("a", "x")), False),  # somebody else makes x
        (call("b", LONG, of("x")), False),
        (structs.replace(call("b", LONG, of("a")), memoise=True), False),
    ):
        play = Play()
        play.log(Declare(variables=("x",)))
        play.submit(call("a", "short"), consumer)
        assert bool([c for c in play.commands if isinstance(c, Foresee)]) is foreseen


def test_what_is_filled_in_counts_among_what_is_kept_and_is_let_go_when_its_producer_fails() -> None:
    play = Play(memory=1200)  # 600 may be kept: 400 of the constant, and 128 of the input, as far as is known
    play.submit(call("a", "short"), call("b", LONG, of("a")))
    (keep,) = play.look()[1]
    assert play.core.planner.retention is not None
    assert sum(play.core.planner.retention.kept(WorkerId("w0")).values()) == 528.0
    play.log(Cancel(calls=("c-a",)))
    play.feed(Ended(TENANT, SessionId("s"), VarId("a"), OutcomeStatus.CANCELLED, 0, play.now))
    play.feed(Ended(TENANT, SessionId("s"), VarId("b"), OutcomeStatus.CANCELLED, 0, play.now))
    play.tick()
    assert play.look()[2] == [keep.retain.id]


def test_a_consumer_is_prepared_once_whoever_else_feeds_it() -> None:
    play = Play(engines=2)
    play.submit(*(call(f"m{i}", "short", str(i)) for i in range(6)), call("r", LONG, of(*(f"m{i}" for i in range(6)))))
    assert len(play.look()[1]) == 1


def test_a_consumer_is_not_prepared_where_that_is_short_or_takes_longer_than_its_producer() -> None:
    play = Play()
    play.submit(call("a", "short"), call("b", "short too", of("a")))
    assert play.look()[1] == []
    play.submit(call("c", "short", tokens=1), call("d", LONG * 40, of("c")))
    assert play.look()[1] == []


@pytest.mark.parametrize("others", [False, True])
def test_nothing_is_computed_ahead_where_prompts_wait_that_somebody_waits_for(others: bool) -> None:
    play = Play()
    occupancy = play.core.fleet.workers[WorkerId("w0")].occupancy
    occupancy.steps.observe(1.0, 0.0, 0.01)  # so that what it has to compute is known
    if others:
        occupancy.busy_until = play.now + 0.1
    play.submit(call("a", "short"), call("b", LONG, of("a")))
    runs, keeps, _ = play.look()
    assert runs == ["a"]
    assert bool(keeps) is not others


def test_switched_off_nothing_is_computed_ahead() -> None:
    play = Play(early=False)
    play.submit(call("a", "short"), call("b", LONG, of("a")))
    assert play.look()[1] == []
