"""A call as requests to an endpoint, one for each of its outputs, in their order: what was generated before is a part of the next
prompt, so that the endpoint finds all but the last piece in its cache.

Law: what can't be said to the endpoint is refused with a sentence that tells what would do; nothing is left out silently. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from myna.actors.endpoints.dialects import GRAMMARS, formatted
from myna.actors.endpoints.settings import Endpoint, Plain
from myna.actors.messages import (
    ErrorCode,
    Input,
    Message,
    ModelCall,
    Output,
    Sampling,
    Segment,
    Text,
    VarId,
)

Texts = Mapping[VarId, str]
"""The texts of a call's inputs, and of its outputs so far."""


class Unsupported(ValueError):
    """A call asks for something that can't be had from this endpoint."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INVALID_CALL) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the `body`, which draws the siblings `variables` of an output, each as a choice."""

    chat: bool
    body: Mapping[str, Any]
    variables: tuple[VarId, ...]
    characters: int
    """Of the prompt."""
    limit: int
    """Tokens that each choice may have."""

    @property
    def path(self) -> str:
        """Where it goes."""
        return "/chat/completions" if self.chat else "/completions"


def places(call: ModelCall) -> Iterator[Output]:
    """The call's outputs, in order."""
    return (s for m in call.messages for s in m.segments if isinstance(s, Output))


def check(call: ModelCall, endpoint: Endpoint) -> None:
    """Raise `Unsupported` for a call that can't be asked of the endpoint, before anything is: its inputs don't matter."""
    nothing: Texts = _Nothing()
    for place in places(call):
        for _ in requests(call, place, place.variables, nothing, endpoint, model="", salt=""):
            pass


def requests(
    call: ModelCall,
    place: Output,
    variables: Sequence[str],
    texts: Texts,
    endpoint: Endpoint,
    *,
    model: str,
    salt: str,
) -> Iterator[Request]:
    """The requests that draw `variables`, siblings of the output `place`: one, or one for each where the server draws no more at
    once. `salt`: the prefix cache that the call shares. Raises `Unsupported`."""
    grammar = GRAMMARS[endpoint.dialect]
    chat, prompt = _prompt(call, place, texts, endpoint)
    body: dict[str, Any] = {"model": model, **prompt, **_sampling(place.sampling, endpoint, chat=chat)}
    if place.format is not None:
        body |= _format(place, endpoint, chat=chat)
    if chat and call.tools:
        body |= _tools(call)
    elif call.tools:
        raise Unsupported(f"{_at(endpoint)}: tools need a chat: give the prompt roles")
    if grammar.salt and salt:
        body[grammar.salt] = salt
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    characters = len(json.dumps(prompt, ensure_ascii=False))
    if grammar.several:
        yield _request(chat, body, variables, characters, place)
        return
    for number, variable in enumerate(variables):
        seeded = body | {"seed": body["seed"] + number} if "seed" in body else body
        yield _request(chat, seeded, (variable,), characters, place)


def _request(chat: bool, body: Mapping[str, Any], variables: Sequence[str], characters: int, place: Output) -> Request:
    several = {"n": len(variables)} if len(variables) > 1 else {}
    names = tuple(VarId(v) for v in variables)
    return Request(chat, {**body, **several}, names, characters, place.sampling.max_tokens)


# --- the prompt ---


def _prompt(call: ModelCall, place: Output, texts: Texts, endpoint: Endpoint) -> tuple[bool, dict[str, Any]]:
    """Whether it is a chat, and the fields that hold the prompt up to an output."""
    history, opened = _until(call.messages, place)
    roles = {message.role for message in call.messages}
    if None in roles:
        if len(roles) > 1:
            raise Unsupported("either every message of a call has a role or none has")
        text = "".join(_text(m.segments, texts) for m in history) + _text(opened, texts)
        if endpoint.plain is Plain.COMPLETIONS:
            return False, {"prompt": text}
        return True, {"messages": [{"role": "user", "content": text}]}
    messages = [_message(m, texts) for m in history]
    begun = _text(opened, texts)
    if not begun.strip():
        return True, {"messages": messages}
    prefill = GRAMMARS[endpoint.dialect].prefill
    if prefill is None:
        begins = "an assistant's message that begins with a text can't be continued there"
        raise Unsupported(f"{_at(endpoint)}: {begins}: end that message, and begin a new one with the output alone")
    return True, {"messages": [*messages, {"role": "assistant", "content": begun}], **prefill}


