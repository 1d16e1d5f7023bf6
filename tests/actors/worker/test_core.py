from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from myna.actors.messages import (
    Argument,
    Call,
    Cancellation,
    Chunk,
    Drain,
    ErrorCode,
    Event,
    EventKind,
    Failure,
    FinishReason,
    Hello,
    Input,
    Message,
    ModelCall,
    NativeCall,
    Outcome,
    Output,
    Run,
    Stop,
    StreamMode,
    Transform,
    TransformKind,
    Usage,
    Value,
    VarId,
    WorkerId,
)
from myna.actors.outcomes import Chain
from myna.actors.worker.attempt import CHUNK_BYTES, TOKEN_BYTES
from myna.actors.worker.backend import JobEnded, JobFailed, JobRefused, OutputEnded, Produced, RunKey
from myna.actors.worker.core import COALESCE, WorkerCore
from myna.actors.worker.events import (
    Abandon,
    Asked,
    Begin,
    Depart,
    Draining,
    Due,
    NotStored,
    Present,
    PutChunk,
    PutValue,
    Read,
    ReadInputs,
    Refused,
    Reported,
    Stored,
    Tell,
    Wake,
    WorkerCommand,
    WorkerEvent,
)
from tests.actors.stage import call

C = TypeVar("C")
LEASE = 7


def run_of(spec: Call, attempt: int = 1, *, lease: int = LEASE, resume: bool = False) -> Run:
    return Run(tenant="t", session="s", call=spec, attempt=attempt, lease=lease, resume=resume)


@dataclass
class Desk:
    """A core, what it commanded, and shorthand for what happens to it."""

    core: WorkerCore = field(default_factory=lambda: WorkerCore(WorkerId("w"), resumable=True))
    now: float = 1000.0
    out: list[WorkerCommand] = field(default_factory=list)
    key: RunKey = ("t", "s", "call-a", 1)  # type: ignore[assignment]

    def feed(self, event: WorkerEvent) -> list[WorkerCommand]:
        commands = self.core.handle(event)
        self.core.check()
        self.out += commands
        return commands

    def ask(self, message: Run | Stop | Drain | Hello) -> list[WorkerCommand]:
        return self.feed(Asked(message, self.now))

    def read(
        self,
        chunks: dict[str, list[Chunk]] | None = None,
        outcomes: dict[str, Outcome] | None = None,
        inputs: dict[str, Value] | None = None,
    ) -> list[WorkerCommand]:
        named = {VarId(v): tuple(c) for v, c in (chunks or {}).items()}
        already = {VarId(v): o for v, o in (outcomes or {}).items()}
        values = {VarId(v): i for v, i in (inputs or {}).items()}
        return self.feed(Read(self.key, values, named, already, None, self.now))

    def start(self, spec: Call, **options: Any) -> None:
        self.key = ("t", "s", spec.id, 1)  # type: ignore[assignment]
        self.ask(run_of(spec, **options))
        self.read()
        self.out.clear()

    def produce(self, text: str, *tokens: int, variable: str = "a") -> list[WorkerCommand]:
        return self.feed(Reported(Produced(self.key, VarId(variable), text, tokens), self.now))

    def end(self, variable: str = "a", **details: Any) -> list[WorkerCommand]:
        return self.feed(Reported(OutputEnded(self.key, VarId(variable), FinishReason.STOP, **details), self.now))

    def stored(self, n: int | None, variable: str = "a") -> list[WorkerCommand]:
        return self.feed(Stored(self.key, VarId(variable), n, self.now))

    def refused(self, n: int | None, variable: str = "a") -> list[WorkerCommand]:
        return self.feed(Refused(self.key, VarId(variable), n, self.now))

    def told(self) -> list[EventKind]:
        return [c.event.kind for c in self.out if isinstance(c, Tell)]

    def event(self) -> Event:
        return of(Tell, self.out)[-1].event


