from __future__ import annotations

from typing import Any

import pytest

from myna.actors import formats
from myna.actors.formats import InvalidFormat
from myna.actors.messages import FormatKind

DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(80):
    DEEP = {"items": DEEP}
ITSELF: dict[str, Any] = {}
ITSELF["items"] = ITSELF
DOUBLED: dict[str, Any] = {}
for _ in range(40):
    DOUBLED = {"anyOf": [DOUBLED, DOUBLED]}


@pytest.mark.parametrize(
    ("kind", "definition", "says"),
    [
        (FormatKind.JSON_SCHEMA, None, "object"),
        (FormatKind.JSON_SCHEMA, "{}", "object"),
        (FormatKind.JSON_SCHEMA, {"enum": ["x" * 70_000]}, "bytes"),
        (FormatKind.JSON_SCHEMA, {"const": object()}, "JSON"),
        (FormatKind.JSON_SCHEMA, DEEP, "deep"),
        (FormatKind.JSON_SCHEMA, ITSELF, "deep"),
        (FormatKind.JSON_SCHEMA, DOUBLED, "bytes"),
        (FormatKind.JSON_SCHEMA, {"items": {"$ref": "http://example.com/schema"}}, "example.com"),
        (FormatKind.CHOICE, "yes", "list"),
        (FormatKind.CHOICE, [], "list"),
        (FormatKind.CHOICE, ["a"] * 1001, "1000"),
        (FormatKind.CHOICE, ["a", ""], "empty"),
        (FormatKind.REGEX, "", "empty"),
        (FormatKind.REGEX, ["a"], "text"),
        (FormatKind.GRAMMAR, None, "text"),
        (FormatKind.GRAMMAR, "a" * 70_000, "bytes"),
    ],
)
def test_what_can_be_no_format_is_refused_with_what_would_be_right(
    kind: FormatKind, definition: Any, says: str
) -> None:
    with pytest.raises(InvalidFormat, match=says):
        formats.of_kind(kind, definition)


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        (FormatKind.JSON_OBJECT, None),
        (FormatKind.JSON_SCHEMA, {"$defs": {"a": {"type": "null"}}, "$ref": "#/$defs/a"}),
        (FormatKind.CHOICE, ["yes", "no"]),
        (FormatKind.REGEX, "[a-z]+"),
        (FormatKind.GRAMMAR, 'start: "a"'),
    ],
)
def test_the_others_go_to_the_engine_as_they_are(kind: FormatKind, definition: Any) -> None:
    made = formats.of_kind(kind, definition)
    assert (made.kind, made.definition) == (kind, definition)
