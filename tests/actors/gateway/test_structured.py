"""Formats and tool calls over HTTP, by the clients that people use, from a real engine with a tiny model of random weights."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pydantic
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI

import myna
from myna import Input, Output
from myna.actors import config
from myna.actors.engine_host.backend import EngineBackend
from myna.sdk.client import connect
from tests.actors.gateway.conftest import furnished
from tests.actors.gateway.engine import asking_an_engine
from tests.network import NatsNetwork

pytestmark = pytest.mark.nats

HELLO: list[Any] = [{"role": "user", "content": "the quick"}]


class Roll(pydantic.BaseModel):
    """Rolls dice."""

    model_config = pydantic.ConfigDict(extra="forbid")
    sides: Literal[6, 20]
    kind: Literal["fair", "loaded"]


class Note(pydantic.BaseModel):
    """Takes a note, which is long: chunks of a stream hold what is written within some milliseconds."""

    model_config = pydantic.ConfigDict(extra="forbid")
    text: Annotated[str, pydantic.Field(min_length=200, max_length=300)]


NOTE: list[Any] = [openai.pydantic_function_tool(Note, name="note")]
TOOLS: list[Any] = [
    openai.pydantic_function_tool(Roll, name="roll"),
    {"type": "function", "function": {"name": "stop", "parameters": {}}},
]


@pytest.fixture
async def client(nats: NatsNetwork, tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    async with asking_an_engine(nats, tmp_path, max_position_embeddings=2048) as it:
        yield it


async def test_clients_get_what_they_ask_for_in_its_form(client: AsyncOpenAI) -> None:
    # One test: an engine takes seconds to start.
    await formats(client)
    await tools(client)
    await choices_of_tools(client)
    await streams(client)
    await responses(client)
    await langchain(str(client.base_url))
    await what_can_not_be(client)


async def formats(client: AsyncOpenAI) -> None:
    parsed = await client.chat.completions.parse(
        model="tiny-llama", messages=HELLO, response_format=Roll, max_tokens=200, seed=1
    )
    assert isinstance(parsed.choices[0].message.parsed, Roll)
    assert parsed.choices[0].finish_reason == "stop"
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(model="tiny-llama", messages=HELLO, response_format=Roll, max_tokens=3)
    several = await client.chat.completions.create(
        model="tiny-llama",
        messages=HELLO,
        n=3,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "roll", "schema": Roll.model_json_schema()}},
    )
    assert all(Roll.model_validate_json(choice.message.content or "") for choice in several.choices)
    some = await client.chat.completions.create(
        model="tiny-llama", messages=HELLO, max_tokens=4, response_format={"type": "json_object"}
    )
    assert (some.choices[0].message.content or "").startswith("{")


async def tools(client: AsyncOpenAI) -> None:
    named = await client.chat.completions.create(
        model="tiny-llama",
        messages=HELLO,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "roll"}},
        parallel_tool_calls=False,
        max_tokens=400,
    )
    (call,) = named.choices[0].message.tool_calls or ()
    assert named.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.function.name == "roll"
    Roll.model_validate_json(call.function.arguments)
    required = await client.chat.completions.parse(
        model="tiny-llama", messages=HELLO, tools=TOOLS[:1], tool_choice="required", max_tokens=400, seed=5
    )
    for made in required.choices[0].message.tool_calls or ():
        assert isinstance(made.function.parsed_arguments, Roll)
    assert required.choices[0].message.tool_calls
    none = await client.chat.completions.create(
        model="tiny-llama", messages=HELLO, tools=TOOLS, tool_choice="none", max_tokens=3
    )
    assert none.choices[0].message.tool_calls is None
    left = await client.chat.completions.create(model="tiny-llama", messages=HELLO, tools=TOOLS[:1], max_tokens=3)
    assert left.choices[0].finish_reason == "length", "a strict tool forbids no words"
    odd: list[Any] = [{"type": "function", "function": {"name": "odd", "parameters": {"not": {}}, "strict": True}}]
    with pytest.raises(openai.BadRequestError, match="not"):
        await client.chat.completions.create(model="tiny-llama", messages=HELLO, tools=odd)


async def choices_of_tools(client: AsyncOpenAI) -> None:
    one: Any = {"type": "function", "function": {"name": "stop"}}
    told: list[int] = []
    for options in (
        {},
        {"tools": TOOLS, "tool_choice": "none"},
        {"tools": TOOLS, "tool_choice": one},
        {"tools": TOOLS},
    ):
        answer = await client.chat.completions.create(model="tiny-llama", messages=HELLO, max_tokens=1, **options)
        assert answer.usage is not None
        told.append(answer.usage.prompt_tokens)
    plain, none, named, auto = told
    assert plain == none < named < auto, "a model is told of what it may call"
    given: dict[str, Any] = {"model": "tiny-llama", "messages": HELLO, "tools": NOTE, "tool_choice": "required"}
    cut = (await client.chat.completions.create(**given, max_tokens=40)).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    assert "note" in (cut.message.content or "")
    events = [event async for event in await client.chat.completions.create(**given, max_tokens=60, stream=True)]
    assert events[-1].choices[0].finish_reason == "length"
    assert any(event.choices[0].delta.tool_calls for event in events)


async def streams(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="tiny-llama",
        messages=HELLO,
        tools=NOTE,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=600,
    ) as stream:
        deltas = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
        whole = await stream.get_final_completion()
    assert len(deltas) > 3, "the arguments come as they are written"
    calls = whole.choices[0].message.tool_calls or ()
    assert calls
    assert all(isinstance(call.function.parsed_arguments, Note) for call in calls)
    assert whole.choices[0].finish_reason == "tool_calls"
    async with client.chat.completions.stream(
        model="tiny-llama", messages=HELLO, response_format=Roll, max_tokens=200, seed=1
    ) as shaped:
        final = await shaped.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Roll)


async def responses(client: AsyncOpenAI) -> None:
    shaped = await client.responses.parse(
        model="tiny-llama", input="the quick", text_format=Roll, max_output_tokens=200
    )
    assert isinstance(shaped.output_parsed, Roll)
    flat: list[Any] = [{"type": "function", **NOTE[0]["function"]}]
    given: dict[str, Any] = {
        "model": "tiny-llama",
        "input": "the quick",
        "tools": flat,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_output_tokens": 600,
    }
    whole = await client.responses.create(**given)
    (call,) = whole.output
    assert call.type == "function_call"
    Note.model_validate_json(call.arguments)
    async with client.responses.stream(**given) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") > 3
    assert kinds.count("response.output_item.done") == 1
    (last,) = final.output
    assert last.type == "function_call"
    Note.model_validate_json(last.arguments)


async def langchain(base_url: str) -> None:
    model = ChatOpenAI(model="tiny-llama", base_url=base_url, api_key="any", max_tokens=400, seed=1)  # type: ignore[arg-type, call-arg]
    methods: tuple[Literal["json_schema", "function_calling"], ...] = ("json_schema", "function_calling")
    for method in methods:
        assert isinstance(await model.with_structured_output(Roll, method=method).ainvoke("the quick"), Roll)


async def what_can_not_be(client: AsyncOpenAI) -> None:
    for form, says in (
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}, "foo"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x"}}}, "http://x"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["x" * 70_000]}}}, "bytes"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            await client.chat.completions.create(model="tiny-llama", messages=HELLO, response_format=form)  # type: ignore[call-overload]
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens"):
        await client.chat.completions.create(
            model="tiny-llama",
            messages=HELLO,
            max_tokens=3,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": Roll.model_json_schema()}},
            extra_body={"myna": {"session": "cut-1", "output": "cut"}},
        )


class Bird(pydantic.BaseModel):
    """A bird."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: Annotated[str, pydantic.Field(max_length=20)]
    can_fly: bool