def of(kind: type[C], commands: list[WorkerCommand]) -> list[C]:
    return [c for c in commands if isinstance(c, kind)]


def chunk(text: str, *tokens: int, attempt: int = 0, last: bool = False) -> Chunk:
    return Chunk(attempt=attempt, text=text, tokens=tokens, last=last)


# --- chunks -----------------------------------------------------------------------------------------------------------


def test_a_run_reads_its_inputs_then_begins_and_says_so() -> None:
    desk = Desk()
    (read,) = desk.ask(run_of(call("a", "x", "y", "x")))
    assert isinstance(read, ReadInputs)
    assert (read.inputs, read.outputs) == (("x", "y"), ())
    desk.out.clear()
    value = Value(text="input")
    desk.read(inputs={"x": value})
    (begin,) = of(Begin, desk.out)
    assert begin.job.inputs == {"x": value}
    assert desk.told() == [EventKind.STARTED]


def test_one_chunk_is_in_flight_and_what_comes_meanwhile_is_joined() -> None:
    desk = Desk()
    desk.start(call("a"))
    (first,) = of(PutChunk, desk.produce("one", 1))
    assert (first.n, first.chunk.text, first.chunk.last) == (0, "one", False)
    assert desk.produce(" two", 2) == []
    assert desk.produce(" three", 3) == []
    desk.now += COALESCE
    (second,) = of(PutChunk, desk.stored(0))
    assert (second.n, second.chunk.text, second.chunk.tokens) == (1, " two three", (2, 3))


def test_chunks_of_one_output_are_at_least_20_ms_apart() -> None:
    desk = Desk()
    desk.start(call("a"))
    desk.produce("one")
    desk.now += 0.001
    desk.stored(0)
    (wake,) = desk.produce(" two")
    assert isinstance(wake, Wake)
    assert wake.at == 1000.0 + COALESCE
    assert desk.produce(" three") == [], "one alarm is enough"
    desk.now = wake.at
    (put,) = of(PutChunk, desk.feed(Due(desk.key, VarId("a"), desk.now)))
    assert put.chunk.text == " two three"


def test_the_last_chunk_goes_out_at_once_and_the_value_after_it_is_stored() -> None:
    desk = Desk()
    desk.start(call("a"))
    desk.produce("one", 1)
    desk.stored(0)
    desk.produce(" two", 2)
    (last,) = of(PutChunk, desk.end(usage=Usage(output_tokens=2), model="m", tokenizer="d"))
    assert (last.n, last.chunk.text, last.chunk.last) == (1, " two", True)
    (put,) = of(PutValue, desk.stored(1))
    assert put.streamed == 2 * CHUNK_BYTES + 2 * TOKEN_BYTES + len("one two")
    value = put.value
    assert (value.text, value.tokens, value.attempt, value.call) == ("one two", (1, 2), 1, "call-a")
    assert (value.model, value.tokenizer, value.usage.output_tokens) == ("m", "d", 2)
    desk.stored(None)
    assert desk.told() == [EventKind.FINISHED]
    assert desk.event().usage.output_tokens == 2
    assert desk.core.running == ()


def test_an_output_that_is_empty_still_has_a_last_chunk_and_a_value() -> None:
    desk = Desk()
    desk.start(call("a"))
    (last,) = of(PutChunk, desk.end())
    assert (last.n, last.chunk.text, last.chunk.last) == (0, "", True)
    (put,) = of(PutValue, desk.stored(0))
    assert put.value.text == ""


def test_tokens_without_text_yet_wait_for_the_text_that_they_belong_to() -> None:
    desk = Desk()
    desk.start(call("a"))
    assert desk.produce("", 1) == []
    (put,) = of(PutChunk, desk.produce("é", 2))
    assert (put.chunk.text, put.chunk.tokens) == ("é", (1, 2))


