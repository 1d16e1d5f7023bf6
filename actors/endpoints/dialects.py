"""What servers of each kind take beyond OpenAI's own parameters, and by which names.

Law: what a server would silently ignore is not sent: the call is refused with the parameter's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from myna.actors.endpoints.settings import Dialect
from myna.actors.messages import FormatKind, ResponseFormat


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a server says things. `sampling`: its names of our parameters. `prefill`: what goes with a last message of the
    assistant that is to be continued; None where that can't be asked for. `chat_limit`: what bounds a chat's answer. `stops`: how
    many stop texts it takes. `several`: whether it draws siblings at once. `salt`: the field that keeps prefix caches apart."""

    sampling: Mapping[str, str] = field(default_factory=dict)
    prefill: Mapping[str, Any] | None = None
    chat_limit: str = "max_tokens"
    stops: int | None = None
    several: bool = True
    salt: str = ""


_BEYOND = {
    name: name for name in ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids")
}
GRAMMARS: Mapping[Dialect, Grammar] = {
    Dialect.OPENAI: Grammar(chat_limit="max_completion_tokens", stops=4),
    Dialect.VLLM: Grammar(
        sampling=_BEYOND,
        prefill={"continue_final_message": True, "add_generation_prompt": False},
        salt="cache_salt",
    ),
    Dialect.SGLANG: Grammar(sampling=_BEYOND, prefill={"continue_final_message": True}),
    Dialect.LLAMACPP: Grammar(
        sampling={"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"},
        several=False,
    ),
}


def formatted(dialect: Dialect, wanted: ResponseFormat, *, chat: bool) -> dict[str, Any] | None:
    """The fields that ask for an output of this format; None where the server can't be asked for it."""
    kind, definition = wanted.kind, wanted.definition
    if kind is FormatKind.JSON_OBJECT:
        return {"response_format": {"type": "json_object"}} if chat else None
    if kind is FormatKind.JSON_SCHEMA:
        return _schema(dialect, definition, chat=chat)
    match dialect, kind:
        case Dialect.VLLM, _:
            return {"structured_outputs": {kind.value: definition}}
        case Dialect.SGLANG, FormatKind.REGEX:
            return {"regex": definition}
        case Dialect.SGLANG, FormatKind.GRAMMAR:
            return {"ebnf": definition}
        case Dialect.LLAMACPP, FormatKind.GRAMMAR:
            return {"grammar": definition}
    return None


def _schema(dialect: Dialect, schema: Any, *, chat: bool) -> dict[str, Any] | None:
    if dialect is Dialect.LLAMACPP:
        return {"response_format": {"type": "json_object", "schema": schema}} if chat else None
    if not chat and dialect is Dialect.OPENAI:
        return None
    named = {"name": "output", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