@myna.function
def describe(what: Input, bird: Annotated[Bird, Output(schema=Bird, max_tokens=60, temperature=0.0)]) -> None:
    """{{#user}}Describe {{what}} as JSON.{{/user}}{{#assistant}}{{bird}}{{/assistant}}"""


@myna.function
def judge(bird: Input, verdict: Annotated[str, Output(choice=["yes", "no"], temperature=0.0)]) -> None:
    """{{#user}}Can this bird fly? {{bird}}{{/user}}{{#assistant}}{{verdict}}{{/assistant}}"""


@pytest.mark.model
@pytest.mark.timeout(400)
async def test_the_default_model_gives_objects_to_the_sdk_and_to_clients(nats: NatsNetwork, tmp_path: Path) -> None:
    settings = config.read({"HOME": str(tmp_path), "MYNA_CACHE": str(config.read(os.environ).cache)})
    async with furnished(nats, worker=False) as house:
        await house.cast.worker("engine", EngineBackend(settings))
        async with connect(bus=await nats.bus()) as application, application.session() as session:
            wren = describe("a penguin", session=session)
            verdict = judge(wren, session=session)
            assert isinstance(await wren, Bird)
            assert await verdict in ("yes", "no")
        gateway = await house.open()
        base_url = f"{gateway.url}/v1"
        asked: list[Any] = [{"role": "user", "content": "Describe an eagle."}]
        async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60) as client:
            made = await client.chat.completions.parse(
                model="default", messages=asked, response_format=Bird, max_tokens=60, temperature=0
            )
            assert isinstance(made.choices[0].message.parsed, Bird)
        model = ChatOpenAI(model="default", base_url=base_url, api_key="any", max_tokens=80, temperature=0)  # type: ignore[arg-type, call-arg]
        called = await model.with_structured_output(Bird, method="function_calling").ainvoke("Describe a wren.")
        assert isinstance(called, Bird)
