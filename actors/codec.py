"""The border: bytes <-> typed messages. Nothing untyped passes, and nothing here raises anything but `WireError`."""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

M = TypeVar("M")

MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes of one message; also the servers' `max_payload`."""

MAX_BODY = MAX_PAYLOAD - 64 * 1024
"""Bytes of one message's body: its headers and framing count towards the payload limit too."""


class WireError(ValueError):
    """A frame that is not what it should be; the text says what was wrong and where."""


class TooLarge(WireError):
    """A message over the payload limit; states both sizes."""

    def __init__(self, what: str, size: int, limit: int = MAX_BODY) -> None:
        super().__init__(f"{what} takes {size} bytes, but the limit of one message is {limit} bytes; split it")
        self.size = size
        self.limit = limit


def encode(message: msgspec.Struct) -> bytes:
    """Bytes of `message`. Raises `TooLarge` over the payload limit, `WireError` if a free-form field holds no plain data.

    Maps keep their order: a model writes the properties of a schema in the order in which it is told of them.
    """
    name = type(message).__name__
    try:
        data: bytes = msgpack.packb(msgspec.to_builtins(message), use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"{name} can't be encoded: {error}") from error
    if len(data) > MAX_BODY:
        raise TooLarge(f"a message of type {name}", len(data))
    return data


def decode(data: bytes, type_: type[M] | Any) -> M:
    """The message of `type_` (a class or a union of classes) in `data`. Raises `WireError`."""
    try:
        plain = msgpack.unpackb(data, raw=False, strict_map_key=False)
        result: M = msgspec.convert(plain, type_)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        expected = getattr(type_, "__name__", str(type_)).replace("myna.actors.messages.", "")
        raise WireError(f"not a valid {expected}: {_reason(error)}") from error
    return result


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
