"""Formats on a real engine, with a tiny model of random weights: what a reader of a variable sees of them."""

from __future__ import annotations

import json
import re

from myna.actors.messages import (
    ErrorCode,
    FinishReason,
    FormatKind,
    Message,
    ModelCall,
    Output,
    ResponseFormat,
    Sampling,
    Segment,
    Text,
    Tool,
)
from tests.actors.engine_host.test_backend import application, engine, failure, settings, value
from tests.actors.stage import stage
from tests.network import MemoryNetwork

__all__ = ["settings"]

DIGITS = ResponseFormat(kind=FormatKind.REGEX, definition="[0-9]{6}")
TOOL = Tool(
    name="roll",
    parameters={
        "type": "object",
        "properties": {"sides": {"enum": [6, 20]}},
        "required": ["sides"],
        "additionalProperties": False,
    },
)


def output(*names: str, form: ResponseFormat | None = DIGITS, tokens: int = 60, partial: bool = False) -> Output:
    drawn = Sampling(seed=1, max_tokens=tokens, temperature=2.0)
    return Output(variables=names, name=names[0], sampling=drawn, format=form, partial=partial)


def plain(name: str, *segments: Segment) -> ModelCall:
    return ModelCall(id=f"call-{name}", messages=(Message(segments=(Text(text="the quick "), *segments)),))


def chat(name: str, place: Output, choice: str) -> ModelCall:
    turns = (
        Message(role="user", segments=(Text(text="roll"),)),
        Message(role="assistant", segments=(place,)),
    )
    return ModelCall(id=f"call-{name}", messages=turns, tools=(TOOL,), tool_choice=choice, parallel_tool_calls=False)


async def test_an_output_has_its_format_or_a_failure_that_says_why(settings: object) -> None:
    async with stage(MemoryNetwork().bus) as cast:
        await cast.scheduler()
        await engine(cast, settings)  # type: ignore[arg-type]
        app = await application(cast)
        yes = ResponseFormat(kind=FormatKind.CHOICE, definition=["yes", "no"])
        wrong = ResponseFormat(kind=FormatKind.JSON_SCHEMA, definition={"type": "nothing"})
        await app.submit(
            plain("good", output("good")),
            plain("two", output("first"), Text(text=" then "), output("second", form=yes)),
            plain("siblings", output("s0", "s1", "s2")),
            plain("wrong", output("wrong", form=wrong)),
            plain("cut", output("cut", tokens=2), Text(text=" and "), output("after")),
            plain("partial", output("partial", tokens=2, partial=True)),
            plain("cut-siblings", output("c0", "c1", tokens=2)),
            chat("tool", output("tool", form=None, tokens=300), "required"),
            chat("no-tool", output("no-tool", form=None), "missing"),
        )
        for name in ("good", "first", "s0", "s1", "s2"):
            assert re.fullmatch("[0-9]{6}", (await value(app, name)).text), name
        assert (await value(app, "second")).text in ("yes", "no")
        said = (await value(app, "tool")).text
        assert re.fullmatch(r'<tool_call>\{"name": "roll", "arguments": .*\}</tool_call>', said, re.DOTALL)
        for part in re.findall(r'"arguments": (.*?)\}</tool_call>', said, re.DOTALL):
            assert json.loads(part)["sides"] in (6, 20)
        partial = await value(app, "partial")
        assert (partial.finish, len(partial.text)) == (FinishReason.LENGTH, 2)
        for name, code, says in (
            ("wrong", ErrorCode.INVALID_FORMAT, "nothing"),
            ("no-tool", ErrorCode.INVALID_FORMAT, "missing"),
            ("cut", ErrorCode.TRUNCATED, "max_tokens"),
            ("after", ErrorCode.TRUNCATED, "cut"),
            ("c0", ErrorCode.TRUNCATED, "max_tokens"),
            ("c1", ErrorCode.TRUNCATED, "max_tokens"),
        ):
            ended = await failure(app, name)
            assert (ended.code, ended.retryable) == (code, False), name
            assert says in ended.message
