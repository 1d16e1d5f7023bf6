"""Transforms of a value between two calls, applied where the value is published. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, assert_never

import regex

from myna.actors.messages import Transform, TransformKind
from myna.actors.plain import is_plain

REGEX_SECONDS = 0.2
"""The longest that one pattern may hold up the worker; most take microseconds, a catastrophic one would take for ever."""


class TransformFailed(ValueError):
    """A value that a transform can't be applied to; says which and why."""


def apply(transforms: Sequence[Transform], text: str) -> tuple[str, Any]:
    """The transformed text and, where the last step gave structured data, that data."""
    data: Any = None
    for transform in transforms:
        text, data = _apply_one(transform, text)
    return text, data


def _apply_one(transform: Transform, text: str) -> tuple[str, Any]:
    match transform.kind:
        case TransformKind.STRIP:
            return text.strip(), None
        case TransformKind.FIRST_LINE:
            return next((line.strip() for line in text.splitlines() if line.strip()), ""), None
        case TransformKind.REGEX:
            return _regex(transform.argument, text), None
        case TransformKind.JSON_FIELD:
            found = _field(transform.argument, text)
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False), found
        case _:
            assert_never(transform.kind)


def _regex(pattern: str, text: str) -> str:
    try:
        found = regex.search(pattern, text, regex.DOTALL, timeout=REGEX_SECONDS)
    except regex.error as error:
        raise TransformFailed(f"regex {pattern!r} does not compile: {error}") from error
    except TimeoutError as error:
        raise TransformFailed(f"regex {pattern!r} takes over {REGEX_SECONDS} s: make it backtrack less") from error
    if found is None:
        raise TransformFailed(f"regex {pattern!r} matches nothing in {_excerpt(text)}")
    return next((g for g in found.groups() if g is not None), "") if found.re.groups else found.group()


def _field(path: str, text: str) -> Any:
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=0)
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise TransformFailed(f"json_field {path!r}: no JSON in {_excerpt(text)}") from error
    for step in path.split(".") if path else []:
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TransformFailed(f"json_field {path!r}: no {step!r} in {_excerpt(json.dumps(value))}") from error
    if not is_plain(value):
        raise TransformFailed(
            f"json_field {path!r}: {_excerpt(json.dumps(value))} is no plain data, or nested too deep"
        )
    return value


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
