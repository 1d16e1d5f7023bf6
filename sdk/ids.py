"""Ids of sessions, calls and variables: a readable name and 64 random bits, so that no two processes make the same."""

from __future__ import annotations

import re
import secrets

_NOT_A_TOKEN = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 60


def new(name: str) -> str:
    """A new id, `<name>-<16 hex digits>`, that is one subject token whatever `name` holds."""
    readable = _NOT_A_TOKEN.sub("_", name)[:_LONGEST_NAME] or "x"
    return f"{readable}-{secrets.token_hex(8)}"
