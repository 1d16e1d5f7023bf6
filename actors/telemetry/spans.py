"""When attempts were received, began, gave their first token and ended: put together from their outputs' times.

Law: pure and bounded. An attempt that is stopped tells nothing, so the oldest is forgotten where there are too many.
"""

from __future__ import annotations

from msgspec import Struct

from myna.actors.messages import Usage, Value

MOST = 4096

Key = tuple[str, str, str, int]
"""A `RunKey`, as it stands in a job or in an event."""


class Span(Struct, frozen=True, gc=False):
    """An attempt's times, in seconds since the epoch, and its tokens; as in `messages.Timing`."""

    function: str
    received: float
    began: float
    first: float
    ended: float
    used: Usage

    @property
    def pace(self) -> float | None:
        """Seconds for each output token after the first; None where there is no second."""
        further = self.used.output_tokens - 1
        return (self.ended - self.first) / further if further > 0 else None


class Spans:
    """The attempts that have made some of their outputs."""

    def __init__(self) -> None:
        self._open: dict[Key, Span] = {}

    def made(self, key: Key, function: str, value: Value) -> None:
        """An output is whole."""
        timing = value.timing
        if timing is None:
            return
        before = self._open.get(key)
        first, used = timing.first, value.usage
        if before is not None:
            first, used = min(before.first, first), before.used + used
        elif len(self._open) >= MOST:
            del self._open[next(iter(self._open))]
        self._open[key] = Span(function, timing.received, timing.began, first, timing.ended, used)

    def take(self, key: Key) -> Span | None:
        """The attempt is over."""
        return self._open.pop(key, None)
