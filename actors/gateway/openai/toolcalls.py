"""Tool calls in the text of a model, as it comes.

Models write them in their own ways: `<tool_call>{…}</tool_call>` (Hermes, Qwen), `<|python_tag|>{…}` or the bare object
(Llama 3), `[TOOL_CALLS] [{…}]` (Mistral). All hold a JSON object with a `name` and its `arguments` or `parameters`.

Law: text that may be the beginning of a tool call is held back until it is known; nothing is lost, whatever it turns out to be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from myna.actors.gateway.openai.callstream import CallStream, Piece

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_LEADS = (_OPEN, "<|python_tag|>", "[TOOL_CALLS]", "{", "[", "```json")
_WRAPPING = re.compile(r"\A\s*(?:<\|python_tag\|>|\[TOOL_CALLS\]|```json\s)?\s*(.*?)\s*(?:```)?\s*\Z", re.DOTALL)
_BLOCK = re.compile(rf"{_OPEN}(.*?)(?:{_CLOSE}|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Called:
    """A tool call: the function's name and its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a model's text says: words, and calls."""

    text: str
    calls: tuple[Called, ...]


def parse(text: str, names: Iterable[str]) -> Parsed:
    """Find the calls of the functions `names` in a whole text. Without any, it is all words."""
    known = frozenset(names)
    if _OPEN in text:
        found = [call for block in _BLOCK.findall(text) for call in _calls(block, known)]
        if found:
            return Parsed(_BLOCK.sub("", text).strip(), tuple(found))
    wrapped = _WRAPPING.match(text)
    calls = _calls(wrapped[1], known) if wrapped is not None else ()
    return Parsed("", tuple(calls)) if calls else Parsed(text, ())


def _calls(text: str, known: frozenset[str]) -> list[Called]:
    """All of a text that is nothing but calls: one object, a list of them, or several parted by `;` or nothing."""
    decoder, at, found = json.JSONDecoder(), 0, []
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        for item in value if isinstance(value, list) else [value]:
            call = _called(item, known)
            if call is None:
                return []
            found.append(call)
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n;,"))
    return found


def _called(item: Any, known: frozenset[str]) -> Called | None:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or item.get("name") not in known:
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    return Called(item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


class Scanner:
    """Parts a growing text into words that may be shown and what may be a tool call. `finish` tells what it was. `forced`: it is
    nothing but calls."""

    def __init__(self, names: Iterable[str], *, forced: bool = False) -> None:
        self._names = tuple(names)
        self._forced = forced
        self._stream = CallStream(self._names)
        self._streamed = 0
        self._held = ""
        self._shown = False
        self._inside = False

    def feed(self, piece: str) -> str:
        """Take a piece of text; returns what certainly is words."""
        self._held += piece
        if not self._names:
            return self._show(len(self._held))
        if self._inside or self._forced:
            return ""
        if not self._shown and self._may_be_call():
            return ""
        at = self._held.find(_OPEN)
        if at >= 0:
            self._inside = True
            return self._show(at)
        return self._show(len(self._held) - _overlap(self._held, _OPEN))

    def pieces(self) -> list[Piece]:
        """What of calls has been written since the last time."""
        if not (self._inside or self._forced):
            return []
        text, self._streamed = self._held[self._streamed :], len(self._held)
        return self._stream.feed(text)

    def finish(self) -> Parsed:
        """The end of the text: the words that were held back, and the calls, those among them that `pieces` gave."""
        parsed = parse(self._held, self._names) if self._held else Parsed("", ())
        return parsed if parsed.calls or not self._stream.begun else Parsed("", ())

    @property
    def begun(self) -> int:
        """Calls that `pieces` has given, the last perhaps cut."""
        return self._stream.begun

    def _may_be_call(self) -> bool:
        start = self._held.lstrip()
        return any(start.startswith(lead) or lead.startswith(start) for lead in _LEADS)

    def _show(self, length: int) -> str:
        words, self._held = self._held[:length], self._held[length:]
        self._shown = self._shown or bool(words.strip())
        return words


def _overlap(text: str, mark: str) -> int:
    """How much of the end of `text` is a beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
