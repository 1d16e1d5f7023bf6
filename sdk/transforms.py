"""Transforms of a value between two calls. They are data: the worker that publishes the value applies them, in their order.

A transformed output has no live stream, because its text is known only when it is whole.
"""

from __future__ import annotations

import regex as patterns

from myna.actors.messages import Transform, TransformKind
from myna.sdk.errors import FunctionError


def strip() -> Transform:
    """Remove white space at both ends."""
    return Transform(kind=TransformKind.STRIP)


def first_line() -> Transform:
    """Keep the first line that is not blank."""
    return Transform(kind=TransformKind.FIRST_LINE)


def regex(pattern: str) -> Transform:
    """Keep the first group (without groups: the whole match) of the first match of `pattern`; the call fails without a match.
    Raises `FunctionError` if the pattern does not compile."""
    try:
        patterns.compile(pattern)
    except patterns.error as error:
        raise FunctionError(f"the pattern {pattern!r} of a regex transform does not compile: {error}") from None
    return Transform(kind=TransformKind.REGEX, argument=pattern)


def json_field(path: str) -> Transform:
    """Parse the text as JSON and keep the field at `path`: keys and list positions joined by dots (`answers.0.text`).
    Raises `FunctionError` if the path has an empty part."""
    if not path or not all(path.split(".")):
        raise FunctionError(
            f"the path {path!r} of a json_field transform must be keys or positions joined by dots: a.b.0"
        )
    return Transform(kind=TransformKind.JSON_FIELD, argument=path)
