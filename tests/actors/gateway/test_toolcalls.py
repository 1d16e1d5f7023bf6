from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.gateway.openai.toolcalls import Called, Parsed, Scanner, parse

LOOK = Called("look_up", '{"word": "fox"}')
ONE = '{"name": "look_up", "arguments": {"word": "fox"}}'
LLAMA = '{"name": "look_up", "parameters": {"word": "fox"}}'


@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        (f"<tool_call>{ONE}</tool_call>", "", 1),
        (f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{ONE}</tool_call>", "", 2),
        (f"Let me see. <tool_call>{ONE}</tool_call>", "Let me see.", 1),
        (f"<tool_call>{ONE}", "", 1),
        (LLAMA, "", 1),
        (f"<|python_tag|>{LLAMA}; {LLAMA}", "", 2),
        (f"[TOOL_CALLS] [{ONE}, {ONE}]", "", 2),
        (f"[{ONE}]", "", 1),
        (f"```json\n{ONE}\n```", "", 1),
        (f'{{"type": "function", "function": {ONE}}}', "", 1),
        ('{"name": "look_up", "arguments": "{\\"word\\": \\"fox\\"}"}', "", 1),
    ],
)
def test_calls_are_found_however_a_model_writes_them(text: str, words: str, calls: int) -> None:
    assert parse(text, ["look_up"]) == Parsed(words, (LOOK,) * calls)


@pytest.mark.parametrize(
    "text",
    [
        "A fox is an animal.",
        '{"answer": 42}',
        '{"name": "drop_tables", "arguments": {}}',
        f"{ONE} is how I would call it",
        "<tool_call>not json</tool_call>",
        "[1, 2",
        "",
    ],
)
def test_what_is_no_call_of_an_offered_function_stays_text(text: str) -> None:
    assert parse(text, ["look_up"]) == Parsed(text, ())


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", ONE, LLAMA, "{", "<", "<tool", "_call>", "words ", "[", " ", "\n", "1]"]
)


@given(st.lists(PIECES, max_size=8).map("".join), st.data())
def test_a_stream_says_the_same_however_it_is_cut_and_loses_nothing(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    scanner = Scanner(["look_up"])
    shown = "".join(scanner.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    end = scanner.finish()
    whole = Scanner(["look_up"])
    at_once = whole.feed(text)
    assert (shown, end) == (at_once, whole.finish())
    if not end.calls:
        assert shown + end.text == text
    assert ONE not in shown or not text.lstrip().startswith(ONE)


def test_words_before_a_call_are_shown_at_once_and_the_call_never() -> None:
    scanner = Scanner(["look_up"])
    assert scanner.feed("Let me see: <to") == "Let me see: "
    assert scanner.feed("ol_call>" + ONE) == ""
    assert scanner.finish() == Parsed("", (LOOK,))


def test_without_tools_nothing_is_held_back() -> None:
    scanner = Scanner([])
    assert scanner.feed(ONE) == ONE
    assert scanner.finish() == Parsed("", ())
