"""Whether an answer is what was asked for: judged as our own engine judges its own, as far as that can be told without a grammar.
Pure.

Law: an endpoint may not keep what it was asked, and an answer that was cut may look whole. What was cut before it had its format,
or had called its tool, is `truncated`, or a value that says `length` where `Output.partial` allows that; what was not cut and
lacks them all the same is `invalid_format`, and worth another try.
"""

from __future__ import annotations

import json

from myna.actors.messages import ErrorCode, Failure, FinishReason, FormatKind, ModelCall, Output, ResponseFormat

_OPTIONAL = ("", "auto", "none")
"""Choices by which the model need not call a tool."""


def verdict(call: ModelCall, place: Output, text: str, finish: FinishReason) -> FinishReason | Failure:
    """How an answer has ended, of which the endpoint tells that it ended so: in a value with that reason, or in none, and why."""
    if finish is FinishReason.TOOL_CALLS:
        return finish
    # A stop text ends what is not yet whole, too; whether one has, an endpoint does not tell.
    cut = finish is FinishReason.LENGTH or bool(place.sampling.stop)
    lacking = _lacking(call, place, text, finish)
    if not lacking:
        return finish
    name = place.name or place.variables[0]
    if not cut:
        message = f"output {name!r} {lacking} that the endpoint was asked for"
        return Failure(code=ErrorCode.INVALID_FORMAT, message=message, retryable=True)
    if place.partial:
        return FinishReason.LENGTH
    message = f"output {name!r} was cut: it {lacking}: allow it more (max_tokens), or ask for less"
    return Failure(code=ErrorCode.TRUNCATED, message=message)


def _lacking(call: ModelCall, place: Output, text: str, finish: FinishReason) -> str:
    """What the answer should have and has not, as a predicate; empty where it has all."""
    if call.tool_choice not in _OPTIONAL:
        return "" if _may_call(call, text, finish) else f"has not the call of a tool ({call.tool_choice})"
    if place.format is not None and not _has_format(place.format, text, finish):
        return f"has not the format {place.format.kind.value!r}"
    return ""


def _may_call(call: ModelCall, text: str, finish: FinishReason) -> bool:
    """Whether a text in which the endpoint has found no call may be one: some servers leave that to who reads it."""
    return finish is not FinishReason.LENGTH and any(tool.name in text for tool in call.tools)


def _has_format(wanted: ResponseFormat, text: str, finish: FinishReason) -> bool:
    """JSON is JSON, an object where one was asked for, and a choice one of those given. Whether a text of a regex or a grammar
    was whole when its length cut it, nobody here can tell: it counts as not."""
    match wanted.kind:
        case FormatKind.CHOICE:
            return text in (wanted.definition or ())
        case FormatKind.JSON_OBJECT:
            return isinstance(_json(text), dict)
        case FormatKind.JSON_SCHEMA:
            return _json(text) is not _NONE
        case FormatKind.REGEX | FormatKind.GRAMMAR:
            return finish is not FinishReason.LENGTH


_NONE = object()


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NONE
