"""A constraint is plain data: what kind, and its definition as text. Whether it can be followed, compiling it tells.

No model, no grammar library here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from myna.engine.errors import InvalidConstraint

MOST_BYTES = 2**16
"""Of a definition. Compiling takes seconds for a hundred thousand bytes of the worst schemas, and milliseconds for real ones."""
_SPACE = r"[ \n]{0,20}"
# A model that is unsure of what to say next goes on with white space for ever, where it may.


class ConstraintKind(StrEnum):
    """What the definition is."""

    JSON_OBJECT = "json_object"
    """Any JSON object; the definition is empty."""
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    """A pattern without look-around and back references, in the syntax of Rust's `regex`; the whole text matches."""
    CHOICE = "choice"
    """A JSON list of texts, of which the output is one."""
    GRAMMAR = "grammar"
    """Lark, or GBNF."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an output must be. Equal constraints are compiled once."""

    kind: ConstraintKind
    definition: str = ""

    @property
    def is_json(self) -> bool:
        """Whether the output is JSON of some schema."""
        return self.kind in (ConstraintKind.JSON_OBJECT, ConstraintKind.JSON_SCHEMA)


def constraint_of(kind: str, definition: Any) -> Constraint:
    """The constraint that the wire's kind and definition stand for. Raises InvalidConstraint."""
    try:
        chosen = ConstraintKind(kind)
    except ValueError:
        raise InvalidConstraint(f"{kind!r} is no kind of format; known are {', '.join(ConstraintKind)}") from None
    text = _text(chosen, definition)
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        raise InvalidConstraint(f"the {chosen} is longer than {MOST_BYTES} bytes")
    return Constraint(chosen, text)


def _text(kind: ConstraintKind, definition: Any) -> str:
    match kind:
        case ConstraintKind.JSON_OBJECT:
            return ""
        case ConstraintKind.JSON_SCHEMA:
            if not isinstance(definition, dict):
                raise InvalidConstraint("a JSON schema must be an object")
            return _json(definition)
        case ConstraintKind.CHOICE:
            texts = definition if isinstance(definition, list | tuple) else ()
            if not texts or not all(isinstance(text, str) and text for text in texts):
                raise InvalidConstraint("a choice must be a list of texts, none of them empty")
            return _json(list(texts))
        case ConstraintKind.REGEX | ConstraintKind.GRAMMAR:
            if not isinstance(definition, str) or not definition.strip():
                raise InvalidConstraint(f"a {kind} must be a text that is not empty")
            return definition


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConstraint(f"a format must be JSON: {error}") from error


def source_of(constraint: Constraint) -> str:
    """The schema of a constraint on JSON, with how it may be written."""
    return json_source({"type": "object"} if not constraint.definition else json.loads(constraint.definition))


def json_source(schema: dict[str, Any], *, lenient: bool = False) -> str:
    """A schema with how its JSON may be written: what a schema says about that itself doesn't count. `lenient`: keywords that
    can't be kept to are passed over."""
    return _json({**schema, "x-guidance": {"whitespace_pattern": _SPACE, "lenient": lenient}})
