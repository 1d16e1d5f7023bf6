"""Inputs that are filled while they are generated: a consumer's prompt grows in the backend's cache as its producer's chunks
are stored.

Law: it is a hint, made of stored chunks alone. The consumer itself reads the value, which may yet be another one, or none: then
what was filled is a cache that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from myna.actors.messages import SessionId, Tenant, Value, VarId
from myna.actors.worker.backend import Hold

PIECE = 64
"""Tokens more than before for which a prompt is computed further: each time it is looked up from its beginning."""

StreamKey = tuple[Tenant, SessionId, VarId]


@dataclass(slots=True)
class _Fill:
    """A kept prompt that ends in an input; so many tokens of that are filled."""

    hold: Hold
    stream: StreamKey
    filled: int = 0


class Fills:
    """All prompts that are filled here, by their names."""

    def __init__(self) -> None:
        self._fills: dict[str, _Fill] = {}

    def add(self, hold: Hold, stream: StreamKey) -> Hold:
        """A prompt ends in an input that is being generated. Returns what can be kept of it now: all before that."""
        self._fills[hold.id] = _Fill(hold, stream)
        return _filled(hold, stream[2], "", ())

    def drop(self, hold: str) -> None:
        """It is kept no longer. Unknown names do nothing."""
        self._fills.pop(hold, None)

    def grown(self, stream: StreamKey, text: Sequence[str], tokens: Sequence[int]) -> Iterator[Hold]:
        """A variable has so much text and so many tokens now: the prompts that can be computed further."""
        for fill in self._fills.values():
            if fill.stream == stream and len(tokens) - fill.filled >= PIECE:
                fill.filled = len(tokens)
                yield _filled(fill.hold, stream[2], "".join(text), tuple(tokens))


def _filled(hold: Hold, variable: VarId, text: str, tokens: tuple[int, ...]) -> Hold:
    return replace(hold, inputs={**hold.inputs, variable: Value(text=text, tokens=tokens)}, made_here=variable)
