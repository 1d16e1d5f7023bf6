from __future__ import annotations

from typing import Any

import pytest

from myna.actors.endpoints.verdict import verdict
from myna.actors.messages import (
    ErrorCode,
    Failure,
    FinishReason,
    FormatKind,
    Message,
    ModelCall,
    Output,
    ResponseFormat,
    Sampling,
    Tool,
)

STOP, LENGTH, TOOLS = FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS
OBJECT, SCHEMA, CHOICE, REGEX = (
    ResponseFormat(kind=kind, definition=definition)
    for kind, definition in (
        (FormatKind.JSON_OBJECT, None),
        (FormatKind.JSON_SCHEMA, {"type": "array"}),
        (FormatKind.CHOICE, ["yes", "yes!"]),
        (FormatKind.REGEX, "[0-9]{6}"),
    )
)


def judged(
    text: str,
    finish: FinishReason,
    form: ResponseFormat | None = None,
    *,
    partial: bool = False,
    stop: tuple[str, ...] = (),
    **call: Any,
) -> FinishReason | ErrorCode:
    """The reason of the value, or the failure's code."""
    place = Output(variables=("a",), format=form, partial=partial, sampling=Sampling(stop=stop))
    asked = ModelCall(id="c", messages=(Message(segments=(place,), role="assistant"),), **call)
    found = verdict(asked, place, text, finish)
    return found.code if isinstance(found, Failure) else found


@pytest.mark.parametrize(
    ("form", "whole", "cut"),
    [(OBJECT, '{"a": 1}', '{"a": 1'), (SCHEMA, "[1]", "[1"), (CHOICE, "yes", "ye"), (OBJECT, "{}", "12")],
)
def test_what_was_cut_before_it_had_its_format_is_truncated_or_partial(
    form: ResponseFormat, whole: str, cut: str
) -> None:
    assert [judged(whole, finish, form) for finish in (STOP, LENGTH)] == [STOP, LENGTH]
    assert judged(cut, LENGTH, form) is ErrorCode.TRUNCATED
    assert judged(cut, LENGTH, form, partial=True) is LENGTH
    assert judged(cut, STOP, form, stop=("}",)) is ErrorCode.TRUNCATED, "a stop text may have cut it"
    assert judged(cut, STOP, form, partial=True) is ErrorCode.INVALID_FORMAT, "nobody has cut it"


def test_a_text_of_a_pattern_that_was_cut_counts_as_unfinished_since_nobody_can_tell() -> None:
    assert judged("123456", STOP, REGEX) is STOP
    assert judged("123456", LENGTH, REGEX) is ErrorCode.TRUNCATED
    assert judged("123456", LENGTH, REGEX, partial=True) is LENGTH


def test_where_a_tool_has_to_be_called_an_answer_calls_one_or_is_a_failure() -> None:
    required: dict[str, Any] = {"tools": (Tool(name="look"),), "tool_choice": "required"}
    assert judged("<tool_call>...", TOOLS, **required) is TOOLS
    assert judged('<tool_call>{"name": "look", "argu', LENGTH, **required) is ErrorCode.TRUNCATED
    assert judged('<tool_call>{"name": "look", "argu', LENGTH, partial=True, **required) is LENGTH
    assert judged("I would rather not.", STOP, **required) is ErrorCode.INVALID_FORMAT
    assert judged('{"name": "look", "arguments": {}}', STOP, **required) is STOP, "its reader finds the call"


def test_a_tool_that_may_be_called_stands_in_place_of_a_format() -> None:
    optional: dict[str, Any] = {"tools": (Tool(name="look"),), "tool_choice": "auto"}
    assert judged("<tool_call>...", TOOLS, OBJECT, **optional) is TOOLS
    assert judged("words", STOP, **optional) is STOP
    assert judged("words", STOP, OBJECT, **optional) is ErrorCode.INVALID_FORMAT
