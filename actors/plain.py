"""What free-form fields of messages may hold: JSON data, and nothing that only some language's MessagePack can carry."""

from __future__ import annotations

import math
from typing import Any

MAX_DEPTH = 64


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether `value` is JSON data (finite numbers, string keys) nested at most `depth` deep."""
    match value:
        case None | bool() | str():
            return True
        case int():
            return -(2**63) <= value < 2**64
        case float():
            return math.isfinite(value)
        case list() | tuple():
            return depth > 0 and all(is_plain(item, depth - 1) for item in value)
        case dict():
            return depth > 0 and all(isinstance(k, str) and is_plain(v, depth - 1) for k, v in value.items())
        case _:
            return False


def require_plain(what: str, value: Any) -> None:
    """Raise ValueError, naming `what`, unless `value` is plain."""
    if not is_plain(value):
        raise ValueError(f"{what} must be JSON data: finite numbers, string keys, at most {MAX_DEPTH} levels")
