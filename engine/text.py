"""Text leaves an output only when it is certain: whole characters, and nothing that may be the start of a stop string.

Both parts are deterministic in the tokens alone, so an output that is replayed says the same again. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

Decode: TypeAlias = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""

_REPLACEMENT = "\ufffd"
_PROMPT_WINDOW = 6
# Pending tokens after which half a character is taken for garbage. No character has more than four bytes, and every
# token that isn't special has at least one.
_GARBAGE = 32
_LONGEST_CHARACTER = 4


def decoder(tokenizer: Any) -> Decode:
    """The quickest exact decoding function of a Hugging Face tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Half of what is decoded is a token alone (see `Detokenizer`), and that is the same every time.
        alone = lru_cache(maxsize=None)(lambda token: str(backend.decode([token], skip_special_tokens=True)))
        return lambda ids: alone(ids[0]) if len(ids) == 1 else str(backend.decode(list(ids), skip_special_tokens=True))
    return lambda ids: str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)  # the value is exact
    )


class Detokenizer:
    """Turns a growing sequence of tokens into text, in constant time for each token.

    Only a window is decoded: the tokens of the last piece of text, which give the next one its context (a space that
    the decoder would drop at a beginning, say), and those that are still half a character. `prompt`: the tokens before
    the first, of which the last few serve as that context.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(prompt[-_PROMPT_WINDOW:])
        self._said = len(self._window)
        self._said_text = decode(self._window) if self._window else ""

    def feed(self, token: int) -> str:
        """The text that `token` completes; empty while the last character is in halves."""
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) > len(self._said_text) and not text.endswith(_REPLACEMENT):
            return self._say(text, len(self._window))
        if len(self._window) - self._said < _GARBAGE:
            return ""
        return self._give_up(text)

    def _give_up(self, text: str) -> str:
        """Too much is pending to be half a character: tokens without text, or bytes that are no UTF-8."""
        if not text.endswith(_REPLACEMENT):
            del self._window[self._said :]
            return ""
        for end in range(len(self._window) - _LONGEST_CHARACTER, self._said, -1):
            if text.startswith(begin := self._decode(self._window[:end])):
                return self._say(begin, end)
        return self._say(text, len(self._window))

    def flush(self) -> str:
        """What is left, half characters as U+FFFD."""
        return self._say(self._decode(self._window), len(self._window))

    def _say(self, text: str, end: int) -> str:
        new = text[len(self._said_text) :]
        self._window = self._window[self._said :]
        self._said = end - self._said
        self._said_text = self._decode(self._window[: self._said]) if self._said else ""
        return new


@dataclass(frozen=True, slots=True)
class Scan:
    """`text` is certain and may be sent. `stopped`: a stop string is complete; what follows it is lost."""

    text: str
    stopped: bool


class StopScanner:
    """Looks for stop strings in text that comes in pieces; how it is cut makes no difference.

    The text ends before the stop string that is complete first, the longest one if several are complete at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece: str) -> Scan:
        """Take the next piece of text."""
        if not self._stops:
            return Scan(piece, stopped=False)
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return Scan(text[: min(found)[1]], stopped=True)
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return Scan(text[: len(text) - held], stopped=False)

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, the whole of it excepted."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