def test_outputs_stream_side_by_side_each_with_its_own_chunk_in_flight() -> None:
    desk = Desk()
    desk.start(call("a", outputs=2))
    assert of(PutChunk, desk.produce("x", variable="a-0"))
    assert of(PutChunk, desk.produce("y", variable="a-1"))
    assert desk.produce("z", variable="a-0") == []


def native(stream: StreamMode = StreamMode.LIVE, *transforms: Transform) -> NativeCall:
    return NativeCall(
        id="n",
        function="f",
        variable="a",
        arguments=(Argument(name="q", input=Input(variables=("x",))),),
        stream=stream,
        transforms=transforms,
    )


def test_a_buffered_output_has_no_chunks() -> None:
    desk = Desk()
    desk.start(native(StreamMode.BUFFERED))
    assert desk.produce("part") == []
    (put,) = of(PutValue, desk.end())
    assert put.value.text == "part"


def test_a_transformed_output_has_no_chunks_no_tokens_and_the_transformed_text() -> None:
    desk = Desk()
    output = Output(variables=("a",), transforms=(Transform(kind=TransformKind.STRIP),))
    desk.start(ModelCall(id="c", messages=(Message(segments=(output,)),)))
    assert desk.produce("  x ", 5) == []
    (put,) = of(PutValue, desk.end())
    assert (put.value.text, put.value.tokens) == ("x", ())


def test_a_transform_that_fails_ends_the_attempt_with_its_own_code() -> None:
    desk = Desk()
    desk.start(native(StreamMode.LIVE, Transform(kind=TransformKind.REGEX, argument="x+")))
    desk.produce("none")
    desk.end()
    assert desk.told() == [EventKind.FAILED]
    failure = desk.event().failure
    assert failure is not None
    assert failure.code is ErrorCode.TRANSFORM_FAILED
    assert "'a'" in failure.message
    assert not failure.retryable
    assert of(Abandon, desk.out)


# --- refusals and failures --------------------------------------------------------------------------------------------


def test_a_refused_chunk_ends_the_attempt_and_nothing_more_is_published() -> None:
    desk = Desk()
    desk.start(call("a"))
    desk.produce("one")
    desk.produce(" two")
    desk.refused(0)
    assert desk.told() == [EventKind.OVERTAKEN]
    assert of(Abandon, desk.out)
    desk.out.clear()
    desk.now += 1
    desk.produce(" three")
    desk.end()
    desk.stored(0)
    desk.feed(Due(desk.key, VarId("a"), desk.now))
    assert desk.out == []


def test_a_refused_value_counts_as_ended_since_some_outcome_stands() -> None:
    desk = Desk()
    desk.start(native(StreamMode.BUFFERED))
    desk.end()
    desk.refused(None)
    assert desk.told() == [EventKind.FINISHED]


def test_a_value_that_can_not_be_stored_fails_the_attempt_with_the_reason() -> None:
    desk = Desk()
    desk.start(native(StreamMode.BUFFERED))
    desk.end()
    failure = Failure(code=ErrorCode.VALUE_TOO_LARGE, message="9 MiB, the limit is 8 MiB")
    desk.feed(NotStored(desk.key, VarId("a"), failure, desk.now))
    assert desk.told() == [EventKind.FAILED]
    assert desk.event().failure == failure


def test_a_backends_failure_is_told_once_and_an_endless_message_is_cut() -> None:
    desk = Desk()
    desk.start(call("a"))
    failure = Failure(code=ErrorCode.NATIVE_ERROR, message="x" * 10_000_000)
    desk.feed(Reported(JobFailed(desk.key, failure), desk.now))
    told = desk.event().failure
    assert told is not None
    assert told.code is ErrorCode.NATIVE_ERROR
    assert len(told.message) < 3000
    assert of(Abandon, desk.out) == [], "it has stopped by itself"


def test_a_job_that_ends_without_all_outputs_is_an_engine_error() -> None:
    desk = Desk()
    desk.start(call("a", outputs=2))
    desk.end("a-0")
    desk.feed(Reported(JobEnded(desk.key), desk.now))
    failure = desk.event().failure
    assert failure is not None
    assert failure.code is ErrorCode.ENGINE_ERROR
    assert "a-1" in failure.message


