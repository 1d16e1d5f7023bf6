"""Which trace a session belongs to, as headers carry it: W3C's `traceparent`.

A session that was opened inside a trace belongs to it. Any other has a trace of its own, whose ids follow from its name, so that
all actors, and a later scheduler, mean the same one without asking each other. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

TRACEPARENT = "traceparent"
WAITED = "myna-waited"
"""Seconds that a call was ready before it was dispatched; so its span begins where it belongs, whatever the clocks say."""

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Context:
    """A span by its ids."""

    trace: int
    span: int

    @property
    def header(self) -> str:
        """As `traceparent` says it, of a trace that is recorded."""
        return f"00-{self.trace:032x}-{self.span:016x}-01"


def incoming(headers: Mapping[str, str]) -> Context | None:
    """The span that a message belongs to; None if it names none, or one that is not recorded."""
    found = _FORM.fullmatch(headers.get(TRACEPARENT, ""))
    if found is None or not int(found[3], 16) & 1:
        return None
    return Context(int(found[1], 16), int(found[2], 16))


def of_session(tenant: str, session: str) -> Context:
    """The span of a session that has a trace of its own."""
    digest = hashlib.blake2b(f"{tenant}.{session}".encode(), digest_size=24).digest()
    return Context(int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:]) or 1)


def waited(headers: Mapping[str, str]) -> float:
    """The seconds that a message says a call has waited; 0 if it says nothing sensible."""
    try:
        seconds = float(headers.get(WAITED, "0"))
    except ValueError:
        return 0.0
    return seconds if 0.0 <= seconds < 1e7 else 0.0
