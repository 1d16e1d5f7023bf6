"""What an endpoint's stream says, event by event. Pure: JSON in, pieces out.

Law: an event is checked before it is believed; one of another form is an error, not a surprise. A stream is whole only when each
choice has said how it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from myna.actors.endpoints.requests import Request
from myna.actors.messages import FinishReason, TokenLogprob, Usage


class Malformed(ValueError):
    """An endpoint's stream is not what OpenAI's API has."""


class Filtered(ValueError):
    """The endpoint's filter of contents has ended an answer."""


@dataclass(frozen=True, slots=True)
class Written:
    """More of a choice."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolPart(Struct):
    index: int = 0
    function: _Function | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolPart] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    logprobs: Any = None
    finish_reason: str | None = None


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None


class _Top(Struct):
    token: str
    logprob: float


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _ChatLogprobs(Struct):
    content: list[_Token] | None = None


class _Logprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


_FINISHES = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
_LONGEST = 64
"""Characters that a token may have, with some to spare: what sends more for each that it may draw is not to be trusted."""


class Answer:
    """One answer, as it comes."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._room = _LONGEST * (request.limit + 16) * len(request.variables)
        self._tools: dict[int, dict[int, tuple[str, str]]] = {}
        self._pieces = 0
        self._written = 0
        self._told: Usage | None = None
        self.finishes: dict[int, FinishReason] = {}

    def feed(self, data: Any) -> Iterator[Written]:
        """One event, as JSON. Raises `Malformed`, `Filtered`."""
        try:
            event = msgspec.convert(data, _Event)
        except msgspec.ValidationError as error:
            raise Malformed(f"an event is not as OpenAI's API has it: {error}") from None
        if event.usage is not None and event.usage.prompt_tokens is not None:
            self._told = _usage(event.usage)
        for choice in event.choices or ():
            if not 0 <= choice.index < len(self._request.variables):
                raise Malformed(f"an event is of choice {choice.index}, and there are {len(self._request.variables)}")
            yield from self._choice(choice)

    def _choice(self, choice: _Choice) -> Iterator[Written]:
        delta = choice.delta or _Delta()
        text = choice.text or delta.content or delta.refusal or ""
        logprobs = _logprobs(choice.logprobs, chat=self._request.chat) if choice.logprobs is not None else ()
        for part in delta.tool_calls or ():
            self._tool(choice.index, part)
        if text or logprobs:
            self._grow(len(text))
            yield Written(choice.index, text, logprobs)
        if choice.finish_reason is not None:
            if choice.finish_reason == "content_filter":
                raise Filtered("its filter of contents has ended the answer")
            made = self._tools.pop(choice.index, None)
            reason = _FINISHES.get(choice.finish_reason, FinishReason.STOP)
            if made:
                text, whole = _as_text(made, cut=reason is FinishReason.LENGTH)
                yield Written(choice.index, text)
                reason = FinishReason.TOOL_CALLS if whole else reason
            self.finishes[choice.index] = reason

    def _tool(self, index: int, part: _ToolPart) -> None:
        function, made = part.function or _Function(), self._tools.setdefault(index, {})
        name, arguments = made.get(part.index, ("", ""))
        self._grow(len(function.name or "") + len(function.arguments or ""))
        made[part.index] = (name + (function.name or ""), arguments + (function.arguments or ""))

    def _grow(self, characters: int) -> None:
        self._pieces += 1
        self._written += characters
        if self._written > self._room:
            limit = self._request.limit
            raise Malformed(f"it has sent {self._written} characters where {limit} tokens were asked for, and goes on")

    @property
    def usage(self) -> Usage:
        """What it took: as the endpoint told, else an estimate, since an expense that is not told is one all the same."""
        if self._told is not None:
            return self._told
        return Usage(prompt_tokens=self._request.characters // 4, output_tokens=self._pieces)

    def check_whole(self) -> None:
        """Raise `Malformed` if the stream has ended too early."""
        if missing := len(self._request.variables) - len(self.finishes):
            raise Malformed(f"the stream has ended before {missing} of its choices did")


def _usage(told: _Usage) -> Usage:
    details = told.prompt_tokens_details
    figures = (told.prompt_tokens, details.cached_tokens if details else 0, told.completion_tokens)
    prompt, cached, output = (min(max(n or 0, 0), 2**31) for n in figures)
    return Usage(prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


def _as_text(made: dict[int, tuple[str, str]], *, cut: bool) -> tuple[str, bool]:
    """Tool calls as the text that makes one: so our own engine's models write them, and our gateway reads them. And whether all
    are whole; one that was `cut` stays open."""
    calls = [_call_as_text(name, arguments, cut=cut) for _, (name, arguments) in sorted(made.items())]
    return "".join(text for text, _ in calls), all(whole for _, whole in calls)


def _call_as_text(name: str, arguments: str, *, cut: bool) -> tuple[str, bool]:
    try:
        given = json.loads(arguments or ("" if cut else "{}"))
    except (ValueError, RecursionError):
        if cut:
            return f'<tool_call>{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}', False
        given = arguments
    return f"<tool_call>{json.dumps({'name': name, 'arguments': given}, ensure_ascii=False)}</tool_call>", True


def _logprobs(given: Any, *, chat: bool) -> tuple[TokenLogprob, ...]:
    try:
        if chat:
            return tuple(_chat_token(t) for t in msgspec.convert(given, _ChatLogprobs).content or ())
        return tuple(_tokens(msgspec.convert(given, _Logprobs)))
    except msgspec.ValidationError as error:
        raise Malformed(f"log-probabilities are not as OpenAI's API has them: {error}") from None


def _chat_token(token: _Token) -> TokenLogprob:
    tops = token.top_logprobs or []
    return _token(token.token, token.logprob, [(t.token, t.logprob) for t in tops])


def _tokens(given: _Logprobs) -> Iterator[TokenLogprob]:
    tops = given.top_logprobs or [None] * len(given.tokens)
    for text, logprob, top in zip(given.tokens, given.token_logprobs, tops, strict=False):
        yield _token(text, logprob or 0.0, list((top or {}).items()))


def _token(text: str, logprob: float, tops: list[tuple[str, float]]) -> TokenLogprob:
    """Endpoints tell texts of tokens, not ids: see `TokenLogprob`."""
    return TokenLogprob(
        token=0, logprob=logprob, top=tuple((0, p) for _, p in tops), text=text, top_texts=tuple(t for t, _ in tops)
    )
