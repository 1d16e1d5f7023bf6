"""Messages of OpenAI's API to the program of a call: what is filled, and where it generates.

Law: what stands in a request is text. Only `inputs` of the extension make variables of placeholders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from myna.actors import formats
from myna.actors import messages as wire
from myna.actors.gateway import problems
from myna.actors.gateway.openai import extension
from myna.actors.gateway.openai.extension import Extension
from myna.actors.gateway.openai.schemas import (
    ChatMessage,
    NamedTool,
    Part,
    ResponseFormat,
    ToolCall,
    ToolChoice,
    ToolSpec,
)

_ROLES = {"developer": "system", "function": "tool"}
_TEXTS = ("text", "input_text", "output_text")


def messages(given: Sequence[ChatMessage], extended: Extension) -> tuple[wire.Message, ...]:
    """The turns so far. Raises `Problem`."""
    texts = [_text(message.content, f"messages[{i}].content") for i, message in enumerate(given)]
    check_inputs(texts, extended)
    return tuple(_message(m, text, extended, i) for i, (m, text) in enumerate(zip(given, texts, strict=True)))


def check_inputs(texts: list[str], extended: Extension) -> None:
    """An input that stands nowhere is a mistake. Raises `Problem`."""
    for name in sorted(extension.unused(texts, extended.inputs)):
        raise problems.invalid(f"the input {name!r} has no placeholder {{{{{name}}}}} in the prompt", "myna.inputs")


def _message(message: ChatMessage, text: str, extended: Extension, number: int) -> wire.Message:
    if message.role == "tool" and message.tool_call_id is None:
        raise problems.invalid("a tool's message needs a `tool_call_id`", f"messages[{number}].tool_call_id")
    if message.tool_calls and message.role != "assistant":
        raise problems.invalid("only the assistant's messages can hold `tool_calls`", f"messages[{number}].tool_calls")
    return wire.Message(
        segments=tuple(extension.segments(text, extended.inputs)),
        role=_ROLES.get(message.role, message.role),
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=[_call(call) for call in message.tool_calls] if message.tool_calls else None,
    )


def _text(content: str | list[Part] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def part_text(content: str | list[Part] | None, where: str) -> str:
    """The text of a message's content. Raises `Problem`: engines read text alone."""
    return _text(content, where)


def _part(part: Part, where: str) -> str:
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type not in _TEXTS or part.text is None:
        raise problems.invalid(f"a part of type {part.type!r} can't be read: engines take text only", where)
    return part.text


def _call(call: ToolCall) -> dict[str, Any]:
    """Chat templates take the arguments as data; a text that is no JSON they get as it is."""
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError:
        arguments = call.function.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def tools(given: Sequence[ToolSpec] | None, choice: ToolChoice) -> tuple[tuple[wire.Tool, ...], str]:
    """The functions that the model is told of, and which it must call. Raises `Problem`."""
    if isinstance(choice, str) and choice not in ("none", "auto") and not given:
        raise problems.invalid(f"`tool_choice` {choice!r} needs `tools`", "tool_choice")
    offered = tuple(_tools(given or ()))
    if choice == "none":
        return (), ""
    if isinstance(choice, NamedTool):
        named = tuple(tool for tool in offered if tool.name == choice.function.name)
        if not named:
            raise problems.invalid(f"`tool_choice` names {choice.function.name!r}, which is no tool", "tool_choice")
        return named, choice.function.name
    return offered, "required" if choice == "required" else ""


def _tools(given: Sequence[ToolSpec]) -> Iterator[wire.Tool]:
    for number, tool in enumerate(given):
        if tool.type != "function" or tool.function is None:
            raise problems.invalid(f"a tool of type {tool.type!r} is not known: only functions", f"tools[{number}]")
        function = tool.function
        try:
            formats.check_size(f"the parameters of tool {function.name!r}", function.parameters)
        except formats.InvalidFormat as error:
            raise problems.invalid(str(error), f"tools[{number}].function.parameters") from None
        yield wire.Tool(
            name=function.name,
            description=function.description or "",
            parameters=function.parameters,
            strict=function.strict is True,
        )


def response_format(given: ResponseFormat | None) -> wire.ResponseFormat | None:
    """The constraint on the answer. Raises `Problem`."""
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return formats.json_object()
    if given.json_schema is None or given.json_schema.schema is None:
        raise problems.invalid("a format of type json_schema needs its `schema`", "response_format.json_schema")
    try:
        return formats.json_schema(given.json_schema.schema)
    except formats.InvalidFormat as error:
        raise problems.invalid(str(error), "response_format.json_schema.schema") from None
