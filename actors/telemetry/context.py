"""Which trace a session belongs to, as headers carry it: W3C's `traceparent`.

A session that was opened inside a trace belongs to it: inside a span of the application, an HTTP request that names one, or a
native call that belongs to one. Any other has a trace of its own, whose ids follow from its name, so that all actors, and a later
scheduler, mean the same one without asking each other. Law: needs no OpenTelemetry.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

TRACEPARENT = "traceparent"
WAITED = "myna-waited"
"""Seconds that a call was ready before it was dispatched; so its span begins where it belongs, whatever the clocks say."""

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Context:
    """A span by its ids; `recorded`: somebody keeps its trace. One that nobody keeps has no recorded span inside it either."""

    trace: int
    span: int
    recorded: bool = True

    @property
    def header(self) -> str:
        """As `traceparent` says it."""
        return f"00-{self.trace:032x}-{self.span:016x}-{self.recorded:02x}"

    def inside(self) -> Context:
        """A new span of this one's trace."""
        return Context(self.trace, secrets.randbits(64) or 1, self.recorded)


CURRENT: ContextVar[Context | None] = ContextVar("myna_trace", default=None)
"""The span that the running task works for, where a message has told this process of one."""


def incoming(headers: Mapping[str, str]) -> Context | None:
    """The span that a message belongs to; None if it names none."""
    told = headers.get(TRACEPARENT)
    found = None if told is None else _FORM.fullmatch(told)
    if found is None:
        return None
    return Context(int(found[1], 16), int(found[2], 16), bool(int(found[3], 16) & 1))


def outgoing() -> Mapping[str, str] | None:
    """What a message that the running task sends says of its span; None where there is none."""
    current = CURRENT.get()
    return None if current is None else {TRACEPARENT: current.header}


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
