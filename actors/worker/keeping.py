"""Prompts that the backend keeps for calls to come. One that ends in an input which is generated here is filled meanwhile: it
grows in the backend's cache as that input's chunks are stored.

Law: it is a hint, made of stored chunks alone. The consumer itself reads the value, which may yet be another one, or none: then
what was filled is a cache that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from myna.actors.messages import Retain, SessionId, Tenant, Value, VarId
from myna.actors.worker.backend import Hold
from myna.actors.worker.events import Forgo, Hoard

PIECE = 64
"""Tokens more than before for which a prompt is computed further: each time it is looked up from its beginning."""

StreamKey = tuple[Tenant, SessionId, VarId]


@dataclass(slots=True)
class _Fill:
    """A kept prompt that ends in an input; so many tokens of that are filled."""

    hold: Hold
    stream: StreamKey
    filled: int = 0


class Keeping:
    """All prompts that are kept here, by the names that the scheduler gave them."""

    def __init__(self) -> None:
        self._kept: set[str] = set()
        self._fills: dict[str, _Fill] = {}

    def asked(self, retain: Retain) -> None:
        """A prompt is to be kept, once its inputs are there."""
        self._kept.add(retain.id)

    def fetched(self, retain: Retain, inputs: Mapping[VarId, Value] | None) -> list[Hoard]:
        """They are there, or, with None, can't be had. Of a prompt that ends in an input which is being generated, all before
        that can be kept now."""
        if inputs is None:
            self._kept.discard(retain.id)
        if inputs is None or retain.id not in self._kept:
            return []
        hold = Hold(retain.id, Tenant(retain.tenant), retain.call, inputs, retain.distance, retain.cache)
        if retain.stream:
            stream = (hold.tenant, SessionId(retain.session), VarId(retain.stream))
            self._fills[hold.id] = _Fill(hold, stream)
            hold = _filled(hold, stream[2], "", ())
        return [Hoard(hold)]

    def grown(self, stream: StreamKey, text: Sequence[str], tokens: Sequence[int]) -> list[Forgo | Hoard]:
        """A variable has so much text and so many tokens now: the prompts that can be computed further."""
        found: list[Forgo | Hoard] = []
        for fill in self._fills.values():
            if fill.stream == stream and len(tokens) - fill.filled >= PIECE:
                fill.filled = len(tokens)
                hold = _filled(fill.hold, stream[2], "".join(text), tuple(tokens))
                found += [Forgo(hold.id), Hoard(hold)]
        return found

    def let_go(self, ids: Iterable[str]) -> list[Forgo]:
        """These are kept no longer, as far as they are."""
        gone = sorted(self._kept.intersection(ids))
        self._kept.difference_update(gone)
        for hold in gone:
            self._fills.pop(hold, None)
        return [Forgo(hold) for hold in gone]

    def clear(self) -> list[Forgo]:
        """None is kept any longer."""
        return self.let_go(self._kept)


def _filled(hold: Hold, variable: VarId, text: str, tokens: tuple[int, ...]) -> Hold:
    return replace(hold, inputs={**hold.inputs, variable: Value(text=text, tokens=tokens)}, made_here=variable)
