"""Tool calls while they are being written: the name as soon as it is known, the arguments piece by piece.

Law: what was given away is never taken back. So this is asked only of text that surely is a call: one that a grammar forces, or
that stands behind the mark of a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

_SKIP = re.compile(r"(?:\s|[\],;}]|\[TOOL_CALLS\]|\[(?!T|\Z)|</?tool_call>|<\|python_tag\|>|```|json)*")
"""What may stand before a call: of text that grows, no half marks."""
_HEAD = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?(?:"function"\s*:\s*\{\s*)?'
    r'"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


@dataclass(frozen=True, slots=True)
class Begun:
    """A call begins: the function's name."""

    name: str


@dataclass(frozen=True, slots=True)
class Written:
    """More of the arguments of the call that has begun last, as JSON text."""

    text: str


Piece = Begun | Written


class CallStream:
    """Reads calls of the functions `names` out of a growing text."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._depth: int | None = None
        self._quoted = self._escaped = self._lost = False
        self.begun = 0
        """Calls that have begun."""

    def feed(self, text: str) -> list[Piece]:
        """Take more text."""
        self._held += text
        found: list[Piece] = []
        while self._held and not self._lost:
            if self._depth is not None:
                found.append(Written(self._arguments()))
            elif (name := self._head()) is not None:
                found.append(Begun(name))
            else:
                break
        return found

    def _head(self) -> str | None:
        """The name of the call that begins, if that can be told."""
        self._held = self._held[_end(_SKIP.match(self._held)) :]
        head = _HEAD.match(self._held)
        if head is None:
            return None
        name = _string(head[1])
        if name not in self._names:
            self._lost = True
            return None
        self._held = self._held[head.end() :]
        self._depth = 0
        self.begun += 1
        return name

    def _arguments(self) -> str:
        """What of the held text belongs to the arguments, up to their last brace."""
        depth = self._depth or 0
        for place, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
                if not depth:
                    self._depth = None
                    return self._take(place + 1)
        self._depth = depth
        return self._take(len(self._held))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def _end(match: re.Match[str] | None) -> int:
    return 0 if match is None else match.end()


def _string(text: str) -> str | None:
    try:
        return str(json.loads(text))
    except ValueError:
        return None
