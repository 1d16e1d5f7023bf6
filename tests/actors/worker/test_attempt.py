from __future__ import annotations

import pytest
from msgspec import structs

from myna.actors.messages import (
    Cancellation,
    Chunk,
    ErrorCode,
    EventKind,
    Failure,
    Message,
    ModelCall,
    Output,
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
from myna.actors.worker.backend import JobEnded, JobFailed, JobRefused
from myna.actors.worker.core import COALESCE, WorkerCore
from myna.actors.worker.events import (
    Abandon,
    Begin,
    Due,
    NotStored,
    PutChunk,
    PutValue,
    Read,
    ReadInputs,
    Reported,
    Wake,
)
from tests.actors.stage import call
from tests.actors.worker.desk import Desk, chunk, native, of, run_of

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


def test_a_job_has_the_place_among_others_that_the_scheduler_has_given_it() -> None:
    desk = Desk()
    desk.ask(structs.replace(run_of(call("a")), order=2.5))
    desk.read()
    (begin,) = of(Begin, desk.out)
    assert begin.job.order == 2.5


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