def test_inputs_that_can_not_be_read_fail_the_attempt_before_it_begins() -> None:
    desk = Desk()
    desk.ask(run_of(call("a", "x")))
    failure = Failure(code=ErrorCode.WORKER_LOST, message="no answer", retryable=True)
    desk.out.clear()
    desk.feed(Read(desk.key, {}, {}, {}, failure, desk.now))
    assert desk.told() == [EventKind.FAILED]
    assert of(Begin, desk.out) == []


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_new_attempt_goes_on_from_the_chunks_that_are_there() -> None:
    desk = Desk()
    (read,) = desk.ask(run_of(call("a"), resume=True))
    assert isinstance(read, ReadInputs)
    assert read.outputs == ("a",)
    desk.out.clear()
    desk.read(chunks={"a": [chunk("one", 1), chunk(" two", 2, 3)]})
    (begin,) = of(Begin, desk.out)
    resumed = begin.job.resumed[VarId("a")]
    assert (resumed.text, resumed.tokens, resumed.ended) == ("one two", (1, 2, 3), False)
    (put,) = of(PutChunk, desk.produce(" three", 4))
    assert (put.n, put.chunk.attempt) == (2, 1)
    desk.stored(2)
    desk.end()
    desk.stored(3)
    (value,) = of(PutValue, desk.out)
    assert (value.value.text, value.value.tokens) == ("one two three", (1, 2, 3, 4))


def test_after_the_last_chunk_without_a_value_only_the_value_is_published() -> None:
    desk = Desk()
    desk.ask(run_of(call("a"), resume=True))
    desk.out.clear()
    desk.read(chunks={"a": [chunk("one", 1), chunk("", last=True)]})
    assert of(Begin, desk.out) == []
    assert of(PutChunk, desk.out) == []
    (put,) = of(PutValue, desk.out)
    assert put.value.text == "one"
    desk.stored(None)
    assert desk.told() == [EventKind.STARTED, EventKind.FINISHED]


def test_with_the_value_there_already_nothing_is_done() -> None:
    desk = Desk()
    desk.ask(run_of(call("a"), resume=True))
    desk.out.clear()
    desk.read(chunks={"a": [chunk("one", last=True)]}, outcomes={"a": Value(text="one")})
    assert desk.told() == [EventKind.STARTED, EventKind.FINISHED]
    assert len(desk.out) == 2


def test_of_several_outputs_the_ended_ones_are_context_and_the_others_go_on() -> None:
    desk = Desk()
    spec = call("a", outputs=3)
    desk.ask(run_of(spec, resume=True))
    desk.out.clear()
    desk.read(
        chunks={"a-0": [chunk("x", 1, last=True)], "a-1": [chunk("y", 2)]},
        outcomes={"a-0": Value(text="x", tokens=(1,))},
    )
    (begin,) = of(Begin, desk.out)
    assert {v: (r.text, r.ended) for v, r in begin.job.resumed.items()} == {"a-0": ("x", True), "a-1": ("y", False)}
    desk.end("a-0")
    assert of(PutChunk, desk.end("a-1"))[0].n == 1
    assert of(PutChunk, desk.end("a-2"))[0].n == 0
    desk.feed(Reported(JobEnded(desk.key), desk.now))
    for variable, n in (("a-1", 1), ("a-2", 0)):
        desk.stored(n, variable)
        desk.stored(None, variable)
    assert desk.told()[-1] is EventKind.FINISHED


def test_a_worker_that_can_not_resume_refuses_a_torn_output_but_not_a_finished_one() -> None:
    for outcome, expected in (({}, EventKind.FAILED), ({"a": Cancellation(reason="no")}, EventKind.FINISHED)):
        desk = Desk(WorkerCore(WorkerId("w"), resumable=False))
        desk.ask(run_of(call("a"), resume=True))
        desk.read(chunks={"a": [chunk("one")]}, outcomes=outcome)
        assert desk.told()[-1] is expected
        assert desk.core.running == ()


