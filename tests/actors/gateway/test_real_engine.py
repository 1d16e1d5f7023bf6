"""What only a real engine does: a tiny model with random weights, in its own process, asked by the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from tests.actors.gateway.engine import asking_an_engine
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.fixture
async def client(nats: NatsNetwork, tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    async with asking_an_engine(nats, tmp_path) as it:
        yield it


async def test_what_the_engine_does_and_refuses_reaches_the_client(client: AsyncOpenAI) -> None:
    # One test: an engine takes seconds to start.
    hello = [{"role": "user", "content": "the quick"}]
    given = {"model": "tiny-llama", "messages": hello, "max_tokens": 6, "seed": 7, "extra_body": {"ignore_eos": True}}
    whole = await client.chat.completions.create(**given, logprobs=True, top_logprobs=2)  # type: ignore[call-overload]
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == 6
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 and t.token and t.bytes for t in tokens)
    assert whole.usage.prompt_tokens > 0

    again = await client.chat.completions.create(**given)  # type: ignore[call-overload]
    assert again.choices[0].message.content == whole.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0

    chunks = [c async for c in await client.chat.completions.create(**given, logprobs=True, stream=True)]  # type: ignore[call-overload]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    streamed = [t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == [t.token for t in tokens]

    plain = await client.completions.create(model="tiny-llama", prompt="the fox", max_tokens=3, logprobs=1, seed=1)
    assert plain.choices[0].logprobs is not None
    assert len(plain.choices[0].logprobs.tokens or []) == len(plain.choices[0].logprobs.token_logprobs or [])

    called = [
        *hello,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "an animal"},
    ]
    told = await client.chat.completions.create(**{**given, "messages": called}, tools=[TOOL])
    assert told.usage.prompt_tokens > 2 * whole.usage.prompt_tokens

    for refused, says in (
        ({"response_format": {"type": "json_object"}}, "ignore_eos"),
        ({"messages": [{"role": "user", "content": "the quick " * 500}]}, "context"),
        ({"logit_bias": {"999999": 1}}, "vocabulary"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            await client.chat.completions.create(**{**given, **refused})
