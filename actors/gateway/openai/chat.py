"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from myna.actors.gateway.http import Answer, Events, Incoming, Json, sse
from myna.actors.gateway.openai import calls, prompts, replies
from myna.actors.gateway.openai.calls import Draft, Submission
from myna.actors.gateway.openai.callstream import Begun, Piece, Written
from myna.actors.gateway.openai.extension import NONE, Extension
from myna.actors.gateway.openai.sampling import sampling
from myna.actors.gateway.openai.schemas import ChatRequest
from myna.actors.gateway.openai.toolcalls import Called, Parsed, Scanner, parse
from myna.actors.messages import Value

DONE = b"data: [DONE]\n\n"
MAX_TOKENS = 1024
"""Tokens of an answer whose length nobody limits."""


async def create(incoming: Incoming) -> Answer:
    """Answer a chat: whole, as a stream, or (`myna.wait` false) with nothing but its variables."""
    request: ChatRequest = incoming.body
    extended = request.myna or NONE
    draft = _draft(request, extended)
    await calls.check_model(incoming.tenancy, request.model)
    stack = AsyncExitStack()
    async with stack:
        submission = await stack.enter_async_context(calls.submitted(incoming.tenancy, [draft], extended))
        reply = _Reply(request, draft, submission, extended)
        if not extended.wait:
            return Json(reply.accepted())
        if request.stream:
            return Events(reply.chunks(), lambda p: sse(replies.error(p)), stack.pop_all())
        (values,) = await submission.values()
        return Json(reply.whole(values))


def _draft(request: ChatRequest, extended: Extension) -> Draft:
    tools, choice = prompts.tools(request.tools, request.tool_choice)
    limit = request.max_completion_tokens or request.max_tokens or MAX_TOKENS
    logprobs = (request.top_logprobs or 0) if request.logprobs or request.top_logprobs else None
    return Draft(
        messages=prompts.messages(request.messages, extended),
        sampling=sampling(request, limit, logprobs),
        n=request.n or 1,
        model=request.model,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        format=prompts.response_format(request.response_format),
    )


class Calling:
    """The calls of one choice, as they are written."""

    def __init__(self) -> None:
        self._begun = 0

    def delta(self, piece: Piece) -> dict[str, Any]:
        """A piece as a delta of a message."""
        match piece:
            case Begun(name=name):
                (call,) = replies.tool_calls([Called(name, "")])
                self._begun += 1
                return {"index": self._begun - 1, **call}
            case Written(text=text):
                return {"index": self._begun - 1, "function": {"arguments": text}}


class _Reply:
    """The answers to one request."""

    def __init__(self, request: ChatRequest, draft: Draft, submission: Submission, extended: Extension) -> None:
        self._request = request
        self._names = tuple(tool.name for tool in draft.tools)
        self._forced = bool(draft.tool_choice)
        self._submission = submission
        (work,) = submission.works
        self._variables = work.variables
        self._logprobs = draft.sampling.logprobs is not None
        self._extra = {"myna": work.where} if extended.session is not None else {}
        self._head = {"id": f"chatcmpl-{work.call}", "created": int(time.time()), "model": request.model}

    def accepted(self) -> dict[str, Any]:
        """The call is submitted; its text will be a variable."""
        choice = {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": None, **self._extra}

    def whole(self, values: list[Value]) -> dict[str, Any]:
        """All choices."""
        head = self._head | {"object": "chat.completion", "model": self._model(values)}
        choices = [self._choice(i, value) for i, value in enumerate(values)]
        return {**head, "choices": choices, "usage": replies.usage([values]), "system_fingerprint": None, **self._extra}

    def _choice(self, index: int, value: Value) -> dict[str, Any]:
        parsed = parse(value.text, self._names) if self._names else Parsed(value.text, ())
        message: dict[str, Any] = {"role": "assistant", "content": parsed.text, "refusal": None}
        if parsed.calls:
            message |= {"content": parsed.text or None, "tool_calls": replies.tool_calls(parsed.calls)}
        return {
            "index": index,
            "message": message,
            "logprobs": replies.chat_logprobs(value) if self._logprobs else None,
            "finish_reason": replies.finish(value, parsed.calls),
        }

    def _model(self, values: list[Value]) -> str:
        return next((v.model for v in values if v.model), self._request.model)

    # --- as a stream ---

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Events: the role, the text as it comes, how each choice ended, and the usage where it is asked for."""
        variables = self._variables
        scanners = [Scanner(self._names, forced=self._forced) for _ in variables]
        calls_of = [Calling() for _ in variables]
        begun: set[int] = set()
        async with aclosing(self._submission.texts()) as pieces:
            async for index, piece in pieces:
                if index not in begun:
                    begun.add(index)
                    yield self._chunk(index, {"role": "assistant", "content": ""})
                if piece is None:
                    for event in self._end(index, variables[index].result(), scanners[index]):
                        yield event
                    continue
                if words := scanners[index].feed(piece):
                    yield self._chunk(index, {"content": words})
                for call in scanners[index].pieces():
                    yield self._chunk(index, {"tool_calls": [calls_of[index].delta(call)]})
        options = self._request.stream_options
        if options is not None and options.include_usage:
            usage = replies.usage([[v.result() for v in variables]])
            yield sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage, **self._extra})
        yield DONE

    def _end(self, index: int, value: Value, scanner: Scanner) -> list[bytes]:
        parsed = scanner.finish()
        events = [self._chunk(index, {"content": parsed.text})] if parsed.text else []
        for number, call in enumerate(replies.tool_calls(parsed.calls)):
            if number >= scanner.begun:
                events.append(self._chunk(index, {"tool_calls": [{"index": number, **call}]}))
        # The wire's chunks hold no log-probabilities: they come together with the end.
        logprobs = replies.chat_logprobs(value) if self._logprobs else None
        return [*events, self._chunk(index, {}, replies.finish(value, parsed.calls), logprobs)]

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [choice], **self._extra})
