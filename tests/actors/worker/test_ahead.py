"""Calls that a worker begins by what it makes, before their `Run`: what comes of them then, and when none comes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from myna.actors.messages import (
    Anticipate,
    Chunk,
    Drain,
    ErrorCode,
    Failure,
    FinishReason,
    Hello,
    Run,
    Usage,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.worker.ahead import GRACE
from myna.actors.worker.backend import JobEnded, JobFailed, OutputEnded, Produced, RunKey
from myna.actors.worker.core import WorkerCore
from myna.actors.worker.events import (
    Abandon,
    Asked,
    Begin,
    Due,
    Fetch,
    Fetched,
    PutChunk,
    PutValue,
    Read,
    Refused,
    Reported,
    Slept,
    Stored,
    Wake,
    WorkerCommand,
)
from tests.actors.stage import call

FIRST: Any = ("t", "s", "call-a", 1)
SECOND: Any = ("t", "s", "call-b", 2)
GIVEN = Value(text="given")
SPEC = call("b", "x", "a")
ORDER = Anticipate(tenant="t", session="s", call=SPEC, awaits="a", lease=7, cache="team", order=3.0)
NEXT = Run(tenant="t", session="s", call=SPEC, attempt=2, lease=7, cache="team", order=3.0)


@pytest.fixture
def core() -> WorkerCore:
    """A worker that runs `call-a`, whose output `a` the call `b` waits for."""
    core = WorkerCore(WorkerId("w"), resumable=True)
    core.handle(Asked(Run(tenant="t", session="s", call=call("a"), attempt=1, lease=7), 1.0))
    core.handle(Read(FIRST, {}, {}, {}, None, 1.0))
    return core


def expect(core: WorkerCore, order: Anticipate = ORDER) -> None:
    assert core.handle(Asked(order, 1.1)) == [Fetch(order)]
    assert core.handle(Fetched(order, {VarId("x"): GIVEN})) == []


def make(core: WorkerCore, text: str = "made") -> list[WorkerCommand]:
    """`a` is generated. A first chunk of it is on the way when it ends."""
    core.handle(Reported(Produced(FIRST, VarId("a"), text[:2], (1,)), 2.0))
    core.handle(Reported(Produced(FIRST, VarId("a"), text[2:], (2,)), 2.0))
    return core.handle(Reported(OutputEnded(FIRST, VarId("a"), FinishReason.STOP, tokenizer="tok"), 2.0))


def begun(core: WorkerCore) -> RunKey:
    """`call-b` is begun ahead. Its key."""
    expect(core)
    (begin,) = [c for c in make(core) if isinstance(c, Begin)]
    return begin.job.key


def stored(core: WorkerCore) -> Value:
    """`a` is stored: its chunks, and then its value."""
    (put,) = core.handle(Stored(FIRST, VarId("a"), 0, 2.1))
    assert isinstance(put, PutChunk)
    (put,) = core.handle(Stored(FIRST, VarId("a"), 1, 2.2))
    assert isinstance(put, PutValue)
    core.handle(Stored(FIRST, VarId("a"), None, 2.3))
    return put.value


def run(core: WorkerCore, value: Value, order: Run = NEXT) -> list[WorkerCommand]:
    """The scheduler asks for `call-b`, and its inputs are read."""
    core.handle(Asked(order, 3.0))
    return core.handle(Read(SECOND, {VarId("x"): GIVEN, VarId("a"): value}, {}, {}, None, 3.1))


def test_a_call_begins_when_its_last_input_is_made_and_before_that_is_stored(core: WorkerCore) -> None:
    expect(core)
    begin, wake = make(core)
    assert isinstance(begin, Begin)
    assert (begin.job.call, begin.job.cache, begin.job.order) == (SPEC, "team", 3.0)
    assert begin.job.inputs[VarId("x")] == GIVEN
    value = begin.job.inputs[VarId("a")]
    assert (value.text, value.tokens, value.tokenizer) == ("made", (1, 2), "tok"), (
        "all of it, though a part is on the way"
    )
    assert begin.job.key[:3] == SECOND[:3]
    assert begin.job.key[3] < 0
    assert wake == Wake(begin.job.key, VarId("a"), 2.0 + GRACE)
    assert [r.call for r in core.running] == ["call-a"], "nobody has asked for it yet"
    core.check()


def test_the_run_goes_on_with_what_was_begun_and_publishes_what_was_made(core: WorkerCore) -> None:
    early = begun(core)
    value = stored(core)
    assert core.handle(Reported(Produced(early, VarId("b"), "an", (3,)), 2.9)) == []
    commands = run(core, value)
    assert not [c for c in commands if isinstance(c, Begin | Abandon)]
    (put,) = [c for c in commands if isinstance(c, PutChunk)]
    assert (put.key, put.chunk.text, put.chunk.attempt) == (SECOND, "an", 2)
    assert core.handle(Due(early, VarId("a"), 3.2)) == [], "it is somebody's now"
    core.handle(Reported(Produced(early, VarId("b"), "swer", (4,)), 3.3))
    ended = OutputEnded(early, VarId("b"), FinishReason.LENGTH, Usage(prompt_tokens=9, output_tokens=2))
    core.handle(Reported(ended, 3.4))
    core.handle(Reported(JobEnded(early), 3.4))
    core.handle(Stored(SECOND, VarId("b"), 0, 3.5))
    (put,) = core.handle(Stored(SECOND, VarId("b"), 1, 3.6))
    assert isinstance(put, PutValue)
    assert (put.value.text, put.value.attempt, put.value.usage.prompt_tokens) == ("answer", 2, 9)
    timing = put.value.timing
    assert timing is not None
    assert timing.received <= timing.began <= timing.first <= timing.ended
    core.handle(Stored(SECOND, VarId("b"), None, 3.7))
    assert not core.running
    core.check()


def test_all_that_it_made_before_its_run_is_published_then(core: WorkerCore) -> None:
    early = begun(core)
    value = stored(core)
    core.handle(Reported(Produced(early, VarId("b"), "answer", (3,)), 2.9))
    core.handle(Reported(OutputEnded(early, VarId("b"), FinishReason.STOP), 2.9))
    core.handle(Reported(JobEnded(early), 2.9))
    (put,) = [c for c in run(core, value) if isinstance(c, PutChunk)]
    assert put.chunk.text == "answer"
    (put,) = core.handle(Stored(SECOND, VarId("b"), 0, 3.2))
    assert isinstance(put, PutChunk)
    assert put.chunk.last
    (value_put,) = core.handle(Stored(SECOND, VarId("b"), 1, 3.3))
    assert isinstance(value_put, PutValue)
    assert value_put.value.text == "answer"


def test_who_is_shown_is_known_by_the_backends_name(core: WorkerCore) -> None:
    early = begun(core)
    run(core, stored(core))
    (shown,) = core.shown()
    assert (shown[0], shown[1].call, shown[1].attempt) == (early, "call-b", 2)


@pytest.mark.parametrize(
    "different",
    [
        {"value": Value(text="another", tokens=(1, 2), tokenizer="tok")},
        {"value": Value(text="made", tokens=(1,), tokenizer="tok")},
        {"order": structs.replace(NEXT, call=call("b", "a", "x"))},
        {"order": structs.replace(NEXT, cache="other")},
    ],
)
def test_a_run_that_is_not_what_was_begun_begins_anew(core: WorkerCore, different: dict[str, Any]) -> None:
    early = begun(core)
    core.handle(Reported(Produced(early, VarId("b"), "wrong", (3,)), 2.9))
    commands = run(core, **{"value": stored(core), **different})
    assert Abandon(early) in commands
    (begin,) = [c for c in commands if isinstance(c, Begin)]
    assert begin.job.key == SECOND
    assert not [c for c in commands if isinstance(c, PutChunk)]
    assert core.handle(Reported(Produced(early, VarId("b"), "wrong", (3,)), 3.2)) == []
    core.check()


def test_what_readers_have_seen_is_gone_on_from_and_not_what_was_begun(core: WorkerCore) -> None:
    early = begun(core)
    value = stored(core)
    core.handle(Asked(structs.replace(NEXT, resume=True), 3.0))
    inputs = {VarId("x"): GIVEN, VarId("a"): value}
    seen = {VarId("b"): (Chunk(attempt=1, text="seen", tokens=(8,)),)}
    commands = core.handle(Read(SECOND, inputs, seen, {}, None, 3.1))
    assert Abandon(early) in commands
    (begin,) = [c for c in commands if isinstance(c, Begin)]
    assert begin.job.resumed[VarId("b")].text == "seen"


def test_a_call_for_which_no_run_comes_is_given_up(core: WorkerCore) -> None:
    early = begun(core)
    value = stored(core)
    assert core.handle(Due(early, VarId("a"), 2.0 + GRACE)) == [Abandon(early)]
    assert core.handle(Reported(Produced(early, VarId("b"), "late", (3,)), 2.2)) == []
    assert [c for c in run(core, value) if isinstance(c, Begin)]


def test_a_call_that_the_backend_refuses_ahead_is_begun_by_its_run(core: WorkerCore) -> None:
    early = begun(core)
    failure = Failure(code=ErrorCode.PROMPT_TOO_LONG, message="too long")
    assert core.handle(Reported(JobFailed(early, failure), 2.5)) == []
    commands = run(core, stored(core))
    assert [c for c in commands if isinstance(c, Begin)]
    assert not [c for c in commands if isinstance(c, Abandon)]


def test_nothing_begins_where_another_outcome_came_first(core: WorkerCore) -> None:
    """The stream has another value of the input: the run reads that, and what was begun with ours goes."""
    early = begun(core)
    core.handle(Refused(FIRST, VarId("a"), 0, 2.1))
    assert Abandon(early) in run(core, Value(text="theirs"))


@pytest.mark.parametrize(
    "order",
    [
        structs.replace(ORDER, lease=6),
        structs.replace(ORDER, session="other"),
        structs.replace(ORDER, awaits="nothing"),
    ],
)
def test_what_is_not_made_here_or_asked_by_an_old_leader_is_not_waited_for(core: WorkerCore, order: Anticipate) -> None:
    core.handle(Asked(order, 1.1))
    core.handle(Fetched(order, {VarId("x"): GIVEN}))
    assert not [c for c in make(core) if isinstance(c, Begin)]


def test_without_its_other_inputs_nothing_begins(core: WorkerCore) -> None:
    core.handle(Asked(ORDER, 1.1))
    core.handle(Fetched(ORDER, None))
    assert not [c for c in make(core) if isinstance(c, Begin)]


def test_the_same_order_twice_begins_one_call(core: WorkerCore) -> None:
    expect(core)
    expect(core)
    assert len([c for c in make(core) if isinstance(c, Begin)]) == 1


@pytest.mark.parametrize(
    "event",
    [
        Slept(2.5),
        Asked(Hello(scheduler="next", lease=8, protocol=1), 2.5),
        Asked(Drain(lease=7), 2.5),
    ],
)
def test_with_a_new_leader_or_an_end_of_work_it_is_given_up(core: WorkerCore, event: Any) -> None:
    early = begun(core)
    assert Abandon(early) in core.handle(event)


def test_a_producer_that_fails_begins_nothing(core: WorkerCore) -> None:
    expect(core)
    core.handle(Reported(JobFailed(FIRST, Failure(code=ErrorCode.ENGINE_ERROR, message="broken")), 2.0))
    order = Run(tenant="t", session="s", call=call("a"), attempt=3, lease=7)
    core.handle(Asked(order, 2.1))
    again: Any = (*FIRST[:3], 3)
    core.handle(Read(again, {}, {}, {}, None, 2.1))
    commands = core.handle(Reported(OutputEnded(again, VarId("a"), FinishReason.STOP), 2.2))
    assert not [c for c in commands if isinstance(c, Begin)], "the order was for the attempt that is gone"
