"""`POST /v1/completions`: plain prompts, without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from myna.actors.gateway import problems
from myna.actors.gateway.http import Answer, Events, Incoming, Json, sse
from myna.actors.gateway.openai import calls, extension, prompts, replies
from myna.actors.gateway.openai.calls import Draft, Submission
from myna.actors.gateway.openai.chat import DONE
from myna.actors.gateway.openai.extension import NONE, Extension
from myna.actors.gateway.openai.sampling import sampling
from myna.actors.gateway.openai.schemas import CompletionRequest
from myna.actors.messages import Message, Value

MAX_TOKENS = 16
"""Tokens of a completion whose length nobody limits: this API's own default."""
MOST_PROMPTS = 128


async def create(incoming: Incoming) -> Answer:
    """Complete one prompt or several: whole, as a stream, or (`myna.wait` false) with nothing but the variables."""
    request: CompletionRequest = incoming.body
    extended = request.myna or NONE
    given = _prompts(request, extended)
    drafts = [_draft(request, prompt, extended) for prompt in given]
    await calls.check_model(incoming.tenancy, request.model)
    stack = AsyncExitStack()
    async with stack:
        submission = await stack.enter_async_context(calls.submitted(incoming.tenancy, drafts, extended))
        reply = _Reply(request, submission, given if request.echo else [""] * len(given), extended)
        if not extended.wait:
            return Json(reply.accepted())
        if request.stream:
            return Events(reply.chunks(), lambda p: sse(replies.error(p)), stack.pop_all())
        return Json(reply.whole(await submission.values()))


def _prompts(request: CompletionRequest, extended: Extension) -> list[str]:
    given = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if not given or not all(isinstance(p, str) for p in given):
        raise problems.invalid("`prompt` must be a text or a list of texts: token ids are not taken", "prompt")
    found = [p for p in given if isinstance(p, str)]
    if len(found) > MOST_PROMPTS:
        raise problems.invalid(f"`prompt` has {len(found)} texts: at most {MOST_PROMPTS}", "prompt")
    if len(found) > 1 and extended.output is not None:
        raise problems.invalid("`output` is for a single prompt", "myna.output")
    prompts.check_inputs(found, extended)
    return found


def _draft(request: CompletionRequest, prompt: str, extended: Extension) -> Draft:
    n = request.n or 1
    if request.best_of is not None and request.best_of != n:
        raise problems.invalid("`best_of` other than `n` is not supported", "best_of")
    if request.suffix:
        raise problems.invalid("`suffix` is not supported", "suffix")
    segments = tuple(extension.segments(prompt, extended.inputs))
    settings = sampling(request, request.max_tokens or MAX_TOKENS, request.logprobs)
    return Draft(messages=(Message(segments=segments),), sampling=settings, n=n, model=request.model, chat=False)


class _Reply:
    """The answers to one request."""

    def __init__(
        self, request: CompletionRequest, submission: Submission, echoes: Sequence[str], extended: Extension
    ) -> None:
        self._request = request
        self._submission = submission
        works = submission.works
        self._echoes = echoes
        self._n = request.n or 1
        made = {"session": works[0].session.id, "variables": [v.id for v in submission.variables]}
        self._extra = {"myna": made} if extended.session is not None else {}
        name = f"cmpl-{works[0].call}"
        self._head = {"id": name, "object": "text_completion", "created": int(time.time()), "model": request.model}

    def accepted(self) -> dict[str, Any]:
        """The calls are submitted; their texts will be variables."""
        return {**self._head, "choices": [_choice(0, "", None)], "usage": None, **self._extra}

    def whole(self, groups: list[list[Value]]) -> dict[str, Any]:
        """All choices, prompt by prompt."""
        flat = [value for values in groups for value in values]
        choices = [
            _choice(i, self._echoes[i // self._n] + value.text, replies.finish(value), self._logprobs(i, value))
            for i, value in enumerate(flat)
        ]
        model = next((v.model for v in flat if v.model), self._request.model)
        return {**self._head, "model": model, "choices": choices, "usage": replies.usage(groups), **self._extra}

    def _logprobs(self, index: int, value: Value) -> dict[str, Any] | None:
        if self._request.logprobs is None:
            return None
        return replies.completion_logprobs(value, len(self._echoes[index // self._n]))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Events: the texts as they come, how each choice ended, and the usage where it is asked for."""
        begun: set[int] = set()
        async with aclosing(self._submission.texts()) as pieces:
            async for index, piece in pieces:
                if index not in begun:
                    begun.add(index)
                    if echo := self._echoes[index // self._n]:
                        yield self._chunk(_choice(index, echo, None))
                if piece is not None:
                    yield self._chunk(_choice(index, piece, None))
                else:
                    value = self._submission.variables[index].result()
                    yield self._chunk(_choice(index, "", replies.finish(value), self._logprobs(index, value)))
        options = self._request.stream_options
        if options is not None and options.include_usage:
            usage = replies.usage([[v.result() for v in work.variables] for work in self._submission.works])
            yield sse({**self._head, "choices": [], "usage": usage, **self._extra})
        yield DONE

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return sse({**self._head, "choices": [choice], **self._extra})


def _choice(index: int, text: str, reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
