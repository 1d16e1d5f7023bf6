"""What an output of the SDK must look like, from what its author gives: a type, a schema, a pattern, texts, a grammar.

Law: pydantic is never imported here. Who gives a model of it has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from myna.actors import formats
from myna.actors.messages import ResponseFormat
from myna.sdk.errors import FunctionError

Parse = Callable[[str], Any]
"""Makes of a text what its reader gets. Raises ValueError."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The format that an engine keeps to, and what the reader gets; without `parse`, the text."""

    format: ResponseFormat
    parse: Parse | None = None


def shape(
    *, schema: Any = None, regex: str | None = None, choice: Any = None, grammar: str | None = None
) -> Shape | None:
    """The shape of an output; None where nothing is said of it. Raises `FunctionError`."""
    given = {"schema": schema, "regex": regex, "choice": choice, "grammar": grammar}
    said = [name for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise FunctionError(f"an output can have {said[0]} or {said[1]}, not both")
    try:
        if schema is not None:
            return _of_schema(schema)
        if regex is not None:
            return Shape(formats.regex(regex))
        if choice is not None:
            return Shape(formats.choice(choice))
        return Shape(formats.grammar(grammar)) if grammar is not None else None
    except formats.InvalidFormat as error:
        raise FunctionError(f"an output's {said[0]} can't be: {error}") from None


def _of_schema(schema: Any) -> Shape:
    if isinstance(schema, dict):
        return Shape(formats.json_schema(schema), json.loads)
    if callable(getattr(schema, "model_validate_json", None)):  # a pydantic model
        return Shape(formats.json_schema(closed(schema.model_json_schema())), schema.model_validate_json)
    if callable(getattr(schema, "validate_json", None)):  # a pydantic TypeAdapter
        return Shape(formats.json_schema(closed(schema.json_schema())), schema.validate_json)
    try:
        described = msgspec.json.schema(schema)
        decoder = msgspec.json.Decoder(schema)
    except (TypeError, RuntimeError) as error:
        raise FunctionError(
            f"schema={schema!r} is no JSON schema, pydantic model, msgspec Struct, dataclass, TypedDict or type of these: "
            f"{error}"
        ) from None
    return Shape(formats.json_schema(closed(described)), decoder.decode)


def closed(schema: Any) -> Any:
    """The same schema, in which objects have the properties that it names, and no others: a type that passes unknown ones over
    does not ask for them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner
