"""`POST /v1/responses`: items in, items out; each request is whole, since no gateway keeps what another could not know."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec

from myna.actors.gateway import problems
from myna.actors.gateway.http import Answer, Events, Incoming, Json, sse
from myna.actors.gateway.openai import calls, prompts, replies
from myna.actors.gateway.openai.calls import Draft, Submission
from myna.actors.gateway.openai.chat import MAX_TOKENS
from myna.actors.gateway.openai.extension import NONE, Extension
from myna.actors.gateway.openai.itemstream import ItemStream, call_items, text_item
from myna.actors.gateway.openai.schemas import (
    ChatMessage,
    FunctionCall,
    FunctionSpec,
    Item,
    JsonSchema,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    ResponseRequest,
    ResponseTool,
    ResponseToolChoice,
    ToolCall,
    ToolChoice,
    ToolSpec,
)
from myna.actors.gateway.openai.toolcalls import Parsed, Scanner, parse
from myna.actors.messages import FinishReason, Sampling, Value


async def create(incoming: Incoming) -> Answer:
    """Answer: whole, as a stream, or (`myna.wait` false) with nothing but its variable."""
    request: ResponseRequest = incoming.body
    _refuse(request)
    extended = request.myna or NONE
    draft = _draft(request, extended)
    await calls.check_model(incoming.tenancy, request.model)
    stack = AsyncExitStack()
    async with stack:
        submission = await stack.enter_async_context(calls.submitted(incoming.tenancy, [draft], extended))
        reply = _Reply(request, draft, submission, extended)
        if not extended.wait:
            return Json(reply.response("in_progress", []))
        if request.stream:
            return Events(reply.events(), reply.failed, stack.pop_all())
        ((value,),) = await submission.values()
        return Json(reply.whole(value))


def _refuse(request: ResponseRequest) -> None:
    message = "this server keeps no responses: send the whole conversation as `input`"
    for name in ("previous_response_id", "conversation"):
        if getattr(request, name) is not None:
            raise problems.invalid(message, name)
    if request.background:
        raise problems.invalid("`background` is not supported: use `myna.wait`", "background")


def _draft(request: ResponseRequest, extended: Extension) -> Draft:
    tools, choice = prompts.tools(_tools(request), _choice(request.tool_choice))
    settings = Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        max_tokens=request.max_output_tokens or MAX_TOKENS,
    )
    return Draft(
        messages=prompts.messages(list(_messages(request)), extended),
        sampling=settings,
        model=request.model,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        format=prompts.response_format(_format(request)),
    )


def _messages(request: ResponseRequest) -> Iterator[ChatMessage]:
    if request.instructions:
        yield ChatMessage(role="system", content=request.instructions)
    if isinstance(request.input, str):
        yield ChatMessage(role="user", content=request.input)
        return
    if not request.input:
        raise problems.invalid("`input` is empty", "input")
    for number, item in enumerate(request.input):
        yield _message(item, f"input[{number}]")


def _message(item: Item, where: str) -> ChatMessage:
    match item:
        case Item(type="message", role=str() as role):
            return ChatMessage(role=role, content=prompts.part_text(item.content, f"{where}.content"))
        case Item(type="function_call", call_id=str() as id_, name=str() as name):
            call = ToolCall(id=id_, function=FunctionCall(name=name, arguments=item.arguments or "{}"))
            return ChatMessage(role="assistant", tool_calls=[call])
        case Item(type="function_call_output", call_id=str() as id_):
            text = prompts.part_text(item.output, f"{where}.output")
            return ChatMessage(role="tool", content=text, tool_call_id=id_)
        case _:
            raise problems.invalid(f"an item of type {item.type!r} is not known, or lacks a field", where)


def _tools(request: ResponseRequest) -> list[ToolSpec]:
    return [ToolSpec(tool.type, _function(tool, f"tools[{i}]")) for i, tool in enumerate(request.tools or ())]


def _function(tool: ResponseTool, where: str) -> FunctionSpec | None:
    if tool.name is None:
        return None
    try:
        return msgspec.convert(tool, FunctionSpec, from_attributes=True)
    except msgspec.ValidationError as error:
        raise problems.invalid(str(error), where) from None


def _choice(given: str | ResponseToolChoice | None) -> ToolChoice:
    match given:
        case ResponseToolChoice(type="function", name=str() as name):
            return NamedTool(NamedFunction(name))
        case ResponseToolChoice(type=kind):
            raise problems.invalid(f"a choice of type {kind!r} is not known: only functions", "tool_choice")
        case "none" | "auto" | "required":
            return given
        case _:
            return None


def _format(request: ResponseRequest) -> ResponseFormat | None:
    if request.text is None:
        return None
    wanted = request.text.format
    schema = JsonSchema(wanted.name, wanted.schema) if wanted.type == "json_schema" else None
    return ResponseFormat(wanted.type, schema)


class _Reply:
    """The answers to one request."""

    def __init__(self, request: ResponseRequest, draft: Draft, submission: Submission, extended: Extension) -> None:
        self._request = request
        self._names = tuple(tool.name for tool in draft.tools)
        self._forced = bool(draft.tool_choice)
        self._tool_choice = draft.tool_choice or "auto"
        self._submission = submission
        (work,) = submission.works
        self._extra = {"myna": work.where} if extended.session is not None else {}
        self._id = f"resp-{work.call}"
        self._created = int(time.time())
        self._numbers = itertools.count()

    def response(
        self,
        status: str,
        output: list[dict[str, Any]],
        value: Value | None = None,
        error: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The response as an object."""
        request = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "metadata": request.metadata or {},
            "model": value.model if value is not None and value.model else request.model,
            "output": output,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "temperature": request.temperature,
            "tool_choice": self._tool_choice,
            "tools": msgspec.to_builtins(request.tools or []),
            "top_p": request.top_p,
            "max_output_tokens": request.max_output_tokens,
            "previous_response_id": None,
            "usage": _usage(value) if value is not None else None,
            **self._extra,
        }

    def whole(self, value: Value) -> dict[str, Any]:
        """The response with its output."""
        parsed = parse(value.text, self._names) if self._names else Parsed(value.text, ())
        items = [text_item(parsed.text)] if parsed.text or not parsed.calls else []
        return self._ended(value, [*items, *call_items(parsed.calls)])

    def _ended(self, value: Value, items: list[dict[str, Any]]) -> dict[str, Any]:
        return self.response("incomplete" if value.finish is FinishReason.LENGTH else "completed", items, value)

    # --- as a stream ---

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Events in the order that this API gives them: the response, its items, their parts, the text, and all of it again."""
        scanner, items, begun = Scanner(self._names, forced=self._forced), ItemStream(self._event), False
        async with aclosing(self._submission.texts()) as pieces:
            async for _, piece in pieces:
                if not begun:
                    begun = True
                    yield self._event("response.created", response=self.response("in_progress", []))
                    yield self._event("response.in_progress", response=self.response("in_progress", []))
                for event in self._ending(scanner, items) if piece is None else _going_on(scanner, items, piece):
                    yield event
        ended = self._ended(self._submission.variables[0].result(), items.items)
        yield self._event(f"response.{ended['status']}", response=ended)

    def _ending(self, scanner: Scanner, items: ItemStream) -> Iterator[bytes]:
        parsed = scanner.finish()
        if parsed.text:
            yield from items.words(parsed.text)
        for call in parsed.calls[scanner.begun :]:
            yield from items.whole_call(call)
        yield from items.close()
        if not items.items:  # a response has an item, if only an empty one
            yield from items.words("")
            yield from items.close()

    def failed(self, problem: problems.Problem) -> bytes:
        """The last event of a stream that fails."""
        error = {"code": problem.code, "message": problem.message}
        return self._event("response.failed", response=self.response("failed", [], error=error))

    def _event(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, "sequence_number": next(self._numbers), **fields}, event=kind)


def _going_on(scanner: Scanner, items: ItemStream, piece: str) -> Iterator[bytes]:
    if words := scanner.feed(piece):
        yield from items.words(words)
    for part in scanner.pieces():
        yield from items.call(part)


def _usage(value: Value) -> dict[str, Any]:
    counted = replies.usage([[value]])
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": counted["prompt_tokens_details"],
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }
