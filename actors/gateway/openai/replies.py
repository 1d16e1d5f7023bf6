"""Values as OpenAI's API shows them: choices, log-probabilities, usage; and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from myna.actors.gateway.openai.toolcalls import Called
from myna.actors.gateway.problems import Problem
from myna.actors.messages import FinishReason, TokenLogprob, Value
from myna.sdk import ids

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error(problem: Problem) -> dict[str, Any]:
    """A problem in OpenAI's form."""
    kind = _TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "server_error")
    told = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    return {"error": told}


def finish(value: Value, calls: Sequence[Called] = ()) -> str:
    """Why it ended."""
    if calls or value.finish is FinishReason.TOOL_CALLS:
        return "tool_calls"
    return "length" if value.finish is FinishReason.LENGTH else "stop"


def usage(groups: Sequence[Sequence[Value]]) -> dict[str, Any]:
    """Tokens of several calls, each with its outputs: these share one prompt, which counts once."""
    prompt = sum(max((v.usage.prompt_tokens for v in values), default=0) for values in groups)
    cached = sum(max((v.usage.cached_tokens for v in values), default=0) for values in groups)
    output = sum(v.usage.output_tokens for values in groups for v in values)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def tool_calls(calls: Sequence[Called]) -> list[dict[str, Any]]:
    """Calls as a message holds them."""
    return [
        {"id": ids.new("call"), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def chat_logprobs(value: Value) -> dict[str, Any]:
    """The tokens of a chat's answer with their log-probabilities."""
    return {"content": [_token(p) | {"top_logprobs": _top(p)} for p in value.logprobs], "refusal": None}


def completion_logprobs(value: Value, offset: int = 0) -> dict[str, Any]:
    """The same in the form of completions; `offset`: characters before the first token."""
    offsets = []
    for p in value.logprobs:
        offsets.append(offset)
        offset += len(p.text)
    return {
        "tokens": [p.text for p in value.logprobs],
        "token_logprobs": [p.logprob for p in value.logprobs],
        "top_logprobs": [{t["token"]: t["logprob"] for t in _top(p)} for p in value.logprobs],
        "text_offset": offsets,
    }


def _token(p: TokenLogprob) -> dict[str, Any]:
    return {"token": p.text, "logprob": p.logprob, "bytes": list(p.text.encode("utf-8", "replace"))}


def _top(p: TokenLogprob) -> list[dict[str, Any]]:
    return [
        {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}
        for (_, logprob), text in zip(p.top, p.top_texts, strict=False)
    ]