@pytest.mark.parametrize(
    ("begun", "tokenizer", "goes_on"),
    [((1,), "mine", True), ((1,), "", True), ((1,), "another", False), ((), "", False)],
    ids=["its own tokens", "of one that did not tell", "another model's tokens", "an endpoint's, without tokens"],
)
def test_what_another_has_begun_is_gone_on_with_only_where_its_tokens_are_known(
    begun: tuple[int, ...], tokenizer: str, goes_on: bool
) -> None:
    desk = Desk(WorkerCore(WorkerId("w"), resumable=True, tokenizer="mine"))
    desk.ask(run_of(call("a", outputs=2), resume=True))
    desk.key = ("t", "s", "call-a", 1)  # type: ignore[assignment]
    done = Chunk(attempt=0, text="done", tokens=(7,), last=True, tokenizer="another")
    desk.read(chunks={"a-0": [done], "a-1": [Chunk(attempt=0, text="one", tokens=begun, tokenizer=tokenizer)]})
    if goes_on:
        (begin,) = of(Begin, desk.out)
        assert begin.job.resumed[VarId("a-0")].tokenizer == "another", "what has ended stands as a text"
        assert begin.job.resumed[VarId("a-1")].tokens == begun
    else:
        assert of(Begin, desk.out) == []
        assert (desk.event().kind, desk.event().final) == (EventKind.FAILED, False), "another worker may be able to"
        assert desk.core.running == ()


def test_the_first_chunk_tells_whose_tokens_they_are() -> None:
    desk = Desk(WorkerCore(WorkerId("w"), resumable=True, tokenizer="mine"))
    desk.start(call("a"))
    for n in range(2):
        desk.now += 1
        desk.produce(f"{n}", n)
        desk.stored(n)
    assert [put.chunk.tokenizer for put in of(PutChunk, desk.out)] == ["mine", ""]


def test_a_worker_that_can_not_resume_fails_finally_once_a_chunk_may_have_been_seen() -> None:
    failure = Failure(code=ErrorCode.ENGINE_ERROR, message="the endpoint hung up", retryable=True)
    for pieces, resumable, final in ((0, False, False), (1, False, True), (1, True, False)):
        desk = Desk(WorkerCore(WorkerId("w"), resumable=resumable))
        desk.start(call("a"))
        for _ in range(pieces):
            desk.produce("one")
        desk.feed(Reported(JobFailed(desk.key, failure), desk.now))
        assert (desk.event().failure, desk.event().final) == (failure, final)


def test_what_the_backend_refuses_is_handed_back_unless_readers_have_seen_a_part_of_it() -> None:
    failure = Failure(code=ErrorCode.WORKER_LOST, message="too many calls", retryable=True)
    refused, failed = EventKind.REFUSED, EventKind.FAILED
    for pieces, resumable, kind in ((0, False, refused), (1, True, refused), (1, False, failed)):
        desk = Desk(WorkerCore(WorkerId("w"), resumable=resumable))
        desk.start(call("a"))
        for _ in range(pieces):
            desk.produce("one")
        desk.feed(Reported(JobRefused(desk.key, failure), desk.now))
        assert (desk.event().kind, desk.event().failure) == (kind, failure)
        assert desk.event().final == (kind is failed)
        assert desk.core.running == ()


def test_a_backend_may_say_that_another_try_would_not_help() -> None:
    desk = Desk()
    desk.start(call("a"))
    failure = Failure(code=ErrorCode.OVER_QUOTA, message="no money left", retryable=True)
    desk.feed(Reported(JobFailed(desk.key, failure, final=True), desk.now))
    assert (desk.event().failure, desk.event().final) == (failure, True)