def _until(messages: Sequence[Message], place: Output) -> tuple[Sequence[Message], Sequence[Segment]]:
    """The messages before the one with an output, and what that begins with."""
    for number, message in enumerate(messages):
        for at, segment in enumerate(message.segments):
            if segment is place:
                if message.role not in (None, "assistant"):
                    raise Unsupported(f"only the assistant's messages can hold an output, not the {message.role}'s")
                return messages[:number], message.segments[:at]
    raise AssertionError("the output is not the call's")


def _text(segments: Sequence[Segment], texts: Texts) -> str:
    return "".join(_piece(segment, texts) for segment in segments)


def _piece(segment: Segment, texts: Texts) -> str:
    match segment:
        case Text(text=text):
            return text
        case Input(variables=variables, joiner=joiner):
            return joiner.join(texts[VarId(v)] for v in variables)
        case Output(variables=variables):
            return texts[VarId(variables[0])]


def _message(message: Message, texts: Texts) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": _text(message.segments, texts)}
    if message.name is not None:
        told["name"] = message.name
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        told["tool_calls"] = [_tool_call(made) for made in message.tool_calls]
        told["content"] = told["content"] or None
    return told


def _tool_call(made: Any) -> Any:
    """A call that the model made, whose arguments OpenAI's API has as text."""
    if not isinstance(made, Mapping) or not isinstance(function := made.get("function"), Mapping):
        raise Unsupported("the tool calls of a message must be in the form of OpenAI's API")
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {**made, "function": {**function, "arguments": text}}


def _tools(call: ModelCall) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {"type": "object", "properties": {}},
                **({"strict": True} if tool.strict else {}),
            },
        }
        for tool in call.tools
    ]
    choice: Any = call.tool_choice
    if choice not in ("", "auto", "none", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    body = {"tools": tools, **({"tool_choice": choice} if choice else {})}
    return body if call.parallel_tool_calls else body | {"parallel_tool_calls": False}


class _Nothing(dict[VarId, str]):
    """Stands for all texts, to see whether a call can be asked at all. It isn't blank, as the text of an output may not be."""

    def __missing__(self, key: VarId) -> str:
        return "text"


# --- how it is drawn ---


def _sampling(sampling: Sampling, endpoint: Endpoint, *, chat: bool) -> dict[str, Any]:
    grammar = GRAMMARS[endpoint.dialect]
    body: dict[str, Any] = {
        grammar.chat_limit if chat else "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(sampling, name):
            body[name] = value
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.stop:
        if grammar.stops is not None and len(sampling.stop) > grammar.stops:
            message = f"{_at(endpoint)}: {len(sampling.stop)} stop texts; it takes {grammar.stops} at most"
            raise Unsupported(message, ErrorCode.INVALID_SAMPLING)
        body["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs} if chat else {"logprobs": sampling.logprobs}
    return body | _beyond(sampling, endpoint, grammar.sampling)


def _beyond(sampling: Sampling, endpoint: Endpoint, names: Mapping[str, str]) -> dict[str, Any]:
    """Parameters that OpenAI's API has not, where they are not at their defaults."""
    usual, body = Sampling(), {}
    for ours in ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"):
        value = getattr(sampling, ours)
        if value == getattr(usual, ours):
            continue
        if ours not in names:
            message = (
                f"{_at(endpoint)}: a server of kind {endpoint.dialect.value!r} has no parameter {ours!r}: leave it out"
            )
            raise Unsupported(message, ErrorCode.INVALID_SAMPLING)
        body[names[ours]] = list(value) if isinstance(value, tuple) else value
    return body


def _format(place: Output, endpoint: Endpoint, *, chat: bool) -> dict[str, Any]:
    assert place.format is not None
    fields = formatted(endpoint.dialect, place.format, chat=chat)
    if fields is None:
        where = "chat" if chat else "plain prompt"
        what = f"an output of format {place.format.kind.value!r} in a {where}"
        raise Unsupported(f"{_at(endpoint)}: a server of kind {endpoint.dialect.value!r} can't be asked for {what}")
    return fields


def _at(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint.name!r}"
