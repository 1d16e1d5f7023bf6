"""What an output must look like, as people say it: checked for its form here, where it costs nothing to be told.

Law: whatever passes here is plain, bounded data of the right type. Whether an engine can follow it, only the engine knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from myna.actors.messages import FormatKind, ResponseFormat

MOST_BYTES = 2**16
"""Of a definition as JSON: what compiles in well under a second."""
MOST_DEPTH = 60
MOST_CHOICES = 1000


class InvalidFormat(ValueError):
    """A format that can't be; says what would be right."""


def json_object() -> ResponseFormat:
    """Any JSON object."""
    return ResponseFormat(kind=FormatKind.JSON_OBJECT)


def json_schema(schema: Any) -> ResponseFormat:
    """JSON that is valid by a schema. Raises `InvalidFormat`."""
    if not isinstance(schema, dict):
        raise InvalidFormat(f"a JSON schema must be an object, not {type(schema).__name__}")
    _check_depth(schema)
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise InvalidFormat(
                f"the schema refers to {reference!r}: only references inside it (#/$defs/…) can be followed"
            )
    return _made(FormatKind.JSON_SCHEMA, schema)


def choice(texts: Any) -> ResponseFormat:
    """One of these texts. Raises `InvalidFormat`."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not 1 <= len(texts) <= MOST_CHOICES:
        raise InvalidFormat(f"a choice must be a list of 1 to {MOST_CHOICES} texts")
    if not all(isinstance(text, str) and text for text in texts):
        raise InvalidFormat("a choice must hold texts, none of them empty")
    return _made(FormatKind.CHOICE, list(texts))


def regex(pattern: Any) -> ResponseFormat:
    """A text that matches, as a whole; no look-around, no back references. Raises `InvalidFormat`."""
    return _made(FormatKind.REGEX, _text("a pattern", pattern))


def grammar(text: Any) -> ResponseFormat:
    """A text of a context-free grammar in the notation of Lark or GBNF. Raises `InvalidFormat`."""
    return _made(FormatKind.GRAMMAR, _text("a grammar", text))


def of_kind(kind: FormatKind, definition: Any) -> ResponseFormat:
    """A format by its kind. Raises `InvalidFormat`."""
    match kind:
        case FormatKind.JSON_OBJECT:
            return json_object()
        case FormatKind.JSON_SCHEMA:
            return json_schema(definition)
        case FormatKind.CHOICE:
            return choice(definition)
        case FormatKind.REGEX:
            return regex(definition)
        case FormatKind.GRAMMAR:
            return grammar(definition)


def check_size(what: str, definition: Any) -> None:
    """Raises `InvalidFormat` for what is too large to be followed."""
    _check_depth(definition)
    try:
        size = len(msgspec.json.encode(definition))
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise InvalidFormat(f"{what} must be JSON data: {error}") from None
    if size > MOST_BYTES:
        raise InvalidFormat(f"{what} has {size} bytes: at most {MOST_BYTES}")


def _made(kind: FormatKind, definition: Any) -> ResponseFormat:
    check_size(f"the definition of a {kind} format", definition)
    return ResponseFormat(kind=kind, definition=definition)


def _text(what: str, given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise InvalidFormat(f"{what} must be a text that is not empty")
    return given


def _check_depth(value: Any) -> None:
    """No recursion: what is too deep for it is to be found here, data that hold themselves among it."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
        if len(level) > MOST_BYTES:
            raise InvalidFormat(f"a format may have {MOST_BYTES} bytes at most")
    raise InvalidFormat(f"a format may nest {MOST_DEPTH} levels deep at most")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _references(schema: Any) -> list[str]:
    """Of a schema that is not too deep."""
    found = [schema["$ref"]] if isinstance(schema, dict) and isinstance(schema.get("$ref"), str) else []
    return [*found, *(reference for inner in _inside(schema) for reference in _references(inner))]