def test_a_worker_that_can_not_resume_may_fail_and_be_tried_again_as_long_as_its_output_is_held_back() -> None:
    desk = Desk(WorkerCore(WorkerId("w"), resumable=False))
    desk.start(native(StreamMode.BUFFERED))
    desk.produce("one")
    failure = Failure(code=ErrorCode.NATIVE_ERROR, message="no", retryable=True)
    desk.feed(Reported(JobFailed(desk.key, failure), desk.now))
    assert not desk.event().final


def test_every_chunk_tells_where_it_begins_and_after_what() -> None:
    desk = Desk()
    desk.start(call("a"))
    for n, text in enumerate(("one", " zw\u00f6lf", " three")):
        desk.now += 1
        desk.produce(text)
        desk.stored(n)
    chain = Chain()
    for put in of(PutChunk, desk.out):
        assert (put.chunk.at, put.chunk.chain) == chain.state
        chain.add(put.chunk.text)
    assert chain.state == Chain("one zw\u00f6lf three").state


def test_chunks_that_do_not_belong_together_end_the_call_instead_of_being_gone_on_from() -> None:
    texts = ("one", " two", " three")
    whole = [
        Chunk(attempt=1, text=text, tokens=(n,), at=len("".join(texts[:n])), chain=Chain("".join(texts[:n])).digest)
        for n, text in enumerate(texts)
    ]
    other = Chunk(attempt=2, text="uno", tokens=(0,), at=0, chain=Chain().digest)
    for chunks, torn in ((whole, False), ([other, *whole[1:]], True)):
        desk = Desk()
        desk.ask(run_of(call("a"), resume=True))
        desk.read(chunks={"a": chunks})
        assert desk.told()[-1] is (EventKind.FAILED if torn else EventKind.STARTED)
        assert desk.event().final is torn


# --- fencing, stopping, draining --------------------------------------------------------------------------------------


def test_an_order_under_an_older_lease_is_refused() -> None:
    desk = Desk()
    desk.ask(Hello(protocol=1, scheduler="new", lease=LEASE + 1))
    desk.out.clear()
    desk.ask(run_of(call("a")))
    assert desk.told() == [EventKind.REFUSED]
    assert desk.core.running == ()
    desk.ask(run_of(call("a"), lease=LEASE + 1))
    desk.ask(Stop(tenant="t", session="s", call="call-a", attempt=9, lease=LEASE))
    desk.ask(Drain(lease=LEASE))
    assert len(desk.core.running) == 1, "nor may a deposed scheduler stop or drain"
    assert not desk.core.draining


def test_the_newer_attempt_of_a_call_takes_the_place_of_the_older_and_never_the_other_way() -> None:
    desk = Desk()
    desk.start(call("a"))
    (abandon, read) = desk.ask(run_of(call("a"), attempt=2, resume=True))
    assert isinstance(abandon, Abandon)
    assert abandon.key[3] == 1
    assert isinstance(read, ReadInputs)
    for attempt in (1, 2):
        assert desk.ask(run_of(call("a"), attempt=attempt)) == []
    assert [r.attempt for r in desk.core.running] == [2]
    assert desk.produce("late words of attempt 1") == []


def test_an_order_that_comes_again_after_its_attempt_has_ended_is_not_carried_out_twice() -> None:
    desk = Desk()
    desk.start(native(StreamMode.BUFFERED))
    desk.end()
    desk.stored(None)
    assert desk.told() == [EventKind.FINISHED]
    assert desk.ask(run_of(native(StreamMode.BUFFERED))) == []
    assert desk.ask(run_of(native(StreamMode.BUFFERED), attempt=2, resume=True)) != []


def test_stop_takes_this_attempt_or_an_older_one_and_leaves_a_newer() -> None:
    for attempt, stopped in ((0, False), (1, True), (2, True)):
        desk = Desk()
        desk.start(call("a"))
        desk.ask(Stop(tenant="t", session="s", call="call-a", attempt=attempt, lease=LEASE))
        assert (desk.core.running == ()) is stopped
        assert bool(of(Abandon, desk.out)) is stopped
        assert desk.told() == []


