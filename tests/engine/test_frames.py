from __future__ import annotations

import contextlib
import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.engine import frames
from myna.engine.process import sampling_of
from myna.engine.request import FinishReason, TokenLogprob, Usage
from myna.engine.sampling import SamplingParams

CALL = frames.CallFrame(
    messages=(
        frames.CallMessage("user", (frames.TextSegment("hello 你好"),)),
        frames.CallMessage(
            "assistant",
            (frames.OutputSegment(0, frames.Sampling(top_k=3, logit_bias={5: -1.5}, stop=("x",)), ((1, 2), ())),),
        ),
    ),
    tools=({"name": "search", "parameters": {"n": [1, None, 2.5]}},),
    template_arguments={"thinking": False},
)
COMMANDS = [
    frames.Submit("r", CALL, priority=2, namespace="t", cache_prefix=False, seed=2**63),
    frames.Cancel("r"),
    frames.Retain("p", CALL),
    frames.Unpin("p"),
    frames.Query(),
    frames.Stop(drain=True),
]
REPORTS = [
    frames.DeltaReport("r", 1, "text", (1, 2), (TokenLogprob(1, -0.5, ((1, -0.5), (2, -1.0))),)),
    frames.FinishedReport("r", 0, FinishReason.STOP, Usage(5, 4, 3)),
    frames.DoneReport("r"),
    frames.FailedReport("r", "PromptTooLong", "too long"),
    frames.Rejected("what?"),
    frames.Stopped(),
    frames.Ready("m", "float32", "cpu", "d1", 100, 2048, 64, 32768, 16),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda frame: type(frame).__name__)
def test_a_command_survives_the_wire(command: frames.Command) -> None:
    (body,) = frames.FrameBuffer().feed(frames.encode(command))
    assert frames.decode_command(body) == command


@pytest.mark.parametrize("report", REPORTS, ids=lambda frame: type(frame).__name__)
def test_a_report_survives_the_wire(report: frames.Report) -> None:
    (body,) = frames.FrameBuffer().feed(frames.encode(report))
    assert frames.decode_report(body) == report


def test_the_bytes_of_a_frame_do_not_change() -> None:
    assert frames.encode(frames.Cancel("r7")) == b"\x00\x00\x00\x1b\x82\xa4type\xa6cancel\xaarequest_id\xa2r7"


@given(cuts=st.lists(st.integers(0, 400), max_size=10))
def test_frames_are_found_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(frames.encode(command) for command in COMMANDS)
    points = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    buffer = frames.FrameBuffer()
    bodies = [body for a, b in pairwise(points) for body in buffer.feed(stream[a:b])]
    assert [frames.decode_command(body) for body in bodies] == COMMANDS


@given(body=st.binary(max_size=60))
def test_bytes_that_are_no_frame_are_refused_and_nothing_else_happens(body: bytes) -> None:
    for decode in (frames.decode_command, frames.decode_report):
        with contextlib.suppress(frames.FrameError):
            decode(body)


def test_a_frame_of_absurd_length_is_fatal() -> None:
    with pytest.raises(frames.FrameError) as refusal:
        frames.FrameBuffer().feed(b"\xff\xff\xff\xff")
    assert refusal.value.fatal


def test_a_frames_sampling_is_the_engines_field_by_field() -> None:
    assert sampling_of(frames.Sampling()) == SamplingParams()
    fields = [field.name for field in dataclasses.fields(SamplingParams)]
    assert fields == [*frames.Sampling.__struct_fields__, "constraint"]  # which travels as the output's format
