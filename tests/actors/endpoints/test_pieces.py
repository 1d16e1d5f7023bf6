from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from myna.actors.endpoints.pieces import Answer, Filtered, Malformed
from myna.actors.endpoints.requests import Request
from myna.actors.gateway.openai.toolcalls import Called, parse
from myna.actors.messages import FinishReason, Usage, VarId


def answer(*variables: str, chat: bool = True, limit: int = 100) -> Answer:
    return Answer(Request(chat, {}, tuple(map(VarId, variables or ("a",))), 40, limit))


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def texts(it: Answer, *events: Any) -> list[tuple[int, str]]:
    return [(piece.index, piece.text) for event in events for piece in it.feed(event)]


def test_choices_come_apart_and_end_each_in_its_own_way() -> None:
    it = answer("a", "b")
    said = texts(it, chunk(content="x"), chunk(1, content="y"), chunk(1, "length"), chunk(0, "stop", content="z"))
    assert said == [(0, "x"), (1, "y"), (0, "z")]
    assert it.finishes == {0: FinishReason.STOP, 1: FinishReason.LENGTH}
    it.check_whole()


def test_usage_is_what_the_endpoint_tells_else_what_came() -> None:
    it = answer()
    texts(it, chunk(content="x"), chunk(content="y"))
    assert it.usage == Usage(prompt_tokens=10, output_tokens=2)
    told = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    texts(it, {"choices": [], "usage": told})
    assert it.usage == Usage(prompt_tokens=9, cached_tokens=4, output_tokens=3)


def test_tool_calls_become_the_text_that_our_gateway_reads_as_such() -> None:
    def part(index: int, **function: str) -> dict[str, Any]:
        return chunk(tool_calls=[{"index": index, "id": "x", "function": function}])

    it = answer()
    events = [
        part(0, name="look", arguments=""),
        part(0, arguments='{"at": '),
        part(1, name="run", arguments="{}"),
        part(0, arguments='"sky"}'),
        chunk(finish="tool_calls"),
    ]
    said = "".join(text for _, text in texts(it, *events))
    assert parse(said, ("look", "run")).calls == (Called("look", '{"at": "sky"}'), Called("run", "{}"))
    assert it.finishes[0] is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("arguments", "finish", "reason", "calls"),
    [
        ('{"at": "sk', "length", FinishReason.LENGTH, ()),
        ("", "length", FinishReason.LENGTH, ()),
        ('{"at": "sky"}', "length", FinishReason.TOOL_CALLS, (Called("look", '{"at": "sky"}'),)),
        ("", "tool_calls", FinishReason.TOOL_CALLS, (Called("look", "{}"),)),
        ("nonsense", "tool_calls", FinishReason.TOOL_CALLS, (Called("look", "nonsense"),)),
    ],
)
def test_a_tool_call_that_was_cut_is_none(
    arguments: str, finish: str, reason: FinishReason, calls: tuple[Called, ...]
) -> None:
    it = answer()
    function = {"name": "look", "arguments": arguments}
    ((_, said),) = texts(it, chunk(tool_calls=[{"index": 0, "function": function}]), chunk(finish=finish))
    assert (it.finishes[0], parse(said, ("look",)).calls) == (reason, calls)
    assert arguments in said.replace('\\"', '"')


def test_log_probabilities_are_read_in_the_form_of_chats_and_of_completions() -> None:
    top = [{"token": "x", "logprob": -0.5}, {"token": "y", "logprob": -1.5}]
    content = {"content": [{"token": "x", "logprob": -0.5, "top_logprobs": top}]}
    told = {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": content}]}
    (chat,) = answer().feed(told)
    flat = {"tokens": ["x"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -0.5, "y": -1.5}]}
    (plain,) = answer(chat=False).feed({"choices": [{"index": 0, "text": "x", "logprobs": flat}]})
    assert chat.logprobs == plain.logprobs
    (token,) = chat.logprobs
    assert (token.text, token.logprob, token.top_texts) == ("x", -0.5, ("x", "y"))


def test_an_answer_that_its_filter_has_ended_is_no_answer() -> None:
    with pytest.raises(Filtered):
        texts(answer(), chunk(content="x"), chunk(finish="content_filter"))


def test_a_stream_that_ends_before_its_choices_do_is_malformed() -> None:
    it = answer("a", "b")
    texts(it, chunk(finish="stop"))
    with pytest.raises(Malformed, match="1 of its choices"):
        it.check_whole()


def test_who_sends_far_more_than_was_asked_for_is_stopped() -> None:
    it = answer(limit=4)
    with pytest.raises(Malformed, match="goes on"):
        texts(it, *(chunk(content="x" * 100) for _ in range(100)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "index", "delta", "text", "content", "usage", "logprobs", "tool_calls", "finish_reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(_JSON, max_size=4), st.booleans())
def test_whatever_json_comes_it_is_a_piece_or_a_typed_error(events: list[Any], chat: bool) -> None:
    it = answer("a", "b", chat=chat)
    try:
        for index, text in texts(it, *events):
            assert index in (0, 1)
            assert isinstance(text, str)
        assert it.usage.prompt_tokens >= 0
        it.check_whole()
    except (Malformed, Filtered):
        pass