def test_a_draining_worker_refuses_new_calls_finishes_the_old_and_departs() -> None:
    for order in (Draining(0.0), Asked(Drain(lease=LEASE), 0.0)):
        desk = Desk()
        desk.start(native(StreamMode.BUFFERED))
        assert [type(c) for c in desk.feed(order)] == [Present]
        desk.out.clear()
        desk.ask(run_of(call("b")))
        assert desk.told() == [EventKind.REFUSED]
        assert of(Depart, desk.out) == []
        desk.end()
        desk.stored(None)
        assert isinstance(desk.out[-1], Depart)


def test_an_idle_worker_that_is_drained_departs_at_once() -> None:
    desk = Desk()
    assert [type(c) for c in desk.feed(Draining(0.0))] == [Present, Depart]


def test_a_hello_is_answered_with_an_announcement() -> None:
    desk = Desk()
    assert [type(c) for c in desk.ask(Hello(protocol=1, scheduler="s", lease=1))] == [Present]


def test_a_pulse_is_answered_only_where_its_leader_is_new() -> None:
    desk = Desk()
    first, again = (desk.ask(Hello(protocol=1, scheduler="s", lease=LEASE, pulse=True)) for _ in range(2))
    assert ([type(c) for c in first], again) == ([Present], [])


# --- everything at once -----------------------------------------------------------------------------------------------

WORDS = ("", "a", "b ", "é", "long word ")


