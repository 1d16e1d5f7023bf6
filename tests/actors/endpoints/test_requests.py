from __future__ import annotations

from typing import Any

import pytest

from myna.actors.endpoints.requests import Request, Unsupported, check, places, requests
from myna.actors.endpoints.settings import Dialect, Endpoint, Plain
from myna.actors.messages import (
    ErrorCode,
    FormatKind,
    Input,
    Message,
    ModelCall,
    Output,
    ResponseFormat,
    Sampling,
    Segment,
    Text,
    Tool,
    VarId,
)

TEXTS = {VarId("q"): "why?", VarId("a"): "because", VarId("b"): "so"}


def out(*variables: str, **options: Any) -> Output:
    return Output(variables=variables or ("a",), sampling=Sampling(**options))


def turn(role: str | None, *segments: Segment | str, **fields: Any) -> Message:
    return Message(segments=tuple(Text(text=s) if isinstance(s, str) else s for s in segments), role=role, **fields)


def asked(*messages: Message, number: int = 0, dialect: Dialect = Dialect.OPENAI, **options: Any) -> Request:
    found = every(*messages, number=number, dialect=dialect, **options)
    assert len(found) == 1
    return found[0]


def every(
    *messages: Message,
    number: int = 0,
    dialect: Dialect = Dialect.OPENAI,
    plain: Plain = Plain.COMPLETIONS,
    **call: Any,
) -> list[Request]:
    made = ModelCall(id="c", messages=messages, **call)
    place = list(places(made))[number]
    endpoint = Endpoint(name="e", url="http://h", dialect=dialect, plain=plain)
    return list(requests(made, place, place.variables, TEXTS, endpoint, model="m", salt="acme"))


def test_a_prompt_without_roles_is_a_completion_or_where_there_are_none_a_user_s_message() -> None:
    prompt = turn(None, "Q: ", Input(variables=("q", "b"), joiner=", "), out())
    assert asked(prompt).body["prompt"] == "Q: why?, so"
    assert asked(prompt).path == "/completions"
    as_chat = asked(prompt, plain=Plain.USER)
    assert as_chat.path == "/chat/completions"
    assert as_chat.body["messages"] == [{"role": "user", "content": "Q: why?, so"}]


def test_a_chat_is_its_messages_and_a_later_output_follows_what_earlier_ones_became() -> None:
    chat = (
        turn("system", "Be brief."),
        turn("user", Input(variables=("q",))),
        turn("assistant", out("a")),
        turn("user", "And?"),
        turn("assistant", " ", out("b")),
    )
    assert asked(*chat).body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "why?"},
    ]
    assert asked(*chat, number=1).body["messages"][2:] == [
        {"role": "assistant", "content": "because"},
        {"role": "user", "content": "And?"},
    ]


def test_a_text_in_the_assistant_s_mouth_is_sent_where_it_can_be_continued_and_refused_elsewhere() -> None:
    chat = (turn("user", "?"), turn("assistant", "It is ", out()))
    body = asked(*chat, dialect=Dialect.VLLM).body
    assert body["messages"][-1] == {"role": "assistant", "content": "It is "}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    with pytest.raises(Unsupported, match="can't be continued"):
        asked(*chat)


def test_only_what_is_not_usual_is_sent_of_the_sampling() -> None:
    body = asked(turn(None, "?", out(max_tokens=7))).body
    assert set(body) == {"model", "prompt", "max_tokens", "temperature", "top_p", "stream", "stream_options"}
    given = asked(
        turn("user", "?"),
        turn(
            "assistant", out(max_tokens=7, seed=3, stop=("x",), logit_bias={5: 1.0}, presence_penalty=0.5, logprobs=2)
        ),
    ).body
    assert given["max_completion_tokens"] == 7
    assert (given["seed"], given["stop"], given["logit_bias"]) == (3, ["x"], {"5": 1.0})
    assert (given["presence_penalty"], given["logprobs"], given["top_logprobs"]) == (0.5, True, 2)


