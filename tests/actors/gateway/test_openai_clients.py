"""The clients that people come with, each against a real gateway on real NATS."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from myna.actors.gateway.server import Gateway

pytestmark = pytest.mark.nats

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0, timeout=20) as it:
        yield it


async def test_a_chat_is_answered_with_its_usage_and_why_it_ended(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="noop", messages=HELLO, max_tokens=3)
    assert answer.choices[0].message.content == "answer0 answer1 answer2"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.model == "noop"


async def test_a_chat_streams_its_pieces_then_its_end_and_its_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="noop", messages=HELLO, max_tokens=40, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(said).startswith("answer0 answer1")
    assert "".join(said).endswith("answer39")
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40


async def test_several_choices_have_their_own_index_whole_and_as_a_stream(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="noop", messages=HELLO, max_tokens=2, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(i, "answer0 answer1") for i in range(3)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    texts = ["", "", ""]
    async for chunk in await client.chat.completions.create(
        model="noop", messages=HELLO, max_tokens=2, n=3, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["answer0 answer1"] * 3


async def test_completions_take_several_prompts_and_echo_them(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="noop", prompt=["One ", "Two "], max_tokens=1, n=2, echo=True)
    assert [c.text for c in answer.choices] == ["One answer0", "One answer0", "Two answer0", "Two answer0"]
    pieces = [c async for c in await client.completions.create(model="noop", prompt="One", max_tokens=30, stream=True)]
    assert "".join(p.choices[0].text for p in pieces).endswith("answer29")


async def test_responses_are_answered_whole_and_as_events(client: AsyncOpenAI) -> None:
    answer = await client.responses.create(model="noop", input="Hello", max_output_tokens=2, instructions="Be brief.")
    assert answer.output_text == "answer0 answer1"
    assert answer.status == "incomplete"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2
    async with client.responses.stream(model="noop", input=HELLO, max_output_tokens=30) as stream:
        events = [event async for event in stream]
    assert events[0].type == "response.created"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta").endswith("answer29")
    assert events[-1].type == "response.incomplete"  # it was cut at its length, and says so
    assert events[-1].response.output_text.endswith("answer29")
    assert [e.sequence_number for e in events] == list(range(len(events)))  # type: ignore[union-attr]


async def test_models_are_listed_and_unknown_ones_are_not_found(client: AsyncOpenAI) -> None:
    assert [m.id async for m in client.models.list()] == ["noop"]
    assert (await client.models.retrieve("noop")).id == "noop"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-17", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-17")


async def test_any_model_will_do_where_none_is_named(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="default", messages=HELLO, max_tokens=1)
    assert answer.model == "noop"


WRONG: list[tuple[dict[str, object], str | None]] = [
    ({"temperature": 3}, "temperature"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    ({"n": 0}, "n"),
    ({"logit_bias": {"word": 1}}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
]


async def test_a_wrong_request_is_refused_with_the_field_that_is_wrong(client: AsyncOpenAI) -> None:
    for wrong, param in WRONG:
        request = {"model": "noop", "messages": HELLO, "max_tokens": 1, **wrong}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**request)  # type: ignore[call-overload]
        assert caught.value.type == "invalid_request_error"
        if param is not None:
            assert caught.value.param == param


async def test_embeddings_are_refused_clearly(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        await client.embeddings.create(model="noop", input="x")


async def test_a_graph_is_built_without_waiting_by_naming_variables(client: AsyncOpenAI) -> None:
    async def ask(text: str, myna: dict[str, object], tokens: int) -> object:
        return await client.chat.completions.create(
            model="noop",
            messages=[{"role": "user", "content": text}],
            max_tokens=tokens,
            extra_body={"myna": {"session": "trip-1", **myna}},
        )

    # The consumer comes first: it needs no value, and nobody has named its inputs before.
    last = asyncio.create_task(ask("Join {{a}} and {{b}}, not {{c}}", {"inputs": {"a": "first", "b": "second"}}, 2))
    first = await ask("Say one thing", {"output": "first", "wait": False}, 3)
    second = await ask("Say another", {"output": "second", "wait": False}, 4)
    assert first.choices[0].message.content is None  # type: ignore[attr-defined]
    assert second.myna == {"session": "trip-1", "variables": ["second"]}  # type: ignore[attr-defined]
    whole = await last
    assert whole.choices[0].message.content == "answer0 answer1"  # type: ignore[attr-defined]
    read = await client.get("/../myna/v1/sessions/trip-1/variables/first", cast_to=object)
    assert read["text"] == "answer0 answer1 answer2"  # type: ignore[index]


async def test_an_input_without_a_placeholder_is_a_mistake(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no placeholder"):
        await client.chat.completions.create(
            model="noop", messages=HELLO, extra_body={"myna": {"session": "s-1", "inputs": {"a": "b"}}}
        )
    with pytest.raises(openai.BadRequestError, match="need a `session`"):
        await client.chat.completions.create(
            model="noop", messages=HELLO, extra_body={"myna": {"output": "b", "wait": False}}
        )


LANGCHAIN = """
import asyncio, sys
from langchain_openai import ChatOpenAI

async def main():
    chat = ChatOpenAI(model="noop", base_url=sys.argv[1] + "/v1", api_key="any", max_tokens=30, max_retries=0)
    whole = await chat.ainvoke([("system", "Be brief."), ("user", "Hello")])
    assert whole.usage_metadata["output_tokens"] == 30, whole
    pieces = [str(chunk.content) async for chunk in chat.astream("Hello")]
    assert "".join(pieces) == whole.content, pieces
    assert [m.content for m in await chat.abatch(["a", "b", "c"])] == [whole.content] * 3
    print(whole.content)

asyncio.run(main())
"""

LITELLM = """
import litellm, sys
given = dict(api_base=sys.argv[1] + "/v1", api_key="any", max_tokens=30, model="openai/noop")
messages = [dict(role="user", content="Hello")]
whole = litellm.completion(messages=messages, **given).choices[0].message.content
pieces = [c.choices[0].delta.content or "" for c in litellm.completion(messages=messages, stream=True, **given)]
assert "".join(pieces) == whole, (pieces, whole)
try:
    litellm.completion(messages=messages, **{**given, "model": "openai/none"})
except litellm.NotFoundError:
    print(whole)
"""


@pytest.mark.parametrize("program", [LANGCHAIN, LITELLM], ids=["langchain", "litellm"])
async def test_other_clients_answer_and_stream(gateway: Gateway, program: str) -> None:
    # Processes of their own: they leave clients open, and warn of much. The variable keeps litellm from asking the internet.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, gateway.url),
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, errors = await process.communicate()
    assert said.decode().strip().endswith("answer29"), errors.decode()[-3000:]
