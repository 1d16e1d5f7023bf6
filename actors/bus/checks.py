"""What every bus refuses before it sends: bad subjects, bad headers, and messages over the payload limit."""

from __future__ import annotations

import re
from collections.abc import Mapping

from myna.actors import codec

_BAD_SUBJECT = re.compile(r"[\s\x00-\x1f\x7f]|^$|^\.|\.\.|\.$")
_WILDCARD = re.compile(r"(^|\.)[*>](\.|$)")
_BAD_NAME = re.compile(r"[^!#-'*+.0-9A-Z^_`a-z|~-]|^$")
_BAD_VALUE = re.compile(r"[\r\n]")


def check_subject(subject: str) -> None:
    """Raises `ValueError` unless one may publish on `subject`."""
    check_pattern(subject)
    if _WILDCARD.search(subject):
        raise ValueError(f"{subject!r} has wildcards: one can't publish on it")


def check_pattern(pattern: str) -> None:
    """Raises `ValueError` unless one may subscribe to `pattern`."""
    if _BAD_SUBJECT.search(pattern):
        raise ValueError(f"{pattern!r} is no NATS subject")


def check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers as they will arrive: values are trimmed. Raises `ValueError` for odd names and for line breaks."""
    if not headers:
        return {}
    for name, value in headers.items():
        if _BAD_NAME.search(name) or _BAD_VALUE.search(value):
            raise ValueError(
                f"header {name!r}: {value!r} can't be sent: only ASCII names without separators, no line breaks"
            )
    return {name: value.strip() for name, value in headers.items()}


def check_size(subject: str, data: bytes, head: int = 0, max_payload: int = codec.MAX_PAYLOAD) -> None:
    """Raises `codec.TooLarge` where the wire's limit refuses the body, or the server's the body with `head` bytes of headers."""
    limit = min(codec.MAX_BODY, max_payload - head)
    if len(data) > limit:
        raise codec.TooLarge(f"a message to {subject}", len(data), limit)