@pytest.mark.parametrize(
    ("dialect", "options", "name", "value"),
    [
        (Dialect.VLLM, {"stop_token_ids": (7,)}, "stop_token_ids", [7]),
        (Dialect.SGLANG, {"min_tokens": 3}, "min_tokens", 3),
        (Dialect.LLAMACPP, {"repetition_penalty": 1.2}, "repeat_penalty", 1.2),
    ],
)
def test_each_kind_of_server_has_its_own_names_for_what_goes_beyond_openai(
    dialect: Dialect, options: dict[str, Any], name: str, value: Any
) -> None:
    prompt = turn(None, "?", out(**options))
    assert asked(prompt, dialect=dialect).body[name] == value
    with pytest.raises(Unsupported, match=next(iter(options))) as error:
        asked(prompt)
    assert error.value.code is ErrorCode.INVALID_SAMPLING


def test_siblings_are_drawn_at_once_or_one_after_another_with_seeds_of_their_own() -> None:
    prompt = turn(None, "?", out("a", "b", seed=5))
    (both,) = every(prompt)
    assert (both.body["n"], both.variables) == (2, ("a", "b"))
    first, second = every(prompt, dialect=Dialect.LLAMACPP)
    assert (first.variables, second.variables) == (("a",), ("b",))
    assert (first.body["seed"], second.body["seed"]) == (5, 6)
    assert "n" not in first.body


@pytest.mark.parametrize(
    ("dialect", "kind", "fields"),
    [
        (Dialect.OPENAI, FormatKind.JSON_OBJECT, {"response_format": {"type": "json_object"}}),
        (Dialect.VLLM, FormatKind.REGEX, {"structured_outputs": {"regex": "x"}}),
        (Dialect.SGLANG, FormatKind.GRAMMAR, {"ebnf": "x"}),
        (Dialect.LLAMACPP, FormatKind.GRAMMAR, {"grammar": "x"}),
        (Dialect.OPENAI, FormatKind.REGEX, None),
        (Dialect.SGLANG, FormatKind.CHOICE, None),
    ],
)
def test_formats_are_asked_for_as_the_server_knows_them_or_refused(
    dialect: Dialect, kind: FormatKind, fields: dict[str, Any] | None
) -> None:
    place = Output(variables=("a",), format=ResponseFormat(kind=kind, definition="x"))
    chat = (turn("user", "?"), turn("assistant", place))
    if fields is None:
        with pytest.raises(Unsupported, match=kind.value):
            asked(*chat, dialect=dialect)
    else:
        assert asked(*chat, dialect=dialect).body.items() >= fields.items()


def test_tools_and_the_calls_that_were_made_of_them_are_told_as_openai_has_them() -> None:
    made = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}]
    chat = (
        turn("user", "?"),
        turn("assistant", tool_calls=made),
        turn("tool", "blue", tool_call_id="1"),
        turn("assistant", out()),
    )
    body = asked(*chat, tools=(Tool(name="look"),), tool_choice="look").body
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"at": "sky"}'
    assert body["messages"][1]["content"] is None
    assert body["messages"][2] == {"role": "tool", "content": "blue", "tool_call_id": "1"}
    assert body["tools"][0]["function"]["name"] == "look"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}


def test_tenants_don_t_share_a_cache_where_that_can_be_asked_for() -> None:
    prompt = turn(None, "?", out())
    assert asked(prompt, dialect=Dialect.VLLM).body["cache_salt"] == "acme"
    assert "cache_salt" not in asked(prompt).body


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ((turn("user", "?"), turn(None, out())), "every message of a call has a role or none"),
        ((turn("user", "?", out()),), "only the assistant's"),
        ((turn(None, "?", out("a"), out(stop=("1", "2", "3", "4", "5"))),), "stop texts"),
        ((turn("assistant", tool_calls=["x"]), turn("assistant", out())), "in the form of OpenAI's API"),
    ],
)
def test_a_call_that_can_t_be_asked_is_refused_before_anything_is(messages: tuple[Message, ...], told: str) -> None:
    with pytest.raises(Unsupported, match=told):
        check(ModelCall(id="c", messages=messages), Endpoint(name="e", url="http://h"))
