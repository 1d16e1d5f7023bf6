from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.gateway.openai.callstream import Begun, CallStream, Piece, Written
from myna.actors.gateway.openai.toolcalls import Called, Scanner, parse

ARGUMENTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('ab"\\{}[],: ü\n'), max_size=6),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
CALLS = st.lists(st.tuples(st.sampled_from(["look_up", "roll"]), ARGUMENTS), min_size=1, max_size=3)


def hermes(calls: list[tuple[str, dict[str, object]]]) -> str:
    return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {json.dumps(a)}}}\n</tool_call>' for n, a in calls)


def llama(calls: list[tuple[str, dict[str, object]]]) -> str:
    return "; ".join(f'{{"name": "{n}", "parameters": {json.dumps(a, ensure_ascii=False)}}}' for n, a in calls)


def mistral(calls: list[tuple[str, dict[str, object]]]) -> str:
    return f"[TOOL_CALLS] [{', '.join(json.dumps({'name': n, 'arguments': a}) for n, a in calls)}]"


def gathered(pieces: list[Piece]) -> list[Called]:
    found: list[Called] = []
    for piece in pieces:
        match piece:
            case Begun(name=name):
                found.append(Called(name, ""))
            case Written(text=text):
                found[-1] = Called(found[-1].name, found[-1].arguments + text)
    return found


@given(calls=CALLS, write=st.sampled_from([hermes, llama, mistral]), data=st.data())
def test_the_pieces_are_the_calls_however_the_text_is_cut(calls, write, data) -> None:  # type: ignore[no-untyped-def]
    text = write(calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    scanner = Scanner(["look_up", "roll"], forced=True)
    pieces: list[Piece] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        assert scanner.feed(text[begin:end]) == ""
        pieces += scanner.pieces()
    found = gathered(pieces)
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert scanner.begun == len(scanner.finish().calls) == len(parse(text, ["look_up", "roll"]).calls)


def test_the_arguments_come_as_they_are_written() -> None:
    stream = CallStream(["look_up"])
    assert stream.feed('<tool_call>{"name": "look') == []
    assert stream.feed('_up", "arguments": ') == []
    assert stream.feed('{"word"') == [Begun("look_up"), Written('{"word"')]
    assert stream.feed(': "f') == [Written(': "f')]
    assert stream.feed('ox}"}}</tool_call>') == [Written('ox}"}')]


@pytest.mark.parametrize("text", ['{"name": "drop", "arguments": {}}', "<tool_call>no</tool_call>", "words", "{}"])
def test_what_is_no_call_of_an_offered_function_begins_none(text: str) -> None:
    stream = CallStream(["look_up"])
    assert [piece for letter in text for piece in stream.feed(letter)] == []
    assert stream.begun == 0


def test_an_object_without_the_mark_of_a_call_may_still_be_words() -> None:
    scanner = Scanner(["look_up"])
    text = '{"name": "look_up", "arguments": {"word": "fox"}}'
    assert scanner.feed(text) == ""
    assert scanner.pieces() == []
    assert scanner.feed(" is how") + scanner.finish().text == f"{text} is how"


def test_a_call_that_is_cut_is_not_told_again_as_words() -> None:
    scanner = Scanner(["look_up"], forced=True)
    scanner.feed('{"name": "look_up", "arguments": {"word": "f')
    assert gathered(scanner.pieces()) == [Called("look_up", '{"word": "f')]
    end = scanner.finish()
    assert (end.text, end.calls, scanner.begun) == ("", (), 1)