class AttemptMachine(RuleBasedStateMachine):
    """Attempts of one call on two workers over single-assignment streams, acknowledgements in any order.

    Chunk numbers are contiguous, each worker has at most one chunk in flight, and the value is the chunks joined.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cores = [WorkerCore(WorkerId(f"w{i}"), resumable=True) for i in range(2)]
        self.now = 0.0
        self.attempt = 0
        self.chunks: dict[str, list[Chunk]] = {}
        self.values: dict[str, Value] = {}
        self.queue: list[tuple[int, Any]] = []
        self.alarms: list[tuple[int, Wake]] = []
        self.jobs: list[tuple[int, RunKey, dict[str, bool]]] = []
        self.last_put: dict[tuple[int, RunKey, str], float] = {}
        self.variables: list[str] = []

    @initialize(outputs=st.integers(1, 2))
    def submit(self, outputs: int) -> None:
        self.spec = call("a", outputs=outputs)
        self.variables = ["a"] if outputs == 1 else ["a-0", "a-1"]
        self.chunks = {v: [] for v in self.variables}
        self.dispatch(0)

    @rule(who=st.integers(0, 1))
    def dispatch(self, who: int) -> None:
        """A new attempt, although the one before may still be running somewhere: a zombie."""
        self.attempt += 1
        self.feed(who, Asked(run_of(self.spec, self.attempt, resume=self.attempt > 1), self.now))

    def feed(self, who: int, event: WorkerEvent) -> None:
        commands = self.cores[who].handle(event)
        self.cores[who].check()
        for command in commands:
            match command:
                case ReadInputs() | PutValue():
                    self.queue.append((who, command))
                case PutChunk():
                    waiting = [
                        c for w, c in self.queue if w == who and isinstance(c, PutChunk) and c.key == command.key
                    ]
                    assert all(c.variable != command.variable for c in waiting), "two chunks in flight"
                    where = (who, command.key, str(command.variable))
                    before = self.last_put.get(where)
                    assert before is None or command.chunk.last or self.now - before >= COALESCE - 1e-9
                    self.last_put[where] = self.now
                    self.queue.append((who, command))
                case Wake():
                    self.alarms.append((who, command))
                case Begin(job=job):
                    ended = {v: (r := job.resumed.get(VarId(v))) is not None and r.ended for v in self.variables}
                    self.jobs.append((who, job.key, ended))
                case Abandon(key=key):
                    self.jobs = [j for j in self.jobs if j[:2] != (who, key)]
                case Tell() | Present() | Depart():
                    pass

    @rule(data=st.data())
    def network(self, data: st.DataObject) -> None:
        """The stream, or the reading, answers one of the requests that are under way."""
        if self.queue:
            self.answer(data.draw(st.integers(0, len(self.queue) - 1)))

    def answer(self, which: int) -> None:
        who, command = self.queue.pop(which)
        match command:
            case ReadInputs(key=key, outputs=outputs):
                chunks = {v: tuple(self.chunks[v]) for v in outputs}
                values = {v: self.values[v] for v in outputs if v in self.values}
                self.feed(who, Read(key, {}, chunks, values, None, self.now))
            case PutChunk(key=key, variable=variable, n=n, chunk=piece):
                there = self.chunks[variable]
                assert n <= len(there), "a gap"
                if n == len(there):
                    there.append(piece)
                    self.feed(who, Stored(key, variable, n, self.now))
                else:
                    self.feed(who, Refused(key, variable, n, self.now))
            case PutValue(key=key, variable=variable, value=value):
                assert self.chunks[variable][-1].last, "a value before the last chunk"
                assert value.text == "".join(c.text for c in self.chunks[variable]), "a value that is not its chunks"
                assert list(value.tokens) == [t for c in self.chunks[variable] for t in c.tokens]
                if variable in self.values:
                    assert self.values[variable].text == value.text
                    self.feed(who, Refused(key, variable, None, self.now))
                else:
                    self.values[variable] = value
                    self.feed(who, Stored(key, variable, None, self.now))

    @rule(data=st.data(), text=st.sampled_from(WORDS))
    def make(self, data: st.DataObject, text: str) -> None:
        if self.jobs:
            who, key, ended = data.draw(st.sampled_from(self.jobs))
            if left := [v for v in self.variables if not ended[v]]:
                self.feed(who, Reported(Produced(key, VarId(left[0]), text, (len(text),)), self.now))

    @rule(data=st.data())
    def end_output(self, data: st.DataObject) -> None:
        if self.jobs:
            who, key, ended = data.draw(st.sampled_from(self.jobs))
            if left := [v for v in self.variables if not ended[v]]:
                ended[left[0]] = True
                self.feed(who, Reported(OutputEnded(key, VarId(left[0]), FinishReason.STOP), self.now))

    @rule(seconds=st.sampled_from((0.001, 0.01, 0.02, 0.5)))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [a for a in self.alarms if a[1].at <= self.now]
        self.alarms = [a for a in self.alarms if a[1].at > self.now]
        for who, wake in due:
            self.feed(who, Due(wake.key, wake.variable, self.now))

    @rule(who=st.integers(0, 1))
    def stop(self, who: int) -> None:
        self.feed(who, Asked(Stop(tenant="t", session="s", call="call-a", attempt=self.attempt, lease=LEASE), self.now))

    @invariant()
    def at_most_one_last(self) -> None:
        for chunks in self.chunks.values():
            assert [c.last for c in chunks[:-1]] == [False] * (len(chunks) - 1)

    def teardown(self) -> None:
        """Whatever zombies there were: one more attempt on a fresh worker ends it all."""
        if not self.variables:
            return
        self.queue, self.jobs, self.alarms = [], [], []
        self.cores = [WorkerCore(WorkerId("w9"), resumable=True)]
        self.dispatch(0)
        for _ in range(40):
            self.pass_time(0.02)
            while self.queue:
                self.answer(0)
            for who, key, ended in list(self.jobs):
                for variable in self.variables:
                    if not ended[variable]:
                        ended[variable] = True
                        self.feed(who, Reported(OutputEnded(key, VarId(variable), FinishReason.STOP), self.now))
        assert set(self.values) == set(self.variables)
        assert self.cores[0].running == ()


AttemptMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAttemptMachine = AttemptMachine.TestCase
